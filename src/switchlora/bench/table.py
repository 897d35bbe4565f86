"""The results on a terminal: one table for each batch size, from the plain dictionary that is also written as JSON."""

from collections.abc import Mapping, Sequence
from typing import Any

from switchlora.bench.results import FUSED_PART
from switchlora.bench.statistics import CONFIDENCE
from switchlora.bench.stopwatch import SWITCH
from switchlora.report.bench_chart import threads

PARTS = ("forward", "backward", "optimizer", SWITCH)


def tables(result: Mapping[str, Any]) -> str:
    """All tables, each under a line that says what was measured."""
    return "\n\n".join(_table(result, workload) for workload in result["workloads"])


def _table(result: Mapping[str, Any], workload: Mapping[str, Any]) -> str:
    options, machine = result["options"], result["machine"]
    rows = workload["contestants"]
    measured = [row for row in rows if "seconds" in row]
    columns = _columns(measured)
    body = [["method", *(title for title, _ in columns)]]
    absent: dict[tuple[str, str], dict[str, None]] = {}  # ranks
    for row in rows:
        if "seconds" not in row:
            absent.setdefault((row["method"], row["absence"]), {})[str(row["r"])] = None
            continue
        body.append([row["name"], *(cell(row) for _, cell in columns)])
        if row["amortised"]:
            body.append(_amortised(row, len(columns)))
    notes = [f"{method} r={', '.join(ranks)}: {absence}" for (method, absence), ranks in absent.items()]
    title = (
        f"{options['model']}, {workload['sequences']} sequences of {workload['seq_len']}, {options['dtype']}, "
        f"{machine['gpu'] or machine['cpu']}, {threads(machine)}, {options['steps']} rounds"
    )
    return "\n".join([title, "", *_aligned(body), *([""] if notes else []), *notes])


def _columns(measured: Sequence[Mapping[str, Any]]) -> list[tuple[str, Any]]:
    """(title, cell of a row). Columns that nothing was measured for are left out."""
    columns: list[tuple[str, Any]] = [
        ("to full", lambda row: f"{row['ratio_to_full']['median']:.3f}"),
        (_confidence(measured), lambda row: _span(row["ratio_to_full"], "low", "high")),
        ("10-90 %", lambda row: _span(row["ratio_to_full"], "p10", "p90")),
    ]
    if any(row["ratio_to_peft"] for row in measured):
        columns.append(("to peft", lambda row: f"{row['ratio_to_peft']['median']:.3f}" if row["ratio_to_peft"] else ""))
    columns.append(("FLOPs", lambda row: f"{row['flops_ratio']:.3f}"))
    columns.append(("step ms", lambda row: _milliseconds(row["median_seconds"]["step"])))
    columns += [(part, lambda row, part=part: _part(row, part)) for part in PARTS]
    columns.append(("switch %", _switch_share))
    if any(row["switching_cost"] for row in measured):
        columns.append(("all switching %", lambda row: _percent(row["switching_cost"], "median")))
        columns.append((_confidence(measured), lambda row: _percent(row["switching_cost"], "low", "high")))
    if any(row["model_flop_utilisation"] for row in measured):
        columns.append(("MFU %", lambda row: f"{100 * row['model_flop_utilisation']:.1f}"))
    columns.append(("MB held", lambda row: _megabytes(_device_bytes(row))))
    columns.append(("+ host", lambda row: _megabytes(row["total_bytes"] - _device_bytes(row))))
    if any(row["peak_bytes"] for row in measured):
        columns.append(("MB peak", lambda row: _megabytes(row["peak_bytes"]) if row["peak_bytes"] else "?"))
    return columns


def _confidence(measured: Sequence[Mapping[str, Any]]) -> str:
    """'95 %', or how much less it is with fewer than six rounds."""
    coverage = min((row["ratio_to_full"]["coverage"] for row in measured), default=1.0)
    return "95 %" if coverage >= CONFIDENCE else f"{100 * coverage:.0f} %"


def _part(row: Mapping[str, Any], part: str) -> str:
    seconds = row["median_seconds"]
    if part == SWITCH and row["num_switches"] is None:
        return ""
    if part in seconds:
        return _milliseconds(seconds[part])
    return _milliseconds(seconds[FUSED_PART]) if part == "backward" else "(in it)"


def _switch_share(row: Mapping[str, Any]) -> str:
    if row["num_switches"] is None:
        return ""
    return f"{100 * sum(row['seconds']['switch']) / sum(row['seconds']['step']):.2f}"


def _percent(cost: Mapping[str, Mapping[str, float]] | None, *names: str) -> str:
    return " to ".join(f"{100 * cost['share'][name]:.2f}" for name in names) if cost else ""


def _amortised(row: Mapping[str, Any], num_columns: int) -> list[str]:
    """GaLore's second line: with the share of its decompositions."""
    amortised, ratio = row["amortised"], row["amortised"]["ratio_to_full"]
    cells = [f"{ratio['median']:.3f}", _span(ratio, "low", "high"), _span(ratio, "p10", "p90")]
    name = f"  with 1/{amortised['update_gap_steps']} of its SVD step"
    return [name, *cells, *[""] * (num_columns - len(cells))]


def _device_bytes(row: Mapping[str, Any]) -> int:
    return sum(size for name, size in row["bytes"].items() if "_host_" not in name)


def _span(summary: Mapping[str, float], low: str, high: str) -> str:
    return f"{summary[low]:.3f}-{summary[high]:.3f}"


def _milliseconds(seconds: float) -> str:
    milliseconds = 1000 * seconds
    return f"{milliseconds:.0f}" if milliseconds >= 100 else f"{milliseconds:.1f}"


def _megabytes(size: int) -> str:
    return f"{size / 1e6:,.1f}" if size < 1e8 else f"{size / 1e6:,.0f}"


def _aligned(rows: list[list[str]]) -> list[str]:
    widths = [max(len(row[place]) for row in rows) for place in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))]).rstrip()
        for row in rows
    ]
