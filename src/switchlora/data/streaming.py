"""A hub data set, fetched while training runs.

C4 has 156 billion tokens; a run needs some of them, in the order in which they come. A background thread
reads the stream, tokenises, and appends to shards in the cache; training starts as soon as its first block is
there, and waits only when it is faster than the network. After every batch the shards are synced and then
`progress.json` is replaced: it is the truth about how many tokens count, and holds the data set's own
position, so an interrupted fetch, or a later run that needs more, goes on where it was. Where the data set
has no position to restore, rows are skipped by count.

Validation is the same for runs of any length: the first VALID_TOKENS tokens whose documents hash to
validation. Their number is known only when they are there, so asking for it waits; asking for training blocks
does not.

One process fetches at a time (a lock decides); others, such as the ranks of one machine, read its progress.
"""

import atexit
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

from switchlora.data.cache import locked, read_json, write_json, writing
from switchlora.data.files import Part
from switchlora.data.packing import BATCH_CHARS, LOG_SECONDS, STREAMS, PieceEncoder, in_batches
from switchlora.data.sources import HubSource, enumerate_rows
from switchlora.data.split import Piece, Split
from switchlora.data.store import SHARD_TOKENS, TokenReader, TokenWriter, shard_path, token_dtype
from switchlora.data.tokenizer import num_ids
from switchlora.errors import UserError

if TYPE_CHECKING:
    import numpy as np
    from transformers import PreTrainedTokenizerBase

PROGRESS = "progress.json"
VALID_TOKENS = 1 << 18
POLL_SECONDS = 0.2


@dataclass(frozen=True)
class Progress:
    """How far the fetch is. position: the data set's own state_dict, if it has one that JSON can hold."""

    num_tokens: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STREAMS, 0))
    num_bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STREAMS, 0))
    num_rows: int = 0
    position: dict[str, Any] | None = None
    ended: bool = False


class Fetcher:
    """Keeps the shards in `folder` ahead of what is asked for."""

    def __init__(
        self,
        folder: Path,
        source: HubSource,
        split: Split,
        tokenizer: "PreTrainedTokenizerBase",
        *,
        num_train_tokens: int,
        num_valid_tokens: int,
        log: Callable[[str], None],
        shard_tokens: int = SHARD_TOKENS,
        batch_chars: int = BATCH_CHARS,
    ):
        self.folder, self.source, self.split = folder, source, split
        self.dtype, self.shard_tokens = token_dtype(num_ids(tokenizer)), shard_tokens
        self.num_valid_tokens = num_valid_tokens
        self._goal = num_train_tokens
        self._tokenizer, self._log, self._batch_chars = tokenizer, log, batch_chars
        self._progress = self._read_progress()
        self._error: UserError | None = None
        self._changed = threading.Condition()
        self._stopped = False
        self._thread = threading.Thread(target=self._run, name="switchlora-fetch", daemon=True)
        atexit.register(self.close)
        self._thread.start()

    def wait_for(self, name: str, num_tokens: int) -> Progress:
        """Return when stream `name` has that many tokens, or will get no more. Raises what stopped the
        fetch."""
        with self._changed:
            if name == "train" and num_tokens > self._goal:
                self._goal = num_tokens
                self._changed.notify_all()
            while self._progress.num_tokens[name] < num_tokens and not self._progress.ended:
                if self._error is not None:
                    raise self._error
                if self._stopped:
                    raise RuntimeError("the corpus was closed while blocks were still being asked for")
                self._changed.wait()
            return self._progress

    def close(self) -> None:
        """Stop after the batch in hand. What was fetched stays."""
        with self._changed:
            self._stopped = True
            self._changed.notify_all()
        self._thread.join(timeout=10)
        atexit.unregister(self.close)

    def _satisfied(self) -> bool:
        done = self._progress
        return done.ended or (
            done.num_tokens["train"] >= self._goal and done.num_tokens["valid"] >= self.num_valid_tokens
        )

    def _run(self) -> None:
        try:
            while True:
                with self._changed:
                    self._changed.wait_for(lambda: self._stopped or not self._satisfied())
                    if self._stopped:
                        return
                with (
                    writing(self.folder),
                    locked(self.folder.with_name(f"{self.folder.name}.lock"), wait=False) as ours,
                ):
                    self._set(self._read_progress())
                    if ours:
                        self._fetch()
                time.sleep(0 if ours else POLL_SECONDS)
        except UserError as error:
            self._fail(error)
        except Exception as error:  # must reach the thread that waits, or it would wait for ever
            self._fail(UserError(f"--data {self.source.label}: fetching failed ({type(error).__name__}: {error})"))

    def _fail(self, error: UserError) -> None:
        with self._changed:
            self._error = error
            self._changed.notify_all()

    def _set(self, progress: Progress) -> None:
        with self._changed:
            self._progress = progress
            self._changed.notify_all()

    def _fetch(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        encoder = PieceEncoder(self._tokenizer)
        start = self._progress
        last_logged = time.monotonic()
        with self._writer("train") as train, self._writer("valid") as valid:
            writers = {"train": train, "valid": valid}
            for batch, rows_read, position in self._batches(start):
                done = replace(self._progress, num_rows=rows_read, position=position, num_tokens={}, num_bytes={})
                for name, encoded in encoder.encode(batch).items():
                    room = self.num_valid_tokens if name == "valid" else None
                    wanted = room is None or writers[name].num_tokens < room
                    if wanted:  # validation text beyond the set is dropped: it must not train
                        writers[name].append(encoded.tokens)
                        writers[name].sync()
                    done.num_tokens[name] = writers[name].num_tokens
                    done.num_bytes[name] = self._progress.num_bytes[name] + wanted * encoded.num_bytes
                self._commit(done)
                if time.monotonic() - last_logged > LOG_SECONDS:
                    last_logged = time.monotonic()
                    there, goal = done.num_tokens["train"] / 1e6, self._goal / 1e6
                    self._log(f"fetched {there:.1f}M of {goal:.1f}M training tokens")
                if self._stopped or self._satisfied():
                    return
        self._commit(replace(self._progress, ended=True))

    def _commit(self, progress: Progress) -> None:
        write_json(self.folder / PROGRESS, {**asdict(progress), "shard_tokens": self.shard_tokens})
        self._set(progress)

    def _writer(self, name: str) -> TokenWriter:
        written = self._progress.num_tokens[name]
        return TokenWriter(self.folder, name, dtype=self.dtype, num_tokens=written, shard_tokens=self.shard_tokens)

    def _batches(self, start: Progress) -> Iterator[tuple[list[Piece], int, dict[str, Any] | None]]:
        """Batches of pieces, each with the number of rows read so far and the position of the data set behind
        them."""
        rows = self.source.open()
        if start.position is not None:
            rows.load_state_dict(start.position)
        elif start.num_rows:
            rows = rows.skip(start.num_rows)
        num_rows = start.num_rows

        def documents() -> Iterator[Part]:
            nonlocal num_rows
            for part, num_rows in enumerate_rows(self.source, rows, first=start.num_rows):  # noqa: B007
                if part.text:
                    yield part

        for parts in in_batches(documents(), self._batch_chars):  # whole rows: a position lies between two rows
            yield list(self.split.pieces(iter(parts))), num_rows, _position(rows)

    def _read_progress(self) -> Progress:
        """What is on disk; nothing, if it is damaged or its shards are shorter than it says."""
        found = read_json(self.folder / PROGRESS)
        if found is None or found.pop("shard_tokens", None) != self.shard_tokens:
            return Progress()
        try:
            progress = Progress(**found)
            whole = all(self._has(name, progress.num_tokens[name]) for name in STREAMS)
        except (TypeError, KeyError):
            return Progress()
        return progress if whole else Progress()

    def _has(self, name: str, num_tokens: int) -> bool:
        item_bytes = int(self.dtype[-1])
        for shard in range(-(-num_tokens // self.shard_tokens)):
            needed = min(self.shard_tokens, num_tokens - shard * self.shard_tokens) * item_bytes
            path = shard_path(self.folder, name, shard)
            if not path.is_file() or path.stat().st_size < needed:
                return False
        return True


def _position(rows: Any) -> dict[str, Any] | None:
    """The state of the data set, if it has one that survives JSON unchanged; else rows are counted."""
    import json

    try:
        state = rows.state_dict()
        return state if json.loads(json.dumps(state)) == state else None
    except (AttributeError, NotImplementedError, TypeError, ValueError):
        return None


class StreamedTokens:
    """One stream of a Fetcher, as `Tokens`."""

    def __init__(self, fetcher: Fetcher, name: str, *, num_wanted: int):
        self._fetcher, self._name, self._num_wanted = fetcher, name, num_wanted
        self._reader = TokenReader(fetcher.folder, name, dtype=fetcher.dtype, shard_tokens=fetcher.shard_tokens)

    @property
    def num_tokens(self) -> int:
        """Validation: waits until the set is whole. Training: what the run asked for, or all there is if
        less."""
        waited = self._num_wanted if self._name == "valid" else 0
        progress = self._fetcher.wait_for(self._name, waited)
        there = progress.num_tokens[self._name]
        return min(there, self._num_wanted) if progress.ended or waited else self._num_wanted

    @property
    def bytes_per_token(self) -> float:
        progress = self._fetcher.wait_for(self._name, 1)
        return progress.num_bytes[self._name] / max(1, progress.num_tokens[self._name])

    def num_available(self, wanted: int) -> int:
        wanted = wanted if self._name == "train" else min(wanted, self._num_wanted)
        there = self._fetcher.wait_for(self._name, wanted).num_tokens[self._name]
        return there if self._name == "train" else min(there, self._num_wanted)

    def read(self, start: int, stop: int) -> "NDArray[np.int64]":
        return self._reader.read(start, stop)
