"""What a run says of each step: a line of metrics.jsonl, always, and a progress bar.

metrics.jsonl is the record from which curves are drawn, so it must hold each step once, in order, whatever happened
to the run. Row t is written when t steps are done, before the checkpoint of step t. A run that goes on from the
checkpoint of step S therefore keeps the rows with step <= S and drops all others, which it will write again, along
with a last line that was cut off. Rows are flushed one by one: a killed run loses none, and `sync` before a
checkpoint makes sure that neither does a machine without power.
"""

import contextlib
import json
import os
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from types import TracebackType
from typing import IO, TYPE_CHECKING, Any, Self

from switchlora.machine.console import print_warning
from switchlora.machine.files import atomic_write_text, spelled, writing

if TYPE_CHECKING:
    from tqdm import tqdm

SECONDS_BETWEEN_LINES = 5.0


class MetricsLog:
    """metrics.jsonl, open for appending; use as a context manager.

    Opening for a run at `resume_step` (steps done) drops rows of steps that will be done again, in one atomic
    replacement; 0 therefore starts an empty record.
    """

    def __init__(self, path: Path, *, resume_step: int = 0, warn: Callable[[str], None] = print_warning) -> None:
        self.path = Path(path)
        self._last_step = resume_step
        with writing(self.path.name, self.path.parent):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            before = self.path.read_bytes() if self.path.exists() else b""
            kept = _rows_to_keep(before, resume_step, lambda what: warn(f"{self.path}: {what}"))
            if kept != before:
                atomic_write_text(self.path, kept.decode("utf-8"))
            self._handle = self.path.open("a", encoding="utf-8")

    def append(self, row: Mapping[str, Any]) -> None:
        """Write the row of the next step. Numbers may be those of numpy or torch; NaN becomes null.

        Raises:
            UserError: no space left.
        """
        step = row["step"]
        assert step > self._last_step, f"step {step} after step {self._last_step}"
        line = json.dumps(spelled({key: _plain(value) for key, value in row.items()}), allow_nan=False)
        with writing(self.path.name, self.path.parent):
            self._handle.write(line + "\n")
            self._handle.flush()
        self._last_step = step

    def sync(self) -> None:
        """Make all rows survive a loss of power; to be called before the checkpoint that counts on them."""
        with writing(self.path.name, self.path.parent):
            os.fsync(self._handle.fileno())

    def close(self) -> None:
        """Close the file; nothing is lost without it, so what a full disk says once more is not heard."""
        with contextlib.suppress(OSError):
            self._handle.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """All whole rows, by step; none if there is no file."""
    content = Path(path).read_bytes() if Path(path).exists() else b""
    return [row for row in map(_parse, content.splitlines()) if row is not None]


def _rows_to_keep(content: bytes, step: int, warn: Callable[[str], None]) -> bytes:
    kept: list[bytes] = []
    num_damaged = 0
    *lines, _cut_off = content.split(b"\n")  # what follows the last line break is half a row
    for line in lines:
        row = _parse(line)
        num_damaged += row is None
        if row is not None and row["step"] <= step:
            kept.append(line + b"\n")
    if num_damaged:
        warn(f"{num_damaged} of {len(lines)} lines are damaged and were dropped")
    return b"".join(kept)


def _parse(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except ValueError:
        return None
    return row if isinstance(row, dict) and isinstance(row.get("step"), int) else None


def _plain(value: Any) -> Any:
    return value.item() if hasattr(value, "item") else value


class Progress:
    """The bar on stderr while a run trains; a line every few seconds where that is no terminal.

    total, initial: optimizer steps, of the run and done before. What is shown comes from the rows of metrics.jsonl;
    keys that a method does not have are left out.
    """

    def __init__(
        self,
        *,
        total: int,
        initial: int = 0,
        stream: IO[str] | None = None,
        seconds_between_lines: float = SECONDS_BETWEEN_LINES,
    ) -> None:
        self.total, self.initial = total, initial
        self.stream = stream if stream is not None else sys.stderr
        self.seconds_between_lines = seconds_between_lines
        self._started = time.monotonic()
        self._last_line = self._started
        self._bar: tqdm[Any] | None = None

    def __enter__(self) -> Self:
        if self.stream.isatty():
            from tqdm import tqdm

            self._bar = tqdm(
                total=self.total,
                initial=self.initial,
                file=self.stream,
                dynamic_ncols=True,
                unit="step",
            )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def update(self, row: Mapping[str, Any]) -> None:
        """Show the state after step `row['step']`."""
        if self._bar is not None:
            self._bar.set_postfix_str(summary(row), refresh=False)
            self._bar.update(row["step"] - self._bar.n)
            return
        now = time.monotonic()
        if now - self._last_line < self.seconds_between_lines and row["step"] < self.total:
            return
        self._last_line = now
        num_done = max(1, row["step"] - self.initial)
        left_seconds = (self.total - row["step"]) * (now - self._started) / num_done
        line = f"step {row['step']}/{self.total}, {summary(row)}, ETA {clock(left_seconds)}"
        print(line, file=self.stream, flush=True)


def summary(row: Mapping[str, Any]) -> str:
    """A row for people: loss, learning rate, gradient norm, tokens per second, switched vectors, peak memory."""
    forms: dict[str, Callable[[float], str]] = {
        "loss": lambda value: f"loss {value:.4f}",
        "validation_loss": lambda value: f"validation {value:.4f}",
        "lr": lambda value: f"lr {value:.2e}",
        "grad_norm": lambda value: f"grad norm {value:.2f}",
        "tokens_per_second": lambda value: f"{with_unit(value, 1000, ('', 'k', 'M', 'G'))} tok/s",
        "switches_done_total": lambda value: f"switched {value:,.0f}",
        "peak_memory_bytes": lambda value: f"peak {with_unit(value, 1024, (' B', ' KiB', ' MiB', ' GiB'))}",
    }
    return ", ".join(form(row[key]) for key, form in forms.items() if row.get(key) is not None)


def with_unit(value: float, base: int, units: tuple[str, ...]) -> str:
    """`value` in the largest of `units` (each `base` times the one before) in which it is at least 1."""
    power = 0
    while abs(value) >= base and power + 1 < len(units):
        value /= base
        power += 1
    return f"{value:.3g}{units[power]}" if value < 100 else f"{value:.0f}{units[power]}"


def clock(seconds: float) -> str:
    """hours:minutes:seconds."""
    whole = round(seconds)
    return f"{whole // 3600}:{whole // 60 % 60:02d}:{whole % 60:02d}"
