"""What the report shows, as plain data: rows of the main table, the searches, every run. No drawing, and no disk."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from switchlora.compare.plan import Contender, Plan, PlannedRun
from switchlora.compare.results import DEVICE_KINDS, HOST_KINDS, KINDS, loss_of
from switchlora.compare.statistics import dominated, interpolated, paired_difference, spread
from switchlora.machine.files import spelled

Record = Mapping[str, Any]
SHOWN = ("id", "label", "r", "lr", "other_lr", "seed", "steps", "diverged", "error", "command", "validation_loss",
         "validation_perplexity", "bits_per_byte", "step_seconds", "source")  # fmt: skip


def report_data(plan: Plan, records: Mapping[str, Record]) -> dict[str, Any]:
    """Everything on the page, from the records of runs that are over; JSON can hold it.

    Losses are in nats per token, memory in bytes, times in seconds.
    """
    losses = {id: loss_of(record) for id, record in records.items()}
    rows = [row for contender in plan.contenders for row in _rows(plan, contender, records, losses)]
    searched = list(dict.fromkeys(map(plan.tuned_like, plan.contenders))) if plan.options.tune else []
    final = {run.id: run for contender in plan.contenders for run in plan.final_runs(contender, losses)}
    used = {**final, **{run.id: run for one in searched for run in plan.sweep_runs(one, losses)}}
    machines = {_machine(records[id]) for id in final if id in records}
    _add_comparisons(plan, rows, times=len(machines) < 2)
    return {
        "name": plan.options.output.rstrip("/").split("/")[-1],
        "baseline": plan.options.baseline_label,
        "seeds": list(plan.options.seeds),
        "steps": plan.steps,
        "tune_steps": plan.tune_steps if plan.options.tune else None,
        "tune_seed": plan.options.tune_seed,
        "tune_rank": plan.options.tune_rank if plan.options.tune else None,
        "num_machines": len(machines),
        "runs_left": len(plan.ready(losses)),
        "settings": spelled(dict(plan.options.pretrain)),
        "methods": spelled({label: dict(own) for label, own in plan.options.methods.items()}),
        "num_sources": len({records[id].get("source") for id in final if id in records}),
        "versions": _distinct(records.values(), "versions"),
        "hardware": _distinct(records.values(), "hardware"),
        "rows": rows,
        "searches": [_search(plan, contender, records, losses) for contender in searched],
        "runs": [
            {key: records[id].get(key) for key in SHOWN} | {"counts": id in final} for id in used if id in records
        ],
    }


def _rows(
    plan: Plan, contender: Contender, records: Mapping[str, Record], losses: Mapping[str, float]
) -> list[dict[str, Any]]:
    """One row per pair of learning rates that runs with all seeds: one after a search."""
    runs = [run for run in plan.final_runs(contender, losses) if run.id in records]
    pairs = list(dict.fromkeys((run.lr, run.other_lr) for run in runs))
    rows = []
    for lr, other in pairs:
        own = [run for run in runs if (run.lr, run.other_lr) == (lr, other)]
        rows.append(_row(contender, own, records, several=len(pairs) > 1))
        if plan.options.tune:
            rows[-1]["confirmed"] = plan.search_of(plan.tuned_like(contender), losses).confirmed
    return rows


def _row(contender: Contender, runs: list[PlannedRun], records: Mapping[str, Record], several: bool) -> dict[str, Any]:
    whole = {run.seed: records[run.id] for run in runs if not records[run.id]["diverged"]}
    any_record = next(iter(whole.values()), records[runs[0].id])
    kinds = any_record.get("bytes_by_kind") or {}
    lr, other = runs[0].lr, runs[0].other_lr
    return {
        "name": contender.name + (f" lr={lr:g}, other={other:g}" if several else ""),
        "label": contender.label,
        "method": any_record["method"],
        "r": contender.r,
        "lr": lr,
        "other_lr": other,
        "confirmed": None,
        "num_diverged": len(runs) - len(whole),
        "losses": {str(seed): record["validation_loss"] for seed, record in whole.items()},
        "loss": spread([record["validation_loss"] for record in whole.values()]),
        "perplexity": spread([record["validation_perplexity"] for record in whole.values()]),
        "bits_per_byte": spread([record["bits_per_byte"] for record in whole.values()]),
        "trainable_parameters": any_record.get("trainable_parameters"),
        "bytes_by_kind": kinds,
        "device_bytes": sum(kinds[kind] for kind in DEVICE_KINDS) if kinds else None,
        "host_bytes": sum(kinds[kind] for kind in HOST_KINDS) if kinds else None,
        "memory_bytes": sum(kinds[kind] for kind in _that_count(any_record)) if kinds else None,
        "peak_memory_bytes": _mean([record["peak_memory_bytes"] for record in whole.values()]),
        "step_seconds": _median([seconds_per_step(record) for record in whole.values()]),
        "traffic_bytes": any_record.get("traffic_bytes") or {},
        "tokens_per_second": _mean([record["tokens_per_second"] for record in whole.values()]),
        "curves": {str(seed): record["curve"] for seed, record in whole.items()},
        "lost_curves": {str(run.seed): records[run.id]["curve"] for run in runs if run.seed not in whole},
    }


def seconds_per_step(record: Record) -> float:
    """Of training, whatever comes only every so many steps included: the median of the means over parts of the run.

    A part is a fifth of the run, or the way from one validation to the next where that is longer. So one part in which
    the machine was busy with something else, or asleep, does not count, and what every part has does.
    """
    curve, num_parts = record["curve"], 5
    ends = [0, *(round(part * len(curve["tokens"]) / num_parts) for part in range(1, num_parts + 1))]
    tokens, seconds = [0, *curve["tokens"]], [0.0, *curve["seconds"]]
    means = [(seconds[b] - seconds[a]) / (tokens[b] - tokens[a]) for a, b in itertools.pairwise(ends) if b > a]
    return float(statistics.median(means) * curve["tokens"][-1] / record["steps"])


def _that_count(record: Record) -> tuple[str, ...]:
    """Kinds of bytes: on a CPU the host's memory is the device's, so what lies on the host counts as well."""
    return KINDS if record["hardware"].get("device") == "cpu" else DEVICE_KINDS


def _machine(record: Record) -> tuple[Any, ...]:
    """What times depend on."""
    keys = ("cpu", "cpu_capability", "cpu_products", "num_cores", "gpu")
    return *(record["hardware"].get(key) for key in keys), record.get("threads")


def _add_comparisons(plan: Plan, rows: list[dict[str, Any]], times: bool) -> None:
    """Differences to the baseline (at the same rank, if it has ranks; at its best rates, if it has several), losses
    at equal time, and who is dominated. times: whether those of all runs can be compared; if not they are left out."""
    base = [row for row in rows if row["label"] == plan.options.baseline_label]
    base.sort(key=lambda row: (row["num_diverged"], row["loss"]["mean"] or math.inf))
    fastest = min((row["step_seconds"] for row in rows if row["step_seconds"]), default=None) if times else None
    for row in rows:
        like = [one for one in base if one["r"] in (None, row["r"])]
        own = {int(seed): loss for seed, loss in row["losses"].items()}
        to = {int(seed): loss for seed, loss in like[0]["losses"].items()} if like else {}
        row["is_baseline"] = row is like[0] if like else False
        row["difference"] = paired_difference(own, to)
        row["equal_time"] = _at_equal_time(row, fastest)
        row["best_for_memory"] = False
        if not times:
            row["step_seconds"] = row["tokens_per_second"] = None
        if row["num_diverged"]:
            row["dominated_by"] = "a seed that diverged"
        elif row["loss"]["n"] < len(plan.options.seeds):
            row["dominated_by"] = "not all seeds yet"
    full = [row for row in rows if row["loss"]["n"] == len(plan.options.seeds) and row["memory_bytes"] is not None]
    by = dominated([(row["loss"]["mean"], row["memory_bytes"], row["step_seconds"] if times else 0.0) for row in full])
    without_time = dominated([(row["loss"]["mean"], row["memory_bytes"], 0.0) for row in full])
    for row, other, in_memory in zip(full, by, without_time, strict=True):
        row["dominated_by"] = None if other is None else full[other]["name"]
        row["best_for_memory"] = in_memory is None
    for row in rows:
        row["equal_memory"] = _at_equal_memory(row, full)


def _search(
    plan: Plan, contender: Contender, records: Mapping[str, Record], losses: Mapping[str, float]
) -> dict[str, Any]:
    state = plan.search_of(contender, losses)
    runs = plan.sweep_runs(contender, losses)
    points = [
        {"lr": run.lr, "other_lr": run.other_lr, "loss": records[run.id]["validation_loss"], "id": run.id,
         "diverged": records[run.id]["diverged"]}
        for run in runs
    ]  # fmt: skip
    best = contender.grid.rates(state.best) if state.best is not None and runs else None
    return {
        "name": contender.name,
        "tied": contender.grid.others is None,
        "points": sorted(points, key=lambda point: (point["lr"], point["other_lr"])),
        "best": None if best is None else {"lr": best[0], "other_lr": best[1]},
        "done": state.done,
        "confirmed": state.confirmed,
    }


def _at_equal_time(row: Mapping[str, Any], fastest: float | None) -> dict[str, Any]:
    """The mean loss when the fastest method is done: after as many tokens as fit into its time.

    By `seconds_per_step`. The learning rate of the slower methods has not
    come down by then, which counts against them.
    """
    if fastest is None or not row["step_seconds"]:
        return {"share": None, "loss": None}
    share = fastest / row["step_seconds"]
    curves = [curve for curve in row["curves"].values() if curve["tokens"]]
    found = [interpolated(curve["tokens"], curve["validation_loss"], share * curve["tokens"][-1]) for curve in curves]
    return {"share": share, "loss": _mean([loss for loss in found if loss is not None])}


def _at_equal_memory(row: Mapping[str, Any], rivals: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The best that needs no more memory than this one, itself included, and by how much this one is above it."""
    if row["memory_bytes"] is None or not row["loss"]["n"]:
        return {"best": None, "difference": None}
    fitting = [one for one in rivals if one["memory_bytes"] <= row["memory_bytes"]]
    if not fitting:
        return {"best": None, "difference": None}
    best = min(fitting, key=lambda one: one["loss"]["mean"])
    return {"best": best["name"], "difference": row["loss"]["mean"] - best["loss"]["mean"]}


def _distinct(records: Any, key: str) -> list[Any]:
    found: list[Any] = []
    for record in records:
        if record.get(key) is not None and record[key] not in found:
            found.append(record[key])
    return found


def _mean(values: Sequence[float]) -> float | None:
    return statistics.fmean(values) if values else None


def _median(values: Sequence[float]) -> float | None:
    return statistics.median(values) if values else None
