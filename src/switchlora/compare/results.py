"""One JSON file per run: what was run, on what, its curve and what came of it. They are the data; the report is drawn.

A file appears when its run is over, whole and at once. A run that stopped at a loss or gradient that is not finite has
a file too, marked `diverged`: it was tried and counts as lost, and dropping it would flatter its method.
"""

import json
import math
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from switchlora.compare import processes
from switchlora.compare.plan import PlannedRun
from switchlora.machine import description, devices
from switchlora.machine.files import atomic_write_json
from switchlora.training.folder import METRICS, OPTIONS, RESULT
from switchlora.training.metrics import read_metrics
from switchlora.training.options import PretrainOptions
from switchlora.training.source import source_hash

CURVE_POINTS = 100
DEVICE_KINDS = ("weight_bytes", "buffer_bytes", "gradient_bytes", "optimizer_device_bytes", "candidate_device_bytes")
HOST_KINDS = ("optimizer_host_bytes", "candidate_host_bytes")
KINDS = DEVICE_KINDS + HOST_KINDS


def gather(run: PlannedRun, folder: Path, error: str | None = None) -> dict[str, Any]:
    """The record of a run that is over, from its folder. `error`: the line with which it diverged."""
    rows = read_metrics(folder / METRICS)
    result = json.loads((folder / RESULT).read_text("utf-8")) if error is None else _of_diverged(run, folder, rows)
    return {
        "id": run.id,
        "label": run.contender.label,
        "r": run.contender.r,
        "lr": run.lr,
        "other_lr": run.other_lr,
        "diverged": error is not None,
        "error": error,
        "step_seconds": statistics.median(_seconds(rows)) if rows else None,
        "curve": _curve(rows),
        **result,
    }


def write(record: Mapping[str, Any], folder: Path) -> None:
    """Keep a record in the folder of results."""
    folder.mkdir(parents=True, exist_ok=True)
    atomic_write_json(folder / f"{record['id']}.json", record)


def loss_of(record: Mapping[str, Any]) -> float:
    """Validation loss at the end in nats per token; infinite for a run that diverged."""
    return math.inf if record["diverged"] else float(record["validation_loss"])


def _of_diverged(run: PlannedRun, folder: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    last = rows[-1] if rows else {}
    options = PretrainOptions.from_yaml(folder / OPTIONS)
    measured: dict[str, Any] = next((row for row in reversed(rows) if "peak_memory_bytes" in row), {})
    return {
        "method": options.method,
        "seed": run.seed,
        "steps": last.get("step", 0),
        "tokens": last.get("tokens", 0),
        "validation_loss": None,
        "validation_perplexity": None,
        "bits_per_byte": None,
        "peak_memory_bytes": measured.get("peak_memory_bytes"),
        "tokens_per_second": last.get("tokens_per_second"),
        "command": processes.shown(processes.command(run, folder, options.threads)),
        "source": source_hash(options.method),
        "config": options.to_dict(),
        **description.machine_record(devices.choose_device(options.device)),
        "threads": options.threads,
    }


def _seconds(rows: list[dict[str, Any]]) -> list[float]:
    """What each step took; tokens per step are the first row's."""
    return [rows[0]["tokens"] / row["tokens_per_second"] for row in rows]


def _curve(rows: list[dict[str, Any]]) -> dict[str, list[Any]]:
    """Validation losses, and training losses as means over at most CURVE_POINTS spans, against tokens and seconds of
    training."""
    clock, seconds = 0.0, []
    for step_seconds in _seconds(rows) if rows else []:
        clock += step_seconds
        seconds.append(round(clock, 3))
    span = max(1, math.ceil(len(rows) / CURVE_POINTS))
    spans = [range(first, min(first + span, len(rows))) for first in range(0, len(rows), span)]
    validated = [place for place, row in enumerate(rows) if "validation_loss" in row]
    return {
        "tokens": [rows[place]["tokens"] for place in validated],
        "seconds": [seconds[place] for place in validated],
        "validation_loss": [rows[place]["validation_loss"] for place in validated],
        "train_tokens": [rows[places[-1]]["tokens"] for places in spans],
        "train_loss": [round(statistics.fmean(rows[place]["loss"] for place in places), 5) for places in spans],
    }
