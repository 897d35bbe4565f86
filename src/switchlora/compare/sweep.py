"""Two learning rates by a small search: points of a grid, then the winner's neighbours until none of them wins.

A point is a pair of whole numbers, places in two lists of rates that go on beyond their ends by a constant factor. The
points that were asked for are tried first. Then the four neighbours of the best are, then those of the new best, and so
on: the search ends when the winner's neighbours have all been tried and lost. It climbs down one axis at a time, so a
valley that runs diagonally is followed in steps; what it ends at is a best point among its neighbours, no more.
"""

import itertools
import math
from collections.abc import Mapping
from dataclasses import dataclass

Point = tuple[int, int]


@dataclass(frozen=True)
class Grid:
    """Rates in ascending order for the hidden matrices and for the rest; `others` None: tied to the first.

    factor: between neighbours beyond the ends; max_runs: the search stops there.
    """

    lrs: tuple[float, ...]
    others: tuple[float, ...] | None
    factor: float
    max_runs: int

    def rates(self, point: Point) -> tuple[float, float]:
        """(lr, other_lr), to three digits."""
        lr = _rate(self.lrs, point[0], self.factor)
        return (lr, lr) if self.others is None else (lr, _rate(self.others, point[1], self.factor))

    def asked_for(self) -> list[Point]:
        """The points of the lists themselves."""
        return list(itertools.product(range(len(self.lrs)), range(len(self.others) if self.others else 1)))

    def neighbours(self, point: Point) -> list[Point]:
        """One step up or down, in either rate."""
        i, j = point
        return [(i - 1, j), (i + 1, j)] + ([] if self.others is None else [(i, j - 1), (i, j + 1)])


@dataclass(frozen=True)
class State:
    """How far a search is: what to try next, the best so far, and whether its neighbours have all lost."""

    missing: list[Point]
    best: Point | None
    confirmed: bool

    @property
    def done(self) -> bool:
        """Whether nothing is left to try, confirmed or not."""
        return not self.missing and self.best is not None


def search(grid: Grid, losses: Mapping[Point, float]) -> State:
    """The state after what has been tried; a run that diverged has the loss infinity.

    It goes round by round, and looks for the best only when a round is over: which of several runs side by side ends
    first must not matter.
    """
    known = {point: loss for point, loss in losses.items() if not math.isnan(loss)}
    tried: dict[Point, float] = {}
    batch = grid.asked_for()
    while True:
        tried |= {point: known[point] for point in batch if point in known}
        best = min(tried, key=lambda point: (tried[point], point), default=None)
        missing = [point for point in batch if point not in known]
        if missing or best is None:
            return State(missing, best, confirmed=False)
        around = [point for point in grid.neighbours(best) if point not in tried]
        batch = around[: max(0, grid.max_runs - len(tried))]
        if not batch:
            return State([], best, confirmed=not around)


def _rate(rates: tuple[float, ...], place: int, factor: float) -> float:
    if place < 0:
        value = rates[0] * factor**place
    elif place >= len(rates):
        value = rates[-1] * factor ** (place - len(rates) + 1)
    else:
        return rates[place]
    return float(f"{value:.3g}")
