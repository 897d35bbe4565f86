"""The corpus of a run: what `--data` and `--tokenizer` name, as blocks to train and to validate on."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from switchlora.data.cache import key_of, locked, read_json, write_json, writing
from switchlora.data.files import data_error
from switchlora.data.packing import stored_streams
from switchlora.data.sources import HubSource, OpenDataset, Source, open_hub, open_source
from switchlora.data.split import Piece, Split, survey
from switchlora.data.store import Blocks, Tokens
from switchlora.data.tokenizer import fingerprint, loaded_tokenizer, trained_tokenizer, vocab_to_train

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class Corpus:
    """A tokenizer, and the blocks it made of the two sides of a corpus. Close it to stop a stream's background fetch.

    fingerprint: a hash of the tokenizer and of all tokens (of a hub data set: of its name), so that a run that goes on
    can tell whether its data are still what they were.
    """

    tokenizer: "PreTrainedTokenizerBase"
    train: Blocks
    valid: Blocks
    fingerprint: str
    close: Callable[[], None] = field(default=lambda: None, repr=False)


def load_corpus(
    source: str | Sequence[str],
    tokenizer_spec: str | None,
    *,
    seq_len: int,
    num_sequences: int,
    vocab_size: int | None,
    cache_dir: Path,
    log: Callable[[str], None],
    open_dataset: OpenDataset = open_hub,
) -> Corpus:
    """The corpus that `--data source` and `--tokenizer tokenizer_spec` name, from the cache where it is there. It knows
    no seed: all runs on a text share one cache and one validation set.

    seq_len: tokens per block.
    num_sequences: blocks the run will train on; only a hub data set is cut to it.
    vocab_size: the model's; None if the tokenizer decides.
    cache_dir: created if need be.
    log: gets lines of progress.
    open_dataset: how a hub data set is opened.

    Raises UserError for bad data, a bad tokenizer, a corpus too small for one block, and a full disk."""
    size = vocab_to_train(tokenizer_spec, vocab_size)
    opened = open_source(source, open_dataset=open_dataset)
    cache_dir = Path(cache_dir)
    with writing(cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
    tokenizer = None if size is not None else loaded_tokenizer(str(tokenizer_spec), vocab_size)
    corpus_key = key_of(opened.identity)
    split = _surveyed(opened, cache_dir / f"split-{corpus_key}.json")

    def pieces() -> Iterator[Piece]:
        return split.pieces(opened.documents())

    def training_texts() -> Iterator[str]:
        return (piece.text for piece in pieces() if not piece.valid)

    if size is not None:
        tokenizer = trained_tokenizer(size, training_texts, corpus_key=corpus_key, cache_dir=cache_dir, log=log)
    assert tokenizer is not None
    name = key_of(corpus_key, asdict(split), fingerprint(tokenizer))
    if isinstance(opened, HubSource):
        return _streamed(opened, split, tokenizer, cache_dir / f"stream-{name}", seq_len, num_sequences, log)
    streams, content = stored_streams(cache_dir / f"tokens-{name}", pieces, tokenizer, log=log)
    train, valid = (Blocks(streams[side], seq_len) for side in ("train", "valid"))
    _check_size(opened, "training", train)
    _check_size(opened, "validation", valid)
    log(f"{opened.label}: {len(train)} training and {len(valid)} validation blocks of {seq_len} tokens")
    return Corpus(tokenizer, train, valid, key_of(fingerprint(tokenizer), content))


def load_text(
    source: str | Sequence[str],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    cache_dir: Path,
    log: Callable[[str], None],
) -> Tokens:
    """All text that `source` names as one stream, nothing kept apart for validation, from the cache where it is there.

    Raises UserError for bad data, a hub data set (which has no end), less than two tokens, and a full disk."""
    opened = open_source(source)
    if isinstance(opened, HubSource):
        raise data_error(opened.label, "is streamed and not read to its end", "use --split valid, or give files")
    cache_dir = Path(cache_dir)
    with writing(cache_dir):
        cache_dir.mkdir(parents=True, exist_ok=True)
    name = key_of("whole", key_of(opened.identity), fingerprint(tokenizer))
    everything = Split(threshold=0, piece_chars=0)
    streams, _ = stored_streams(
        cache_dir / f"tokens-{name}", lambda: everything.pieces(opened.documents()), tokenizer, log=log
    )
    if streams["train"].num_tokens < 2:
        raise data_error(opened.label, "there is no text in it of which a token could be predicted", "give more text")
    return streams["train"]


def _surveyed(source: Source, path: Path) -> Split:
    """The rule of the split, which is looked up once per corpus."""
    with writing(path.parent), locked(path.with_suffix(".lock")):
        found = read_json(path)
        if found is not None and found.keys() == {"threshold", "piece_chars"}:
            return Split(**found)
        split = survey(source.documents())
        if split is None:
            raise data_error(source.label, "there is no text in it", "give files with text in them")
        write_json(path, asdict(split))
        return split


def _streamed(
    source: HubSource,
    split: Split,
    tokenizer: "PreTrainedTokenizerBase",
    folder: Path,
    seq_len: int,
    num_sequences: int,
    log: Callable[[str], None],
) -> Corpus:
    from switchlora.data.streaming import VALID_TOKENS, Fetcher, StreamedTokens

    num_train, num_valid = num_sequences * seq_len, max(VALID_TOKENS, seq_len)
    fetcher = Fetcher(folder, source, split, tokenizer, num_train_tokens=num_train, num_valid_tokens=num_valid, log=log)
    train = Blocks(StreamedTokens(fetcher, "train", num_wanted=num_train), seq_len, shuffled=False)
    valid = Blocks(StreamedTokens(fetcher, "valid", num_wanted=num_valid), seq_len, shuffled=False)
    try:
        for side, blocks in (("training", train), ("validation", valid)):
            if blocks.num_available(1) < 1:
                _check_size(source, side, blocks)
    except BaseException:
        fetcher.close()
        raise
    return Corpus(tokenizer, train, valid, folder.name, fetcher.close)


def _check_size(source: Source, side: str, blocks: Blocks) -> None:
    if len(blocks) < 1:
        raise data_error(
            source.label,
            f"its {side} part is too small for one block of --seq-len {blocks.seq_len} tokens",
            "give more text or a smaller --seq-len",
        )
