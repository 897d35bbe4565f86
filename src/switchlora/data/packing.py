"""Documents -> tokens -> two streams on disk.

Text is encoded in batches of about a megabyte, by all cores (the `tokenizers` library runs its own threads),
and written at once: memory holds one batch, however long the corpus is. Exactly one end-of-text id follows
each document; blocks are cut from the stream without regard to documents, so no position is padding. A
document shorter than a block shares it with its neighbours, and attention sees across the end-of-text token,
as in the literature this project compares to.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np

from switchlora.data.cache import ensure_folder
from switchlora.data.files import Part
from switchlora.data.split import Piece
from switchlora.data.store import SHARD_TOKENS, StoredTokens, TokenReader, TokenWriter, token_dtype
from switchlora.data.tokenizer import encoder_of, num_ids

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

BATCH_CHARS = 1 << 20
LOG_SECONDS = 5.0
STREAMS = ("train", "valid")
T = TypeVar("T", Part, Piece)


@dataclass(frozen=True)
class Encoded:
    """What one batch of pieces adds to one stream."""

    tokens: np.ndarray  # (num_tokens,) int64
    num_bytes: int


class PieceEncoder:
    """Turns batches of pieces into token ids for the two streams."""

    def __init__(self, tokenizer: "PreTrainedTokenizerBase"):
        self._encoder = encoder_of(tokenizer)
        self._end_id = tokenizer.eos_token_id

    def encode(self, batch: list[Piece]) -> dict[str, Encoded]:
        """{"train": ..., "valid": ...}, pieces in order, end-of-text after each piece that ends its
        document."""
        encodings = self._encoder.encode_batch_fast([piece.text for piece in batch], add_special_tokens=False)
        ids: dict[str, list[int]] = {name: [] for name in STREAMS}
        num_bytes = dict.fromkeys(STREAMS, 0)
        for piece, encoding in zip(batch, encodings, strict=True):
            name = "valid" if piece.valid else "train"
            ids[name].extend(encoding.ids)
            if piece.ends:
                ids[name].append(self._end_id)
            num_bytes[name] += len(piece.text.encode("utf-8"))
        return {name: Encoded(np.array(ids[name], dtype=np.int64), num_bytes[name]) for name in STREAMS}


def in_batches(items: Iterator[T], size: int = BATCH_CHARS) -> Iterator[list[T]]:
    """Lists of pieces, or of documents, with about `size` characters together."""
    batch: list[T] = []
    held = 0
    for item in items:
        batch.append(item)
        held += len(item.text)
        if held >= size:
            yield batch
            batch, held = [], 0
    if batch:
        yield batch


def stored_streams(
    folder: Path,
    pieces: Callable[[], Iterator[Piece]],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    log: Callable[[str], None],
    shard_tokens: int = SHARD_TOKENS,
) -> tuple[dict[str, StoredTokens], str]:
    """The streams "train" and "valid" of a corpus in `folder`, tokenised first if they are not there whole, and
    a hash of their tokens."""

    def build(temporary: Path) -> dict[str, Any]:
        return _tokenise(temporary, pieces(), tokenizer, log=log, shard_tokens=shard_tokens)

    about = ensure_folder(folder, build)
    dtype, length = about["dtype"], about["shard_tokens"]
    streams = {
        name: StoredTokens(TokenReader(folder, name, dtype=dtype, shard_tokens=length), **about[name])
        for name in STREAMS
    }
    return streams, about["content"]


def _tokenise(
    folder: Path,
    pieces: Iterator[Piece],
    tokenizer: "PreTrainedTokenizerBase",
    *,
    log: Callable[[str], None],
    shard_tokens: int,
) -> dict[str, Any]:
    dtype = token_dtype(num_ids(tokenizer))
    encoder = PieceEncoder(tokenizer)
    num_bytes = dict.fromkeys(STREAMS, 0)
    contents = {name: blake2b(digest_size=16) for name in STREAMS}
    log("tokenising the corpus")
    started = last_logged = time.monotonic()
    with (
        TokenWriter(folder, "train", dtype=dtype, shard_tokens=shard_tokens) as train,
        TokenWriter(folder, "valid", dtype=dtype, shard_tokens=shard_tokens) as valid,
    ):
        writers = {"train": train, "valid": valid}
        for batch in in_batches(pieces):
            for name, encoded in encoder.encode(batch).items():
                writers[name].append(encoded.tokens)
                contents[name].update(encoded.tokens.tobytes())
                num_bytes[name] += encoded.num_bytes
            if time.monotonic() - last_logged > LOG_SECONDS:
                last_logged = time.monotonic()
                log(f"tokenised {sum(num_bytes.values()) / 1e6:.0f} MB in {last_logged - started:.0f} s")
    counts = {name: {"num_tokens": writers[name].num_tokens, "num_bytes": num_bytes[name]} for name in STREAMS}
    content = "-".join(contents[name].hexdigest() for name in STREAMS)
    return {"dtype": dtype, "shard_tokens": shard_tokens, "content": content, **counts}
