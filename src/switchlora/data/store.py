"""Token streams on disk, and the blocks that training reads from them.

A corpus is two flat streams of token ids, `train` and `valid`, each in shards of a fixed number of tokens
(the last one shorter), as uint16 where the vocabulary allows, else uint32. Block i is tokens [i·seq_len,
(i+1)·seq_len): nothing is padded, only the tail that fills no block is left unread, and the same files serve
every sequence length. Shards are memory-mapped, so a corpus costs address space, not memory.
"""

import os
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, Protocol

import numpy as np
from numpy.typing import NDArray

SHARD_TOKENS = 1 << 24


def shard_path(folder: Path, name: str, shard: int) -> Path:
    """The file of shard number `shard` (from 0) of the stream `name`."""
    return folder / f"{name}-{shard:05d}.bin"


def token_dtype(num_ids: int) -> str:
    """The smallest dtype (numpy's name, little-endian) for ids below num_ids."""
    return "<u2" if num_ids <= 1 << 16 else "<u4"


class TokenWriter:
    """Appends token ids to the shards of one stream, from `num_tokens` on: what lies behind is cut off
    first."""

    def __init__(self, folder: Path, name: str, *, dtype: str, num_tokens: int = 0, shard_tokens: int = SHARD_TOKENS):
        self.num_tokens = num_tokens
        self._folder, self._name = folder, name
        self._dtype, self._shard_tokens = np.dtype(dtype), shard_tokens
        self._file: BinaryIO | None = None

    def __enter__(self) -> "TokenWriter":
        return self

    def __exit__(self, kind: type[BaseException] | None, *details: object) -> None:
        if kind is None:
            self.close()
        elif self._file is not None:  # what was raised matters; that the same disk fails again on closing does not
            with suppress(OSError):
                self._file.close()

    def append(self, tokens: NDArray[np.integer]) -> None:
        """Write (num_tokens,) ids behind the last ones. Raises OSError when the disk is full."""
        start = 0
        while start < len(tokens):
            space = self._shard_tokens - self.num_tokens % self._shard_tokens
            some = tokens[start : start + space].astype(self._dtype)
            self._open_shard().write(some.tobytes())
            start += len(some)
            self.num_tokens += len(some)
            if len(some) == space:
                self.close()

    def sync(self) -> None:
        """Return only when everything appended is on the disk."""
        if self._file is not None:
            self._file.flush()
            os.fsync(self._file.fileno())

    def close(self) -> None:
        """Sync and close the shard in hand; appending afterwards goes on."""
        if self._file is not None:
            try:
                self.sync()
            finally:
                file, self._file = self._file, None
                file.close()

    def _open_shard(self) -> BinaryIO:
        if self._file is None:
            shard, inside = divmod(self.num_tokens, self._shard_tokens)
            path = shard_path(self._folder, self._name, shard)
            self._file = path.open("r+b" if inside else "wb")
            if inside:
                self._file.truncate(inside * self._dtype.itemsize)
                self._file.seek(0, os.SEEK_END)
        return self._file


class TokenReader:
    """Reads any range of one stream through memory maps, of files that may still be growing."""

    def __init__(self, folder: Path, name: str, *, dtype: str, shard_tokens: int = SHARD_TOKENS):
        self._folder, self._name = folder, name
        self._dtype, self._shard_tokens = np.dtype(dtype), shard_tokens
        self._maps: dict[int, np.memmap] = {}

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Tokens [start, stop), which must have been written: (stop - start,) int64, a copy."""
        out = np.empty(stop - start, dtype=np.int64)
        position = start
        while position < stop:
            shard, inside = divmod(position, self._shard_tokens)
            count = min(stop - position, self._shard_tokens - inside)
            out[position - start : position - start + count] = self._map(shard, inside + count)[inside : inside + count]
            position += count
        return out

    def _map(self, shard: int, length: int) -> "np.memmap":
        mapped = self._maps.get(shard)
        if mapped is None or len(mapped) < length:
            path = shard_path(self._folder, self._name, shard)
            whole = path.stat().st_size // self._dtype.itemsize  # a write under way may have left half a token
            mapped = self._maps[shard] = np.memmap(path, dtype=self._dtype, mode="r", shape=(whole,))
        return mapped


class Tokens(Protocol):
    """One stream of tokens: stored whole, or still being fetched."""

    @property
    def num_tokens(self) -> int:
        """Tokens in all, as far as the run is concerned. May wait for a stream to get there."""

    @property
    def bytes_per_token(self) -> float:
        """Bytes of UTF-8 text per token, over all of the text that was tokenised."""

    def num_available(self, wanted: int) -> int:
        """Wait until `wanted` tokens are there, or no more will come; return how many are there."""

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        """Tokens [start, stop) as int64."""


class StoredTokens:
    """A stream that is on disk as a whole."""

    def __init__(self, reader: TokenReader, *, num_tokens: int, num_bytes: int):
        self.num_tokens = num_tokens
        self.bytes_per_token = num_bytes / max(1, num_tokens)
        self._reader = reader

    def num_available(self, wanted: int) -> int:
        return self.num_tokens

    def read(self, start: int, stop: int) -> NDArray[np.int64]:
        return self._reader.read(start, stop)


class Blocks:
    """Packed sequences of `seq_len` tokens. Indexing gives (seq_len,) int64.

    tokens: the stream they are cut from.
    shuffled: `batch` visits them in a pseudo-random order that differs per epoch; False for a stream, whose
    length is not known, and which is read in its own order (again from the start, if it ends early)."""

    def __init__(self, tokens: Tokens, seq_len: int, *, shuffled: bool = True):
        self.seq_len = seq_len
        self.shuffled = shuffled
        self.tokens = tokens

    def __len__(self) -> int:
        """Whole blocks. For streamed training blocks, as many as the run asked for (fewer if the stream
        ended)."""
        return self.tokens.num_tokens // self.seq_len

    def __getitem__(self, index: int) -> NDArray[np.int64]:
        """Block `index`; waits for it if it is still being fetched. IndexError if there is none."""
        stop = (index + 1) * self.seq_len
        if index < 0 or self.tokens.num_available(stop) < stop:
            raise IndexError(f"block {index} of {len(self)}")
        return self.tokens.read(index * self.seq_len, stop)

    def num_available(self, wanted: int) -> int:
        """Wait until `wanted` blocks are there, or no more will come; return how many are there."""
        return self.tokens.num_available(wanted * self.seq_len) // self.seq_len

    @property
    def num_tokens(self) -> int:
        """Tokens in the whole blocks, end-of-text tokens included."""
        return len(self) * self.seq_len

    @property
    def num_bytes(self) -> int:
        """Bytes of UTF-8 text behind `num_tokens`: all text counted exactly, less the cut tail in proportion
        to tokens.

        Bits per byte = mean loss per token (nats) / ln 2 · num_tokens / num_bytes."""
        return round(self.num_tokens * self.tokens.bytes_per_token)
