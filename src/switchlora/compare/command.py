"""`switchlora compare` from options to a report: plan, budget, runs side by side, one record each, one page."""

import contextlib
import os
import shutil
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from switchlora.compare import processes, reading, results
from switchlora.compare.budget import budget, measured_pace, timed_pace
from switchlora.compare.checks import check_data, check_folder, check_runs
from switchlora.compare.options import CompareOptions
from switchlora.compare.plan import Plan, PlannedRun, make_plan
from switchlora.compare.processes import Running
from switchlora.errors import Preempted, UserError
from switchlora.machine import devices, signals
from switchlora.machine.console import say
from switchlora.machine.files import alone_in, atomic_write_bytes, atomic_write_json, require_writable, writing

POLL_SECONDS, SECONDS_BETWEEN_LINES = 0.5, 60.0


def compare(options: CompareOptions) -> dict[str, dict[str, Any]]:
    """Run `switchlora compare`; see docs/compare.md.

    Returns:
        the records of all runs that are over, by id.

    Raises:
        UserError: bad options, a folder of another comparison, a package that is missing, or a run that failed.
        Preempted, KeyboardInterrupt: SIGTERM or Ctrl-C; every run wrote a checkpoint first.
    """
    from switchlora.report.compare_page import require_packages

    require_packages()
    if options.finetuned is not None:
        return {"finetuned": _finetuned(options.finetuned, options.output)}
    plan = make_plan(options)
    output = Path(options.output).expanduser()
    check_folder(output, only_shown=options.hours == 0)
    team = Team.of(options, plan)
    records = known_records(plan, output)
    losses = {id: results.loss_of(record) for id, record in records.items()}
    say(f"{len(records)} runs are there in {output}")
    pace = measured_pace(records) or 0.0
    if options.hours != 0:
        check_runs(plan)
        require_writable(output)
        if team.jobs > team.at_once:
            say(f"--jobs {team.jobs}: more runs than CPU cores for them; {team.at_once} side by side are as fast")
        pace = pace or timed_pace(plan.first_run(plan.contenders[0]), team.threads)
        say(str(budget(plan, losses, team.at_once, pace)))
    if options.dry_run:
        return records
    with writing("the comparison", output):
        output.mkdir(parents=True, exist_ok=True)
    with alone_in(output):
        try:
            if options.hours != 0 and plan.ready(losses):
                check_data(plan, records, output, say)
            work(plan, output, records, team, pace)
        finally:
            if records:
                write_report(plan, output, records)
            else:
                others = len(list((output / "results").glob("*.json")))
                why = f"none of the {others} results there is of these methods, ranks, rates and seeds"
                say(f"{why if others else 'no run is over yet'}, so there is no report")
    return records


def _finetuned(names: Sequence[str], folder: str) -> dict[str, Any]:
    from switchlora.compare.finetuned import JSON, side_by_side, table
    from switchlora.trained.output import output_folder

    output = output_folder(folder, JSON, overwrite=True)
    found = side_by_side(names)
    say(table(found))
    with writing("the comparison", output):
        output.mkdir(parents=True, exist_ok=True)
        atomic_write_json(output / JSON, found)
    return found


class Team:
    """How many runs go side by side, how many of them the machine bears at once, on how many GPUs, with how many CPU
    threads each."""

    def __init__(self, jobs: int, at_once: int, num_gpus: int, threads: int | None) -> None:
        self.jobs, self.at_once, self.num_gpus, self.threads = jobs, at_once, num_gpus, threads

    @classmethod
    def of(cls, options: CompareOptions, plan: Plan) -> "Team":
        """A GPU, or a CPU core with one thread, for each process, unless the options say otherwise."""
        given = plan.first_run(plan.contenders[0]).options()
        device = devices.choose_device(given.device)
        if device.type == "cuda":
            import torch

            num_gpus = torch.cuda.device_count() if device.index is None else 0
            jobs = options.jobs or max(1, num_gpus // options.processes)
            return cls(jobs, jobs, num_gpus, None)
        cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
        most = max(1, cores // (options.processes * (given.threads or 1)))
        jobs = options.jobs or most
        return cls(jobs, min(jobs, most), 0, max(1, cores // (jobs * options.processes)))


def known_records(plan: Plan, output: Path) -> dict[str, dict[str, Any]]:
    """The records of the plan's runs that are over. Which runs it has depends on them, so until no more are found."""
    records: dict[str, dict[str, Any]] = {}
    like = plan.first_run(plan.contenders[0]).options()
    reading.refuse_other_comparisons(output / "results", {plan.steps, plan.tune_steps}, like)
    while True:
        losses = {id: results.loss_of(record) for id, record in records.items()}
        found = reading.read(output / "results", [*plan.ready(losses), *_of(plan, losses)])
        if found.keys() <= records.keys():
            return records
        records |= found


def work(plan: Plan, output: Path, records: dict[str, dict[str, Any]], team: Team, pace: float) -> None:
    """Do the runs that are left, for --hours at most. pace: seconds per step, until a run is over and tells."""
    hours = plan.options.hours
    deadline = time.monotonic() + (float("inf") if hours is None else hours * 3600)
    running: list[Running] = []
    failed: list[UserError] = []
    tried: set[str] = set()
    with signals.StopRequest() as stop, progress() as show:
        try:
            while True:
                losses = {id: results.loss_of(record) for id, record in records.items()}
                ready = [run for run in plan.ready(losses) if run.id not in tried]
                late = time.monotonic() >= deadline
                while ready and len(running) < team.jobs and not late and not stop.requested:
                    run = ready.pop(0)
                    tried.add(run.id)
                    taken = {one.place for one in running}
                    place = next(number for number in range(team.jobs) if number not in taken)
                    running.append(
                        processes.start(
                            run,
                            output,
                            place=place,
                            num_gpus=team.num_gpus,
                            threads=team.threads,
                            processes=plan.options.processes,
                        )
                    )
                if not running or late or stop.requested:
                    break
                time.sleep(POLL_SECONDS)
                for one in [one for one in running if one.process.poll() is not None]:
                    running.remove(one)
                    error = _over(one, output, records, show)
                    failed += [error] if error is not None else []
                show(_status(plan, records, running, team.at_once, pace))
        finally:
            processes.stop_all(running)
            for one in running:
                _over(one, output, records, show)
        if stop.requested:
            raise KeyboardInterrupt if stop.interrupted else Preempted("terminated; every run wrote a checkpoint")
    if failed:
        raise failed[0]
    if hours and plan.ready({id: results.loss_of(record) for id, record in records.items()}):
        say(f"{hours:g} hours are over; the same command goes on")


def write_report(plan: Plan, output: Path, records: dict[str, dict[str, Any]]) -> None:
    """report.html and its pictures."""
    from switchlora.compare.tables import report_data
    from switchlora.report.compare_page import PAGE, files

    with writing("the report", output):
        for name, content in files(report_data(plan, records)).items():
            atomic_write_bytes(output / name, content)
    say(f"report: {output / PAGE}")


@contextlib.contextmanager
def progress() -> Iterator[Any]:
    """A function that shows the state: one line that is rewritten, or where that is no terminal a line a minute."""
    last = 0.0
    terminal = sys.stderr.isatty()

    def show(line: str, *, always: bool = False) -> None:
        nonlocal last
        if terminal:
            if not always:  # a line that goes on below could not be rewritten
                line = line[: shutil.get_terminal_size().columns - 1]
            print(f"\r\x1b[2K{line}", end="\n" if always else "", file=sys.stderr, flush=True)
        elif always or time.monotonic() - last > SECONDS_BETWEEN_LINES:
            last = time.monotonic()
            print(line, file=sys.stderr, flush=True)

    yield show
    if terminal:
        print(file=sys.stderr)


def _of(plan: Plan, losses: dict[str, float]) -> list[PlannedRun]:
    """All runs that the plan knows of at this point."""
    searched = [run for contender in plan.contenders for run in plan.sweep_runs(contender, losses)]
    return [*searched, *(run for contender in plan.contenders for run in plan.final_runs(contender, losses))]


def _over(one: Running, output: Path, records: dict[str, dict[str, Any]], show: Any) -> UserError | None:
    """Gather a run that is over; an error if it failed, None if it was stopped or is done."""
    code = one.code
    if code in processes.STOPPED:
        return None
    error, record = None, {}
    if code not in (0, processes.DIVERGED):
        error = processes.failure(one)
    else:
        record = results.gather(one.run, one.folder, one.reason() if code else None)
        if not code and not reading.of_same_data(records, record["data_fingerprint"]):
            error = UserError(
                f"{one.run.id}: --data has changed since the other runs; put the old text back, remove {one.folder}, "
                "and give the same command to go on"
            )
    if error is not None:
        show(str(error), always=True)
        return error
    with writing("a result", output):
        results.write(record, output / "results")
    records[one.run.id] = record
    perplexity = record["validation_perplexity"]
    show(
        f"{one.run.id}: " + (f"perplexity {perplexity:.2f}" if perplexity else f"diverged ({record['error']})"),
        always=True,
    )
    return None


def _status(plan: Plan, records: dict[str, dict[str, Any]], running: list[Running], at_once: int, pace: float) -> str:
    """The one progress view."""
    losses = {id: results.loss_of(record) for id, record in records.items()}
    waiting = len(plan.ready(losses)) - len(running)
    done = [one.fraction() for one in running]
    under_way = sum(part * one.run.steps for part, one in zip(done, running, strict=True))
    left = budget(plan, losses, at_once, measured_pace(records) or pace, under_way).time_left
    parts = [f"{one.run.id} {part:.0%}" for part, one in zip(done, running, strict=True)]
    return f"{len(records)} runs done, {max(0, waiting)} known to come, about {left}; now {', '.join(parts)}"
