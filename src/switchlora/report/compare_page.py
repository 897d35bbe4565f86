"""report.html: one page that opens offline, with everything a sceptic asks for, and report.png for a README.

plotly.js is written into the page, and so are the data, as JSON. Tables are made here, not by the script, so that they
can be read without one; a number's full value stands in its cell's `data-value`.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from switchlora.errors import UserError, way_to_install
from switchlora.report import compare_figures as figures
from switchlora.report.page_parts import cell, number, table, text, value, whole_page

Row = Mapping[str, Any]
PAGE, PICTURE = "report.html", "report.png"


def require_packages() -> None:
    """Before anything is run.

    Raises:
        UserError: plotly or scipy is missing.
    """
    from importlib.util import find_spec

    missing = [name for name in ("plotly", "scipy") if find_spec(name) is None]
    if missing:
        raise UserError(f"compare: needs {' and '.join(missing)}; {way_to_install('compare')}")


def files(data: Mapping[str, Any]) -> dict[str, bytes]:
    """The content of report.html and report.png, by name."""
    from switchlora.report.compare_chart import chart_png

    return {PICTURE: chart_png(data), PAGE: page(data).encode("utf-8")}


def page(data: Mapping[str, Any]) -> str:
    """The page as text."""
    drawn = {"curves": figures.curves(data), "frontier": figures.frontier(data)}
    searches = [one for one in data["searches"] if one["points"]]
    drawn |= {f"search-{number}": figures.search(one) for number, one in enumerate(searches)}
    body = "\n".join(
        [
            f"<h1>{text(data['name'])}</h1>",
            _summary(data),
            "<h2>Results</h2>",
            main_table(data),
            _notes(data),
            "<h2>Loss curves</h2>",
            "<p>Means over seeds, thin lines single seeds; on the first 65,536 tokens of the validation text at most. "
            "A click on the legend hides a method, a double click shows it alone.</p>",
            '<div id="curves" class="figure"></div>',
            "<h2>Perplexity, memory and time</h2>",
            f"<p>Full points: no other method is at least as good in {_costs(data)} at once. Lines join the ranks of a "
            "method. On a CPU, which has no other memory than the host's, candidates count as memory.</p>",
            '<div id="frontier" class="figure"></div>',
            memory_table(data),
            *_searches(data, searches),
            traffic_table(data),
            "<h2>Every run</h2>",
            runs_table(data),
            "<h2>Configuration</h2>",
            _configuration(data),
        ]
    )
    return whole_page(data["name"], body, data=data, figures=drawn)


def main_table(data: Mapping[str, Any]) -> str:
    """One line per method and rank: mean ± standard deviation, and the paired difference to the baseline."""
    minus = f"loss minus {data['baseline']}"
    head = ("method", "lr", "other lr", "seeds", "perplexity", "loss", minus, "bits per byte",
            "loss at equal time", "s / step", "tokens / s")  # fmt: skip
    return table("results", head, (_main_cells(row) for row in data["rows"]))


def memory_table(data: Mapping[str, Any]) -> str:
    """Bytes allocated in a step, by kind, and who dominates whom."""
    kinds = ("weight_bytes", "gradient_bytes", "optimizer_device_bytes", "candidate_host_bytes")
    head = ("method", "trainable", "weights", "gradients", "optimizer state", "candidates (host)", "on the device",
            "peak of the process", "best within its memory", "loss above it", "dominated by")  # fmt: skip

    def cells(row: Row) -> list[str]:
        held = row["bytes_by_kind"]
        return [
            cell(row["name"]),
            number(row["trainable_parameters"], "{:,}"),
            *(_mega(held.get(kind)) for kind in kinds),
            _mega(row["device_bytes"]),
            _mega(row["peak_memory_bytes"]),
            cell("itself" if row["equal_memory"]["best"] == row["name"] else row["equal_memory"]["best"] or ""),
            number(row["equal_memory"]["difference"], "{:.4f}"),
            cell("" if row.get("dominated_by") is None else row["dominated_by"]),
        ]

    return table("memory", head, map(cells, data["rows"]))


def traffic_table(data: Mapping[str, Any]) -> str:
    """Bytes that a process hands to collectives in a step, by kind, where runs had several processes; else nothing."""
    kinds = sorted({kind for row in data["rows"] for kind in row["traffic_bytes"]})
    if not kinds:
        return ""
    base = [row for row in data["rows"] if row["label"] == data["baseline"]]
    whole = sum(base[0]["traffic_bytes"].values()) if base else 0

    def cells(row: Row) -> list[str]:
        total = sum(row["traffic_bytes"].values())
        share = total / whole if total and whole else None
        return [
            cell(row["name"]),
            *(number(row["traffic_bytes"].get(kind), "{:,}") for kind in kinds),
            number(total or None, "{:,}"),
            number(share, "{:.3f}"),
        ]

    head = ("method", *(kind.replace("_", "-") for kind in kinds), "together", f"of {data['baseline']}'s")
    title = "<h2>Traffic</h2><p>Bytes that each process hands to collectives in a step, counted.</p>"
    return title + table("traffic", head, map(cells, data["rows"]))


def runs_table(data: Mapping[str, Any]) -> str:
    """Every run that is over, those of the searches included, with its command."""
    head = ("run", "seed", "steps", "perplexity", "loss", "command")

    def cells(run: Row) -> list[str]:
        return [
            cell(run["id"] + ("" if run["counts"] else " (search)")),
            number(run["seed"], "{}"),
            number(run["steps"], "{:,}"),
            f'<td title="{text(run["error"])}">diverged</td>'
            if run["diverged"]
            else number(run["validation_perplexity"], "{:.2f}"),
            number(run["validation_loss"], "{:.4f}"),
            f"<td><details><summary>show</summary><code>{text(run['command'])}</code></details></td>",
        ]

    return table("runs", head, map(cells, data["runs"]))


def _main_cells(row: Row) -> list[str]:
    difference = row["difference"]
    seeds = f"{row['loss']['n']}" + (f", {row['num_diverged']} diverged" if row["num_diverged"] else "")
    mark = " *" if row["confirmed"] is False else ""
    interval = ""
    if difference["low"] is not None:
        interval = f" [{difference['low']:+.3f}, {difference['high']:+.3f}]"
    if difference["n"] < row["loss"]["n"]:
        interval += f", {difference['n']} of the seeds"  # those that the baseline has, too
    shown = "–" if row["is_baseline"] or difference["mean"] is None else f"{difference['mean']:+.3f}{interval}"
    return [
        cell(row["name"] + mark),
        number(row["lr"], "{:g}"),
        number(row["other_lr"], "{:g}"),
        cell(seeds),
        _spread(row["perplexity"], 2),
        _spread(row["loss"], 4),
        f'<td class="number" data-value="{value(difference["mean"])}">{shown}</td>',
        _spread(row["bits_per_byte"], 4),
        number(row["equal_time"]["loss"], "{:.4f}"),
        number(row["step_seconds"], "{:.3f}"),
        number(row["tokens_per_second"], "{:,.0f}"),
    ]


def _summary(data: Mapping[str, Any]) -> str:
    left = f" <strong>{data['runs_left']} runs or more are still to be done.</strong>" if data["runs_left"] else ""
    settings = data["settings"]
    tuned = "Learning rates were not searched for."
    if data["tune_steps"]:
        tied = [one["name"] for one in data["searches"] if one["tied"]]
        what = "Both learning rates of every method were"
        if len(tied) == len(data["searches"]):
            what = "One learning rate for all parameters of a method was"
        elif tied:
            what = f"Both learning rates of every method (one for all parameters: {text(', '.join(tied))}) were"
        tuned = (
            f"{what} searched for in runs of {data['tune_steps']:,} steps with seed "
            f"{data['tune_seed']}, which count for nothing else"
            + (f", at r = {data['tune_rank']} alone: other ranks have its rates." if data["tune_rank"] else ".")
        )
    return (
        f"<p>Model {text(settings.get('model', 'tiny'))}, {data['steps']:,} steps, seeds "
        f"{', '.join(map(str, data['seeds']))}; equal tokens, and for each seed identical batches and initial weights. "
        f"{tuned}{left}</p>"
    )


def _notes(data: Mapping[str, Any]) -> str:
    unconfirmed = any(row["confirmed"] is False for row in data["rows"])
    times = (
        "Loss at equal time: on the text of the curves, when the fastest method is done; the slower ones' learning "
        "rates have not come down by then. Times are of runs side by side on the hardware below: compare them roughly, "
        "and see <code>switchlora bench</code> for ratios taken in interleaved steps."
    )
    if data["num_machines"] > 1:
        times = f"The runs are from {data['num_machines']} machines, so their times are not shown."
    if data["num_sources"] > 1:
        times += (
            f" The runs were made by {data['num_sources']} states of the source code (<code>source</code> in their "
            "JSON): whether what changed matters to them is not known here."
        )
    star = " * The search ended before all neighbours of its best point had been tried." if unconfirmed else ""
    return (
        '<p class="note">Mean ± standard deviation over seeds. Losses in nats per token on the same validation text. '
        f"Difference to {text(data['baseline'])}: mean over seeds of paired differences, with Student's 95 % "
        f"interval. {times}{star}</p>"
    )


def _costs(data: Mapping[str, Any]) -> str:
    if data["num_machines"] > 1:
        return "perplexity and memory"
    return "perplexity, memory and time per step (the size of a point; times within 5 % of each other are alike)"


def _searches(data: Mapping[str, Any], searches: Sequence[Row]) -> list[str]:
    if not searches:
        return []

    def says(one: Row) -> str:
        if one["best"] is None:
            return "not begun"
        if all(point["diverged"] for point in one["points"]):
            return "every run diverged; " + ("given up" if one["done"] else "going on")
        state = "neighbours tried, and worse" if one["confirmed"] else "cut off" if one["done"] else "going on"
        return f"best lr {one['best']['lr']:g}, other {one['best']['other_lr']:g}; {state}"

    figures_ = "".join(
        f'<figure><div id="search-{n}"></div><figcaption>{says(one)}</figcaption></figure>'
        for n, one in enumerate(searches)
    )
    return [
        "<h2>Searches for learning rates</h2>",
        "<p>Loss at the end of each run; the winner has a ring.</p>",
        f'<div class="searches">{figures_}</div>',
    ]


def _configuration(data: Mapping[str, Any]) -> str:
    shown = {key: data[key] for key in ("settings", "methods", "versions", "hardware")}
    return f"<pre>{text(json.dumps(shown, indent=2))}</pre>"


def _mega(found: float | None) -> str:
    shown = "" if found is None else f"{found / 1e6:,.2f} MB"
    return f'<td class="number" data-value="{value(found)}">{shown}</td>'


def _spread(found: Mapping[str, Any], digits: int) -> str:
    shown = "diverged" if found["mean"] is None else f"{found['mean']:.{digits}f}"
    shown += "" if found["sd"] is None else f" ± {found['sd']:.{digits}f}"
    return f'<td class="number" data-value="{value(found["mean"])}">{shown}</td>'
