"""`switchlora bench` from options to files: who takes part, what it takes, and what is written.

Every batch size is measured with models of its own, one after the other, and written as soon as it is done.
"""

import contextlib
import datetime
import itertools
import logging
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from switchlora.bench import results
from switchlora.bench.contestants import PACKAGES, Contestant, contestants
from switchlora.bench.options import BenchOptions
from switchlora.bench.peak import peak_bytes
from switchlora.bench.room import require_memory
from switchlora.bench.rounds import Rounds, run_rounds
from switchlora.bench.switched import same_as_the_cost_models
from switchlora.bench.table import tables
from switchlora.bench.trainee import Trainee, base_model, build, compiling
from switchlora.errors import UserError
from switchlora.machine.console import say
from switchlora.machine.devices import choose_device, set_threads, use_products
from switchlora.machine.files import (
    as_json,
    atomic_write_bytes,
    atomic_write_json,
    atomic_write_new,
    require_writable,
    writing,
)
from switchlora.report.bench_chart import bench_chart_png

if TYPE_CHECKING:
    from torch import nn


def bench(options: BenchOptions) -> dict[str, Any]:
    """Run `switchlora bench`; see docs/bench.md.

    Returns:
        what the JSON file holds.

    Raises:
        UserError: a method that cannot take part, a device that is not there, results that would be overwritten or
            cannot be written, or more than the memory can hold.
    """
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # it warns of kernels for 4 bits, which nobody asked for
    device = choose_device(options.device)
    set_threads(options.threads)
    use_products(device, options.cpu_products)
    options = replace(options, threads=torch.get_num_threads())
    rows = contestants(options)
    target = output_file(options)
    require_writable(target.parent)
    require_memory(rows, options, device)
    for row in rows:
        if row.absence and row.r == options.all_ranks[0] and not row.never_switches:
            say(f"{row.method}: {row.absence}")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    result = results.head(options, device)
    sequences, written = options.sequences[0], None
    try:
        base = base_model(options, device)
        for sequences in options.sequences:
            result["workloads"].append(_workload(options, sequences, rows, base, device))
            written = _write(written or target, result, is_new=written is None)
            _draw(written.with_suffix(".png"), result)
    except (KeyboardInterrupt, UserError):
        _tell(result, written)
        raise
    except (torch.OutOfMemoryError, MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        _tell(result, written)
        num = sum(not row.absence for row in rows)
        raise UserError(
            f"--sequences {sequences} --seq-len {options.seq_len}: {num} methods do not fit into the memory together; "
            "give fewer --methods or --ranks, fewer or shorter sequences, or --checkpoint-activations"
        ) from error
    _tell(result, written)
    return result


def _tell(result: dict[str, Any], written: Path | None) -> None:
    """Show all tables, and where they are: nowhere, if the disk refused the first."""
    if not result["workloads"]:
        return
    say(f"\n{tables(result)}\n")
    if written is not None:
        chart = written.with_suffix(".png")
        say(f"results: {written}" + (f", chart: {chart}" if chart.exists() else ""))


def output_file(options: BenchOptions) -> Path:
    """Where the results go; nothing is ever overwritten, for results are data.

    Raises:
        UserError: the file is there already.
    """
    if options.output is None:
        time = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        return Path("runs") / f"bench-{options.model}-{options.dtype}-{time}.json"
    path = Path(options.output).expanduser()
    if path.suffix != ".json":
        path = path / "bench.json"
    for file in (path, path.with_suffix(".png")):
        if file.exists():
            raise UserError(f"--output {options.output}: {file} is there already; give another, or delete it")
    return path


def _workload(
    options: BenchOptions, sequences: int, rows: list[Contestant], base: "nn.Module", device: torch.device
) -> dict[str, Any]:
    say(f"{options.model}, {sequences} sequences of {options.seq_len}, {options.dtype}: building")
    peaks = _peaks(options, sequences, rows) if options.peak_memory else {}
    rows, trainees = _trainees(options, sequences, rows, base, device)
    with compiling(options, len(trainees)):
        rounds: Rounds = run_rounds(trainees, options, sequences, device, say)
    return results.workload(options, sequences, rows, rounds, peaks)


def _trainees(
    options: BenchOptions, sequences: int, rows: list[Contestant], base: "nn.Module", device: torch.device
) -> tuple[list[Contestant], list[Trainee]]:
    """The rows, with what was found out while building, and those of them that are ready to be measured."""
    told, trainees = [], []
    for number, row in enumerate(rows):
        if not row.absence:
            try:
                trainee = build(row, base, options, device)
            except ImportError as error:
                if row.method not in PACKAGES:
                    raise
                rows[number] = _not_importable(row, options, error)  # for what is measured next, too
                told.append(rows[number])
                continue
            if same_as_the_cost_models(row.method, trainee.model, sequences * options.seq_len):
                row = replace(row, absence="same as switchlora, whose cost model picks this way for every layer")
            else:
                trainees.append(trainee)
        told.append(row)
    return told, trainees


def _not_importable(row: Contestant, options: BenchOptions, error: ImportError) -> Contestant:
    """A row whose package is installed and does not work.

    Raises:
        UserError: the method was asked for by name.
    """
    reason = f"its package cannot be imported ({' '.join(str(error).split())[:200]})"
    if options.methods is not None:
        raise UserError(f"--methods {row.method}: {reason}; install versions that fit, or leave it out") from error
    say(f"{row.name}: {reason}")
    return replace(row, absence=reason)


def _peaks(options: BenchOptions, sequences: int, rows: list[Contestant]) -> dict[str, tuple[int | None, str]]:
    """Before anything is built here, so that both have the machine to themselves."""
    found: dict[str, tuple[int | None, str]] = {}
    for row in rows:
        if row.never_switches:
            found[row.name] = None, "not measured: it is that of the row that switches, less its candidates"
        elif not row.absence:
            say(f"peak memory of {row.name}, alone")
            found[row.name] = peak_bytes(row, options, sequences)
    return found


def _write(target: Path, result: dict[str, Any], *, is_new: bool) -> Path:
    """Write results, and return where: where they are new, and somebody took the name while this was measured, under
    the next free one."""
    with writing("the results", target.parent):
        target.parent.mkdir(parents=True, exist_ok=True)
        if is_new:
            return _written_as_new(target, as_json(result))
        atomic_write_json(target, result)
    return target


def _draw(path: Path, result: dict[str, Any]) -> None:
    try:
        chart = bench_chart_png(result)
    except ImportError as error:  # run from its source where matplotlib is not: the numbers are what matters
        say(f"no chart: {error}")
        return
    with writing("the chart", path.parent):
        atomic_write_bytes(path, chart)


def _written_as_new(target: Path, text: str) -> Path:
    for number in itertools.count(1):
        path = target if number == 1 else target.with_name(f"{target.stem}-{number}{target.suffix}")
        with contextlib.suppress(FileExistsError):
            if not path.with_suffix(".png").exists():
                atomic_write_new(path, text)
                break
    if path != target:
        say(f"note: {target} or its chart was written by somebody else meanwhile, so the results go to {path}")
    return path


def _is_out_of_memory(error: BaseException) -> bool:
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)
