"""The tokenizer: trained on the corpus, or brought along.

`train:VOCAB` trains a byte-level BPE (Sennrich et al. 2016; bytes as GPT-2 does) on the training side of the
corpus. Any text can be encoded and decoded without loss, because the 256 bytes are in the vocabulary; the one
special token, <|endoftext|>, ends documents and has id 0. Training is deterministic and reads at most
TRAINING_BYTES of text: more changes the merges little, and would cost memory. Everything else is loaded
through `transformers`, and must be a fast tokenizer (one with a `tokenizers` backend: all sizes of corpora
are encoded in parallel) that has an end-of-text token.
"""

import json
import os
import re
from collections.abc import Callable, Iterator
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any

from switchlora.data.cache import ensure_folder, key_of
from switchlora.data.network import hub_resolves
from switchlora.errors import UserError

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerBase

TRAIN_PREFIX = "train:"
END_OF_TEXT = "<|endoftext|>"
SMALLEST_VOCAB = 257  # the 256 bytes and end-of-text
TRAINING_BYTES = 50 << 20
# A bare tokenizer.json does not say which token ends a text: the first of these that it has does.
KNOWN_ENDS = (END_OF_TEXT, "</s>", "<|end_of_text|>", "<eos>", "[EOS]")
PLAIN_CLASSES = ("PreTrainedTokenizerFast", "TokenizersBackend")  # the former's name of today


def tokenizer_error(value: object, rule: str, way_out: str) -> UserError:
    """The one line a user sees for `--tokenizer VALUE`."""
    return UserError(" ".join(f"--tokenizer {value}: {rule}; {way_out}".split()))


def vocab_to_train(specification: str | None, vocab_size: int | None) -> int | None:
    """How large a vocabulary is to be trained; None if the tokenizer is to be loaded. Reads nothing.

    Raises UserError for a VOCAB that is no number, smaller than SMALLEST_VOCAB or larger than the model's."""
    if specification is None:
        if vocab_size is None:
            raise tokenizer_error(
                "''",
                "no tokenizer is named and the model has no vocabulary size to train one for",
                "give train:VOCAB, a file, a folder or a hub name",
            )
        specification = f"{TRAIN_PREFIX}{vocab_size}"
    if not specification.startswith(TRAIN_PREFIX):
        return None
    digits = specification.removeprefix(TRAIN_PREFIX)
    if not (digits.isascii() and digits.isdigit()):
        raise tokenizer_error(specification, "VOCAB must be a whole number", "write for example train:8192")
    size = int(digits)
    if size < SMALLEST_VOCAB:
        raise tokenizer_error(
            specification,
            f"VOCAB must be at least {SMALLEST_VOCAB} (256 bytes and end-of-text)",
            "write for example train:8192",
        )
    if vocab_size is not None and size > vocab_size:
        raise tokenizer_error(
            specification,
            f"VOCAB is larger than the model's vocabulary of {vocab_size}",
            f"write train:{vocab_size} or choose another --model",
        )
    return size


def trained_tokenizer(
    size: int,
    texts: Callable[[], Iterator[str]],
    *,
    corpus_key: str,
    cache_dir: Path,
    log: Callable[[str], None],
) -> "PreTrainedTokenizerBase":
    """Train on the texts, or take the one that was trained on the same corpus before."""
    from transformers import PreTrainedTokenizerFast

    def build(folder: Path) -> dict[str, Any]:
        log(f"training a byte-level BPE tokenizer of {size} tokens")
        _save(train_bpe(size, texts()), folder)
        return {"size": size}

    folder = cache_dir / f"tokenizer-{key_of('bpe', corpus_key, size)}"
    ensure_folder(folder, build)
    tokenizer: PreTrainedTokenizerBase = PreTrainedTokenizerFast.from_pretrained(folder, local_files_only=True)
    return tokenizer


def train_bpe(size: int, texts: Iterator[str]) -> "Tokenizer":
    """Byte-level BPE of at most `size` tokens (fewer if the texts have too few pairs), on the first
    TRAINING_BYTES."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_first_bytes(texts, TRAINING_BYTES), trainer)
    return tokenizer


def _first_bytes(texts: Iterator[str], limit: int) -> Iterator[str]:
    total = 0
    for text in texts:
        yield text
        total += len(text.encode("utf-8"))
        if total >= limit:
            return


def _save(tokenizer: "Tokenizer", folder: Path) -> None:
    """Raises OSError for what the disk refuses, of which tokenizers makes a plain Exception."""
    from transformers import PreTrainedTokenizerFast

    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token=END_OF_TEXT, eos_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )
    try:
        fast.save_pretrained(folder)
    except Exception as error:
        refused = re.search(r"\(os error (\d+)\)", str(error))
        if refused is None:
            raise
        raise OSError(int(refused[1]), os.strerror(int(refused[1]))) from error


def loaded_tokenizer(specification: str, vocab_size: int | None) -> "PreTrainedTokenizerBase":
    """Load a tokenizer.json, a folder, or a hub name. Raises UserError if it is not there or cannot serve."""
    path = Path(specification).expanduser()
    try:
        tokenizer = _load_file(path) if path.is_file() else _load_auto(specification, path)
    except UserError:
        raise
    except Exception as error:  # the libraries raise a dozen kinds for missing, damaged and unknown tokenizers
        reason = str(error).strip().split("\n")[0][:200]
        problem = (
            "no tokenizer can be loaded from there" if path.exists() else "no local path, and the hub gave nothing"
        )
        raise tokenizer_error(
            specification,
            f"{problem} ({type(error).__name__}: {reason})",
            "give train:VOCAB, a tokenizer.json, its folder, or the name of one on the hub",
        ) from error
    _check(tokenizer, specification, vocab_size)
    return tokenizer


def _load_file(path: Path) -> "PreTrainedTokenizerBase":
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    tokenizer = Tokenizer.from_file(str(path))
    end = next((token for token in KNOWN_ENDS if tokenizer.token_to_id(token) is not None), None)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end)  # type: ignore[no-untyped-call]


def pretrained_tokenizer(name: str | Path, *, offline: bool) -> "PreTrainedTokenizerBase":
    """The tokenizer of a folder or hub name, as it was saved.

    For some types of models (qwen2) AutoTokenizer insists on a class of its own, which splits text by other rules; a
    folder that says its tokenizer.json is all there is to it is taken by its word.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast

    try:
        said = json.loads((Path(name) / "tokenizer_config.json").read_text(encoding="utf-8")).get("tokenizer_class")
    except (OSError, ValueError, AttributeError):
        said = None
    plain = said in PLAIN_CLASSES and (Path(name) / "tokenizer.json").is_file()
    kind: Any = PreTrainedTokenizerFast if plain else AutoTokenizer
    tokenizer: PreTrainedTokenizerBase = kind.from_pretrained(name, trust_remote_code=False, local_files_only=offline)
    return tokenizer


def _load_auto(specification: str, path: Path) -> "PreTrainedTokenizerBase":
    if path.is_dir():
        return pretrained_tokenizer(path, offline=True)
    if specification.startswith((".", "~", "/")) or specification.endswith(".json"):
        raise tokenizer_error(
            specification,
            "no such file or folder",
            "give train:VOCAB, a path that exists, or the name of one on the hub",
        )
    return pretrained_tokenizer(specification, offline=not hub_resolves())


def _check(tokenizer: "PreTrainedTokenizerBase", specification: str, vocab_size: int | None) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise tokenizer_error(
            specification,
            "it has no fast version (tokenizer.json)",
            "convert it with transformers, or use train:VOCAB",
        )
    if tokenizer.eos_token_id is None:
        raise tokenizer_error(
            specification,
            "it has no end-of-text (eos) token, which must end every document",
            "name one as eos_token in its tokenizer_config.json, or use train:VOCAB",
        )
    if vocab_size is not None and num_ids(tokenizer) > vocab_size:
        raise tokenizer_error(
            specification,
            f"its {num_ids(tokenizer)} tokens do not fit the model's vocabulary of {vocab_size}",
            "choose a smaller tokenizer or a model with a larger vocabulary",
        )


def num_ids(tokenizer: "PreTrainedTokenizerBase") -> int:
    """One more than the largest token id: what the embedding must have rows for."""
    return int(max(tokenizer.get_vocab().values())) + 1


def fingerprint(tokenizer: "PreTrainedTokenizerBase") -> str:
    """A hash of everything that decides which ids a text becomes."""
    content = json.dumps([tokenizer.backend_tokenizer.to_str(), tokenizer.eos_token_id])
    return blake2b(content.encode("utf-8"), digest_size=16).hexdigest()


def encoder_of(tokenizer: "PreTrainedTokenizerBase") -> "Tokenizer":
    """A copy of the backend for plain text: nothing is truncated, padded, or read as a special token."""
    from tokenizers import Tokenizer

    encoder = Tokenizer.from_str(tokenizer.backend_tokenizer.to_str())
    encoder.no_truncation()
    encoder.no_padding()
    encoder.encode_special_tokens = True  # "</s>" inside a document is three characters, not its end
    return encoder
