"""How many runs and hours a comparison takes, shown before it starts.

The number of runs of a search is not known beforehand: the least is the points that were asked for and the neighbours
of the best, the most is --tune-runs. The time of a step is that of runs that are over, where there are some;
otherwise a few full-rank steps are timed. A run's start and export count as 15 seconds; validation is not in it, nor
that methods differ, nor that runs side by side slow each other down: it is an estimate, and the report has what was
measured.
"""

import math
import os
import statistics
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing import get_context, parent_process
from typing import Any, TypeVar

from switchlora.compare.plan import Contender, Plan, PlannedRun
from switchlora.machine.signals import stop_with_parent

WARM_STEPS, TIMED_STEPS = 1, 3
SECONDS_PER_RUN = 15.0  # to start and to export; seen on two CPU cores
T = TypeVar("T")


@dataclass(frozen=True)
class Budget:
    """Steps that are left, of how many runs, if every search ends where it begins and at the most; seconds per step."""

    least_runs: int
    most_runs: int
    least_steps: float
    most_steps: float
    step_seconds: float
    jobs: int

    @property
    def hours(self) -> tuple[float, float]:
        """At the least and at the most."""
        left = ((self.least_steps, self.least_runs), (self.most_steps, self.most_runs))
        seconds = [steps * self.step_seconds + runs * SECONDS_PER_RUN for steps, runs in left]
        return seconds[0] / self.jobs / 3600, seconds[1] / self.jobs / 3600

    def __str__(self) -> str:
        runs = f"{self.least_runs}"
        if self.most_runs > self.least_runs:
            runs = f"{runs} to {self.most_runs}"
        pace = f"{self.jobs} side by side ({self.step_seconds:.3g} s a step)"
        return f"budget: {runs} runs left, about {self.time_left} with {pace}"

    @property
    def time_left(self) -> str:
        """For people: 12 minutes, or 1.5 to 3.2 hours."""
        unit, factor = ("hours", 1) if self.hours[1] >= 1 else ("minutes", 60)
        times = [time * factor for time in self.hours]
        shown = [f"{time:.1f}" if factor == 1 and time < 10 else f"{math.ceil(time):,}" for time in times]
        return f"{' to '.join(dict.fromkeys(shown))} {unit}"


def budget(
    plan: Plan, losses: Mapping[str, float], jobs: int, step_seconds: float, steps_under_way: float = 0
) -> Budget:
    """What is left to do. steps_under_way: of those, how many were done in runs that are not over."""
    searched = list(dict.fromkeys(map(plan.tuned_like, plan.contenders))) if plan.options.tune else []
    least, most = (sum(_left(plan, one, losses, worst) for one in searched) for worst in (False, True))
    finals = sum(_finals_left(plan, contender, losses) for contender in plan.contenders)
    return Budget(
        least + finals,
        most + finals,
        least * plan.tune_steps + finals * plan.steps - steps_under_way,
        most * plan.tune_steps + finals * plan.steps - steps_under_way,
        step_seconds,
        jobs,
    )


def measured_pace(records: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Seconds per optimizer step: the median of the runs that are over, if there are any."""
    measured = [record["step_seconds"] for record in records.values() if record["step_seconds"]]
    return float(statistics.median(measured)) if measured else None


def timed_pace(run: PlannedRun, threads: int | None) -> float:
    """The same of a few steps now, in a process of their own."""
    return apart(timed, run.options().to_dict(), threads)


def apart(function: Callable[..., T], *arguments: Any) -> T:
    """What a function returns in a process of its own, which ends with this one, however this one does."""
    with ProcessPoolExecutor(1, mp_context=get_context("spawn"), initializer=_end_with_parent) as pool:
        return pool.submit(function, *arguments).result()


def _end_with_parent() -> None:
    stop_with_parent()
    parent = parent_process()
    if parent is None or not parent.is_alive():  # it ended before we asked to be told
        os._exit(1)


def timed(options: dict[str, Any], threads: int | None) -> float:
    """Seconds of a full-rank step on random tokens; run it in a process of its own."""
    import torch

    from switchlora.machine import devices
    from switchlora.machine.cpu_products import write_out_attention
    from switchlora.training.models import build_model
    from switchlora.training.options import PretrainOptions

    given = PretrainOptions.merge(options)
    assert given.batch_size is not None and given.seq_len is not None
    device = devices.prepare(given.device, given.threads or threads, given.cpu_products)
    model = build_model(given.model, seed=0, seq_len=given.seq_len).to(device)
    write_out_attention(model)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    rows = torch.randint(0, 256, (given.batch_size, given.seq_len), device=device)
    laps = []
    for _ in range(WARM_STEPS + TIMED_STEPS):
        started = time.monotonic()
        for part in rows.split(given.micro_batch_size or given.batch_size):  # type: ignore[no-untyped-call]
            with devices.autocast_for(given.dtype, device):
                loss = model(input_ids=part, labels=part).loss
            loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        float(loss.detach())
        laps.append(time.monotonic() - started)
    return statistics.median(laps[WARM_STEPS:])


def _left(plan: Plan, contender: Contender, losses: Mapping[str, float], worst: bool) -> int:
    state = plan.search_of(contender, losses)
    if state.done:
        return 0
    done, grid = len(plan.sweep_runs(contender, losses)), contender.grid
    least = len(grid.asked_for()) + len(grid.neighbours((0, 0)))
    return max(grid.max_runs if worst else min(least, grid.max_runs), done + len(state.missing)) - done


def _finals_left(plan: Plan, contender: Contender, losses: Mapping[str, float]) -> int:
    known = plan.final_runs(contender, losses)
    if known:
        return sum(run.id not in losses for run in known)
    return len(plan.options.seeds)
