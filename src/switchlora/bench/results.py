"""From what was measured to what is kept: one plain dictionary, from which table, chart and README follow.

All raw step times are in it, so that another statistic can be taken later without measuring again.
"""

import dataclasses
import datetime
import os
import shlex
import statistics as python_statistics
import sys
from typing import Any

import torch

from switchlora.bench import galore
from switchlora.bench.contestants import Contestant
from switchlora.bench.counts import needed_flops
from switchlora.bench.options import BenchOptions
from switchlora.bench.rounds import Record, Rounds
from switchlora.bench.statistics import paired_ratios, summarize
from switchlora.machine.description import describe_machine, version_of
from switchlora.training.source import source_hash

FORMAT = 1
BASELINE = "full"
OPTIONAL_PACKAGES = ("peft", "galore-torch", "bitsandbytes", "triton")
FUSED_PART = "backward_and_optimizer"


def head(options: BenchOptions, device: torch.device) -> dict[str, Any]:
    """Who measured what on which machine, before the first number."""
    return {
        "format": FORMAT,
        "command": shlex.join(["switchlora", *sys.argv[1:]]),
        "source": source_hash(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": {
            **describe_machine(device),
            **{package: version_of(package) for package in OPTIONAL_PACKAGES},
            "float32_matmul_precision": torch.get_float32_matmul_precision(),
            "load_average_before": list(os.getloadavg()),
        },
        "options": options.resolved().to_dict(),
        "shape": {name: getattr(options.shape, name) for name in _SHAPE},
        "workloads": [],
    }


_SHAPE = ("hidden_size", "num_heads", "num_layers", "ffn_size", "vocab_size")


def workload(
    options: BenchOptions,
    sequences: int,
    rows: list[Contestant],
    rounds: Rounds,
    peaks: dict[str, tuple[int | None, str]],
) -> dict[str, Any]:
    """The results of one batch size: `rows` in the order of the table, measured or not."""
    num_tokens = sequences * options.seq_len
    needed = needed_flops(options.shape, num_tokens, options.seq_len)
    records = rounds.records
    return {
        "sequences": sequences,
        "seq_len": options.seq_len,
        "num_tokens": num_tokens,
        "full_rank_model_flops": needed,
        "order": rounds.order,
        "contestants": [
            {
                **dataclasses.asdict(row),
                "name": row.name,
                **(_measured(row, records, options, needed) if row.name in records else {}),
                **_peak(row, peaks),
            }
            for row in rows
        ],
    }


def _measured(row: Contestant, records: dict[str, Record], options: BenchOptions, needed: int) -> dict[str, Any]:
    record, full = records[row.name], records[BASELINE]
    steps = _of("step", record)
    found: dict[str, Any] = {
        "seconds": {part: _of(part, record) for part in record.seconds[0]},
        "median_seconds": {},
        "ratio_to_full": _ratio(steps, _of("step", full)),
        "ratio_to_peft": None,
        "model_flops": record.counts.model_flops,
        "optimizer_flops": record.counts.optimizer_flops,
        "flops_ratio": record.counts.flops / full.counts.flops,
        "bytes": record.counts.num_bytes,
        "total_bytes": sum(record.counts.num_bytes.values()),
        "bytes_ratio": sum(record.counts.num_bytes.values()) / sum(full.counts.num_bytes.values()),
        "num_switches": record.num_switches,
        "switching_cost": _switching_cost(row, records),
        "amortised": _amortised(record, full) if record.refresh_seconds else None,
        "model_flop_utilisation": None,
    }
    if row.method == "switchlora-fused":
        parts = found["seconds"]
        pairs = zip(parts.pop("backward"), parts.pop("optimizer"), strict=True)
        parts[FUSED_PART] = [backward + optimizer for backward, optimizer in pairs]
    found["median_seconds"] = {part: python_statistics.median(all_) for part, all_ in found["seconds"].items()}
    peft = records.get(Contestant("peft", row.r).name)
    if peft is not None and row.method != "peft":
        found["ratio_to_peft"] = _ratio(steps, _of("step", peft))
    if options.peak_tflops is not None:
        found["model_flop_utilisation"] = needed / (python_statistics.median(steps) * options.peak_tflops * 1e12)
    return found


def _amortised(record: Record, full: Record) -> dict[str, Any]:
    """GaLore with its decompositions' share, beside the measured rounds, which have none."""
    plain = python_statistics.median(_of("step", record))
    refresh = python_statistics.median(record.refresh_seconds)
    times = [galore.amortised(seconds, refresh, plain) for seconds in _of("step", record)]
    return {
        "update_gap_steps": galore.UPDATE_GAP,
        "refresh_step_seconds": record.refresh_seconds,
        "median_step_seconds": python_statistics.median(times),
        "ratio_to_full": _ratio(times, _of("step", full)),
    }


def _switching_cost(row: Contestant, records: dict[str, Record]) -> dict[str, Any] | None:
    """What the optimizer takes in steps that switch, less what it takes where the same method never does, in pairs of
    one round: seconds, and the share of the step that switches. With what is not timed apart: resets, rests, and
    sending for candidates. Forward and backward do not switch, and would only add their noise; but with a fused
    backward the optimizer works in there, so whole steps are taken."""
    twin = records.get(dataclasses.replace(row, never_switches=True).name)
    if twin is None or row.never_switches:
        return None
    steps = _of("step", records[row.name])
    differences = [
        own - other
        for own, other in zip(_where_it_switches(row, records[row.name]), _where_it_switches(row, twin), strict=True)
    ]
    shares = [difference / step for difference, step in zip(differences, steps, strict=True)]
    return {name: dataclasses.asdict(summarize(of)) for name, of in (("seconds", differences), ("share", shares))}


def _where_it_switches(row: Contestant, record: Record) -> list[float]:
    if row.method == "switchlora-fused":
        return _of("step", record)
    return [
        optimizer + switch for optimizer, switch in zip(_of("optimizer", record), _of("switch", record), strict=True)
    ]


def _ratio(times: list[float], baseline: list[float]) -> dict[str, float]:
    return dataclasses.asdict(summarize(paired_ratios(times, baseline)))


def _of(part: str, record: Record) -> list[float]:
    return [seconds[part] for seconds in record.seconds]


def _peak(row: Contestant, peaks: dict[str, tuple[int | None, str]]) -> dict[str, Any]:
    if row.name not in peaks:
        return {"peak_bytes": None, "peak_ratio": None, "peak_note": "not measured (--peak-memory)"}
    peak, note = peaks[row.name]
    full = peaks[BASELINE][0]
    return {"peak_bytes": peak, "peak_ratio": peak / full if peak and full else None, "peak_note": note}
