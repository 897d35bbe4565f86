"""What a run leaves of each step: a row of metrics.jsonl, the progress bar, a tracker; by the first process alone."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from switchlora.errors import UserError
from switchlora.training.folder import RunFolder
from switchlora.training.metrics import MetricsLog, Progress
from switchlora.training.tracking import make_tracker

if TYPE_CHECKING:
    from switchlora.training.run import Run
    from switchlora.training.tracking import Tracker


@dataclass
class Kept:
    """All three, open."""

    metrics: MetricsLog
    progress: Progress
    tracker: "Tracker"


class Records:
    """Of a run; only the first process has any. A disk that refuses is remembered until all processes know."""

    def __init__(self, kept: Kept | None) -> None:
        self._kept = kept
        self._failure: UserError | None = None

    @property
    def has_failed(self) -> bool:
        """Whether a row is not on disk."""
        return self._failure is not None

    def add(self, row: Mapping[str, Any]) -> None:
        """The row of the next step."""
        if self._kept is None:
            return
        try:
            self._kept.metrics.append(row)
        except UserError as error:
            self._failure = error
            return
        self._kept.tracker.log(row["step"], row)
        self._kept.progress.update(row)

    def require_kept(self) -> None:
        """Raise what the disk said.

        Raises:
            UserError: see `MetricsLog.append`.
        """
        if self._failure is not None:
            raise self._failure

    def sync(self) -> None:
        """Before a checkpoint that counts on the rows."""
        if self._kept is not None:
            self._kept.metrics.sync()


@contextlib.contextmanager
def records_of(run: "Run", folder: RunFolder) -> Iterator[Records]:
    """The records of a run that goes on from its step; what the first process cannot open, all of them end for."""
    kept: list[Kept] = []
    with contextlib.ExitStack() as held:
        run.processes.on_first(lambda: kept.append(_opened(run, folder, held)))
        yield Records(kept[0] if kept else None)


def _opened(run: "Run", folder: RunFolder, held: contextlib.ExitStack) -> Kept:
    options = run.options
    assert options.steps is not None
    return Kept(
        held.enter_context(MetricsLog(folder.metrics, resume_step=run.step)),
        held.enter_context(Progress(total=options.steps, initial=run.step)),
        held.enter_context(make_tracker(options.track, folder.path, options.to_dict(), resume_step=run.step)),
    )
