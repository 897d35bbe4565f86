"""From what is compared to the runs that it takes, and which of them can be started now.

Everything here is a function of the options and of the losses of finished runs, so that a comparison which goes on
after an interruption does what it would have done undisturbed.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from switchlora.compare.options import TIED, CompareOptions, pretrain_options, ranks_of, rates_of
from switchlora.compare.sweep import Grid, Point, State, search
from switchlora.errors import UserError
from switchlora.methods import method_named
from switchlora.options.values import show
from switchlora.training.options import PretrainOptions
from switchlora.training.resolve import resolve


def _resolved(label: str, options: PretrainOptions) -> PretrainOptions:
    try:
        return resolve(options)
    except UserError as error:
        raise UserError(f"--methods {show(label)}: {error}") from None


@dataclass(frozen=True, eq=False)
class Contender:
    """One line of the table: a label at a rank. `settings`: of its runs, but for what a run adds."""

    label: str
    r: int | None
    settings: Mapping[str, Any]
    grid: Grid

    @property
    def name(self) -> str:
        """For people: switchlora r=32."""
        return self.label if self.r is None else f"{self.label} r={self.r}"


@dataclass(frozen=True, eq=False)
class PlannedRun:
    """One run: a contender with rates, a seed and a length."""

    contender: Contender
    lr: float
    other_lr: float
    seed: int
    steps: int

    @cached_property
    def id(self) -> str:
        """The name of its files, the same every time."""
        rank = "" if self.contender.r is None else f"-r{self.contender.r}"
        rates = f"lr{self.lr:g}-other{self.other_lr:g}"
        return f"{self.contender.label.replace(' ', '-')}{rank}-{rates}-seed{self.seed}-{self.steps}steps"

    def options(self) -> PretrainOptions:
        """Its options, resolved, but for the output folder."""
        own = {"lr": self.lr, "other_lr": self.other_lr, "seed": self.seed, "steps": self.steps}
        if self.contender.r is not None:
            own["r"] = self.contender.r
        return _resolved(
            self.contender.label, pretrain_options(self.contender.label, {**self.contender.settings, **own})
        )


@dataclass(frozen=True)
class Plan:
    """All contenders, and what is to be done with them.

    steps: of the runs that count; tune_steps: of the others.
    """

    options: CompareOptions
    contenders: tuple[Contender, ...]
    steps: int
    tune_steps: int

    def first_run(self, contender: Contender) -> PlannedRun:
        """One that counts, at the first rates that were asked for, as an example of all of them."""
        return PlannedRun(contender, *contender.grid.rates((0, 0)), self.options.seeds[0], self.steps)

    def search_of(self, contender: Contender, losses: Mapping[str, float]) -> State:
        """How far the search for its rates is. Without a search, the state of one that is done."""
        found: dict[Point, float] = {}
        for point, run in self._sweep_points(contender, losses):
            found[point] = losses.get(run.id, math.nan)
        return search(contender.grid, found)

    def sweep_runs(self, contender: Contender, losses: Mapping[str, float]) -> list[PlannedRun]:
        """The finished runs of its search."""
        return [run for _, run in self._sweep_points(contender, losses)]

    def tuned_like(self, contender: Contender) -> Contender:
        """Whose search gives the rates: its own, or that of its label at --tune-rank."""
        wanted = self.options.tune_rank
        same = [c for c in self.contenders if c.label == contender.label and c.r == wanted]
        return same[0] if wanted is not None and contender.r is not None and same else contender

    def winners(self, contender: Contender, losses: Mapping[str, float]) -> list[tuple[float, float]]:
        """(lr, other_lr) of the runs that count; none while the search goes on."""
        if not self.options.tune:
            return [contender.grid.rates(point) for point in contender.grid.asked_for()]
        state = self.search_of(self.tuned_like(contender), losses)
        return [contender.grid.rates(state.best)] if state.done and state.best is not None else []

    def final_runs(self, contender: Contender, losses: Mapping[str, float]) -> list[PlannedRun]:
        """Its runs that count, finished or not, as far as its rates are known."""
        rates = self.winners(contender, losses)
        return [PlannedRun(contender, *pair, seed, self.steps) for seed in self.options.seeds for pair in rates]

    def ready(self, losses: Mapping[str, float]) -> list[PlannedRun]:
        """Runs that can be started now, those to be started first in front.

        Searches come first, the ones with the least done in front; then seed by seed, so that an interrupted comparison
        has the same seeds of everything.
        """
        waiting: list[tuple[tuple[int, int], PlannedRun]] = []
        if self.options.tune:
            for contender in dict.fromkeys(map(self.tuned_like, self.contenders)):
                done = len(self.sweep_runs(contender, losses))
                for number, point in enumerate(self.search_of(contender, losses).missing):
                    waiting.append(((-1, done + number), self.sweep_run(contender, point)))
        for contender in self.contenders:
            for run in self.final_runs(contender, losses):
                waiting.append(((self.options.seeds.index(run.seed), 0), run))
        ordered = [run for _, run in sorted(waiting, key=lambda item: item[0])]
        return list({run.id: run for run in ordered if run.id not in losses}.values())

    def sweep_run(self, contender: Contender, point: Point) -> PlannedRun:
        """The run of a search at one of its points."""
        return PlannedRun(contender, *contender.grid.rates(point), self.options.tune_seed, self.tune_steps)

    def _sweep_points(self, contender: Contender, losses: Mapping[str, float]) -> list[tuple[Point, PlannedRun]]:
        """The finished points of a search, found by walking it from its start."""
        found: dict[Point, PlannedRun] = {}
        waiting = contender.grid.asked_for()
        seen = set(waiting)
        while waiting:
            point = waiting.pop(0)
            run = self.sweep_run(contender, point)
            if run.id in losses:
                found[point] = run
                fresh = [other for other in contender.grid.neighbours(point) if other not in seen]
                seen.update(fresh)
                waiting += fresh
        return list(found.items())


def make_plan(options: CompareOptions) -> Plan:
    """The plan of checked options; every run's options are made once, so that mistakes show now.

    Raises:
        UserError: an option of a run that is unknown or refused, with its label.
    """
    steps = _shared(options).steps
    assert steps is not None
    contenders = []
    for label, own in options.methods.items():
        settings = {**options.pretrain, **own}
        ranks = ranks_of(label, settings.pop("r", options.ranks))
        lr, other = settings.pop("lr", None), settings.pop("other_lr", None)
        lr = method_named(own["method"]).lr if lr is None else lr
        lrs = rates_of(label, "lr", lr)
        others = None if other == TIED else rates_of(label, "other_lr", lr if other is None else other)
        grid = Grid(lrs, others, options.tune_factor, options.tune_runs)
        if options.tune and len(grid.asked_for()) > options.tune_runs:
            raise UserError(
                f"--methods {show(label)}: lr and other_lr make {len(grid.asked_for())} pairs, and --tune-runs is "
                f"{options.tune_runs}; give fewer rates, or more runs"
            )
        has_rank = "r" in method_named(own["method"]).uses
        for r in ranks if has_rank else (None,):
            checked = pretrain_options(label, {**settings, "method": own["method"], **({} if r is None else {"r": r})})
            contenders.append(Contender(label, _resolved(label, checked).r if has_rank else None, settings, grid))
    _check(options, contenders)
    plan = Plan(options, tuple(contenders), steps, options.tune_steps or steps)
    for contender in contenders:
        plan.first_run(contender).options()
        if options.tune:
            _check_search_run(plan.sweep_run(contender, (0, 0)))
    return plan


def _shared(options: CompareOptions) -> PretrainOptions:
    """What all runs share, so that a mistake there is not blamed on a method."""
    try:
        return resolve(PretrainOptions.merge(options.pretrain))
    except UserError as error:
        raise UserError(f"--pretrain: {error}") from None


def _check_search_run(run: PlannedRun) -> None:
    """Runs that look for learning rates may be too short for options that the others bear."""
    try:
        run.options()
    except UserError as error:
        raise UserError(f"--tune-steps {run.steps}: {error}") from None


def _check(options: CompareOptions, contenders: list[Contender]) -> None:
    """That no two have one name of files, and that --tune-rank is a rank of all that have any."""
    names: dict[str, str] = {}
    for contender in contenders:
        id = PlannedRun(contender, 1.0, 1.0, 0, 1).id
        if id in names:
            raise UserError(
                f"--methods: {show(names[id])} and {show(contender.name)} would write the same files; "
                "rename one of them"
            )
        names[id] = contender.name
    wanted = options.tune_rank
    for label in dict.fromkeys(contender.label for contender in contenders):
        ranks = [c.r for c in contenders if c.label == label and c.r is not None]
        if wanted is not None and ranks and wanted not in ranks:
            raise UserError(
                f"--tune-rank {wanted}: {show(label)} runs at {', '.join(map(str, ranks))} only; "
                "give one of these to both"
            )
