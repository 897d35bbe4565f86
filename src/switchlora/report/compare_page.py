"""report.html: one page that opens offline, with everything a sceptic asks for, and report.png for a README.

plotly.js is written into the page, and so are the data, as JSON. Tables are made here, not by the script, so that they
can be read without one; a number's full value stands in its cell's `data-value`.
"""

import html
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from switchlora.errors import UserError
from switchlora.report import compare_figures as figures
from switchlora.report.compare_style import HEAD, SCRIPT

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
        raise UserError(f"compare: needs {' and '.join(missing)}; pip install 'switchlora[compare]'")


def files(data: Mapping[str, Any]) -> dict[str, bytes]:
    """The content of report.html and report.png, by name."""
    from switchlora.report.compare_chart import chart_png

    return {PICTURE: chart_png(data), PAGE: page(data).encode("utf-8")}


def page(data: Mapping[str, Any]) -> str:
    """The page as text."""
    from plotly.offline import get_plotlyjs  # type: ignore[import-untyped,unused-ignore]

    drawn = {"curves": figures.curves(data), "frontier": figures.frontier(data)}
    searches = [one for one in data["searches"] if one["points"]]
    drawn |= {f"search-{number}": figures.search(one) for number, one in enumerate(searches)}
    body = "\n".join(
        [
            f"<h1>{_text(data['name'])}</h1>",
            _summary(data),
            "<h2>Results</h2>",
            main_table(data),
            _notes(data),
            "<h2>Loss curves</h2>",
            "<p>Means over seeds, thin lines single seeds; on the first 65,536 tokens of the validation text at most. "
            "A click on the legend hides a method, a double click shows it alone.</p>",
            '<div id="curves" class="figure"></div>',
            "<h2>Perplexity, memory and time</h2>",
            "<p>Full points: no other method is at least as good in perplexity, memory and time per step at once. The "
            "size of a point is its time per step; lines join the ranks of a method.</p>",
            '<div id="frontier" class="figure"></div>',
            memory_table(data),
            *_searches(data, searches),
            "<h2>Every run</h2>",
            runs_table(data),
            "<h2>Configuration</h2>",
            _configuration(data),
        ]
    )
    scripts = (
        f"<script>{get_plotlyjs()}</script>"
        f'<script type="application/json" id="data">{_embedded(data)}</script>'
        f'<script type="application/json" id="figures">{_embedded(drawn)}</script>'
        f"<script>{SCRIPT}</script>"
    )
    return f"{HEAD.replace('TITLE', _text(data['name']))}<body><main>{body}</main>{scripts}</body></html>\n"


def main_table(data: Mapping[str, Any]) -> str:
    """One line per method and rank: mean ± standard deviation, and the paired difference to the baseline."""
    minus = f"loss minus {data['baseline']}"
    head = ("method", "lr", "other lr", "seeds", "perplexity", "loss", minus, "bits per byte",
            "loss at equal time", "s / step", "tokens / s")  # fmt: skip
    return _table("results", head, (_main_cells(row) for row in data["rows"]))


def memory_table(data: Mapping[str, Any]) -> str:
    """Bytes allocated in the last step, by kind, and who dominates whom."""
    kinds = ("weight_bytes", "gradient_bytes", "optimizer_device_bytes", "candidate_host_bytes")
    head = ("method", "trainable", "weights", "gradients", "optimizer state", "candidates (host)", "on the device",
            "peak of the process", "best within its memory", "loss above it", "dominated by")  # fmt: skip

    def cells(row: Row) -> list[str]:
        held = row["bytes_by_kind"]
        return [
            _cell(row["name"]),
            _number(row["trainable_parameters"], "{:,}"),
            *(_mega(held.get(kind)) for kind in kinds),
            _mega(row["device_bytes"]),
            _mega(row["peak_memory_bytes"]),
            _cell("itself" if row["equal_memory"]["best"] == row["name"] else row["equal_memory"]["best"] or ""),
            _number(row["equal_memory"]["difference"], "{:.4f}"),
            _cell("" if row.get("dominated_by") is None else row["dominated_by"]),
        ]

    return _table("memory", head, map(cells, data["rows"]))


def runs_table(data: Mapping[str, Any]) -> str:
    """Every run that is over, those of the searches included, with its command."""
    head = ("run", "seed", "steps", "perplexity", "loss", "command")

    def cells(run: Row) -> list[str]:
        return [
            _cell(run["id"] + ("" if run["counts"] else " (search)")),
            _number(run["seed"], "{}"),
            _number(run["steps"], "{:,}"),
            f'<td title="{_text(run["error"])}">diverged</td>'
            if run["diverged"]
            else _number(run["validation_perplexity"], "{:.2f}"),
            _number(run["validation_loss"], "{:.4f}"),
            f"<td><details><summary>show</summary><code>{_text(run['command'])}</code></details></td>",
        ]

    return _table("runs", head, map(cells, data["runs"]))


def _main_cells(row: Row) -> list[str]:
    difference = row["difference"]
    seeds = f"{row['loss']['n']}" + (f", {row['num_diverged']} diverged" if row["num_diverged"] else "")
    mark = " *" if row["confirmed"] is False else ""
    interval = ""
    if difference["low"] is not None:
        interval = f" [{difference['low']:+.3f}, {difference['high']:+.3f}]"
    shown = "–" if row["is_baseline"] or difference["mean"] is None else f"{difference['mean']:+.3f}{interval}"
    return [
        _cell(row["name"] + mark),
        _number(row["lr"], "{:g}"),
        _number(row["other_lr"], "{:g}"),
        _cell(seeds),
        _spread(row["perplexity"], 2),
        _spread(row["loss"], 4),
        f'<td class="number" data-value="{_value(difference["mean"])}">{shown}</td>',
        _spread(row["bits_per_byte"], 4),
        _number(row["equal_time"]["loss"], "{:.4f}"),
        _number(row["step_seconds"], "{:.3f}"),
        _number(row["tokens_per_second"], "{:,.0f}"),
    ]


def _summary(data: Mapping[str, Any]) -> str:
    left = f" <strong>{data['runs_left']} runs or more are still to be done.</strong>" if data["runs_left"] else ""
    settings = data["settings"]
    tuned = "Learning rates were not searched for."
    if data["tune_steps"]:
        tuned = (
            f"Both learning rates of every method were searched for in runs of {data['tune_steps']:,} steps with seed "
            f"{data['tune_seed']}, which count for nothing else."
        )
    return (
        f"<p>Model {_text(settings.get('model', 'tiny'))}, {data['steps']:,} steps, seeds "
        f"{', '.join(map(str, data['seeds']))}; equal tokens, and for each seed identical batches and initial weights. "
        f"{tuned}{left}</p>"
    )


def _notes(data: Mapping[str, Any]) -> str:
    unconfirmed = any(row["confirmed"] is False for row in data["rows"])
    star = " * The search ended before all neighbours of its best point had been tried." if unconfirmed else ""
    return (
        '<p class="note">Mean ± standard deviation over seeds. Losses in nats per token on the same validation text. '
        f"Difference to {_text(data['baseline'])}: mean over seeds of paired differences, with Student's 95 % "
        "interval. Loss at equal time: when the fastest method is done; the slower ones' learning rates have not come "
        "down by then. Times are of runs side by side on the hardware below: compare them roughly, and see "
        f"<code>switchlora bench</code> for ratios taken in interleaved steps.{star}</p>"
    )


def _searches(data: Mapping[str, Any], searches: Sequence[Row]) -> list[str]:
    if not searches:
        return []

    def says(one: Row) -> str:
        if one["best"] is None:
            return "not begun"
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
    return f"<pre>{_text(json.dumps(shown, indent=2))}</pre>"


def _table(id: str, head: Sequence[str], lines: Iterable[Sequence[str]]) -> str:
    first = "".join(f"<th>{_text(name)}</th>" for name in head)
    body = "".join(f"<tr>{''.join(cells)}</tr>" for cells in lines)
    return f'<div class="wide"><table id="{id}"><thead><tr>{first}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(text: object) -> str:
    return f"<td>{_text(text)}</td>"


def _number(value: float | None, form: str) -> str:
    shown = "" if value is None else form.format(value)
    return f'<td class="number" data-value="{_value(value)}">{shown}</td>'


def _mega(value: float | None) -> str:
    shown = "" if value is None else f"{value / 1e6:,.2f} MB"
    return f'<td class="number" data-value="{_value(value)}">{shown}</td>'


def _spread(found: Mapping[str, Any], digits: int) -> str:
    shown = "diverged" if found["mean"] is None else f"{found['mean']:.{digits}f}"
    shown += "" if found["sd"] is None else f" ± {found['sd']:.{digits}f}"
    return f'<td class="number" data-value="{_value(found["mean"])}">{shown}</td>'


def _value(value: float | None) -> str:
    return "" if value is None else repr(value)


def _text(value: object) -> str:
    return html.escape(str(value))


def _embedded(value: Any) -> str:
    """JSON that may stand inside a script element."""
    return json.dumps(value, allow_nan=False).replace("<", "\\u003c")
