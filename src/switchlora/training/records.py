"""What a run leaves of each step: a row of metrics.jsonl, the progress bar, a tracker; by the first process alone."""

import contextlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from switchlora.training.folder import RunFolder
from switchlora.training.metrics import MetricsLog, Progress
from switchlora.training.tracking import make_tracker

if TYPE_CHECKING:
    from switchlora.training.run import Run
    from switchlora.training.tracking import Tracker


@dataclass
class Records:
    """All three, open."""

    metrics: MetricsLog
    progress: Progress
    tracker: "Tracker"

    def add(self, row: Mapping[str, Any]) -> None:
        """The row of the next step."""
        self.metrics.append(row)
        self.tracker.log(row["step"], row)
        self.progress.update(row)

    def sync(self) -> None:
        """Before a checkpoint that counts on the rows."""
        self.metrics.sync()


class NoRecords(Records):
    """Of the other processes, which write nothing."""

    def __init__(self) -> None:
        pass

    def add(self, row: Mapping[str, Any]) -> None:
        """Nothing."""

    def sync(self) -> None:
        """Nothing."""


@contextlib.contextmanager
def records_of(run: "Run", folder: RunFolder) -> Iterator[Records]:
    """The records of a run that goes on from its step."""
    if not run.processes.is_first:
        yield NoRecords()
        return
    options = run.options
    assert options.steps is not None
    with (
        MetricsLog(folder.metrics, resume_step=run.step) as metrics,
        Progress(total=options.steps, initial=run.step) as progress,
        make_tracker(options.track, folder.path, options.to_dict(), resume_step=run.step) as tracker,
    ):
        yield Records(metrics, progress, tracker)
