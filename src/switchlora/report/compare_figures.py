"""The interactive figures of the comparison's page, as plain dictionaries for plotly.js.

Colours go by label, dashes by rank, so that a method is found again in every figure. Curves are means over seeds; the
seeds themselves are thin lines that come and go with their mean in the legend.
"""

import html
import math
import statistics
from collections.abc import Mapping, Sequence
from typing import Any

Row = Mapping[str, Any]
Figure = dict[str, Any]

COLOURS = ("#2166ac", "#b2182b", "#1b7837", "#762a83", "#e08214", "#01665e", "#c51b7d", "#8c510a", "#4d4d4d", "#878787",
           "#35978f", "#dfc27d", "#9970ab", "#5aae61")  # fmt: skip
DASHES = ("solid", "dash", "dot", "dashdot", "longdash")
MEGA = 1e6
FAR = 3.0  # what lies so many times as far above the median as the best lies below it is cut off at first
MEMORY = "weights, gradients, optimizer state, candidates beside them (MB)"
LAYOUT = {
    "template": "none",
    "font": {"family": "system-ui, sans-serif", "size": 13, "color": "#222"},
    "margin": {"l": 64, "r": 16, "t": 48, "b": 56},
    "paper_bgcolor": "rgba(0,0,0,0)",
    "plot_bgcolor": "rgba(0,0,0,0)",
    "hoverlabel": {"namelength": -1},
}


def colour_of(rows: Sequence[Row], label: str) -> str:
    """The colour of a label on this page."""
    labels = list(dict.fromkeys(row["label"] for row in rows))
    return COLOURS[labels.index(label) % len(COLOURS)]


def dash_of(rows: Sequence[Row], r: int | None) -> str:
    """The dash of a rank on this page; methods without one are solid."""
    ranks = sorted({row["r"] for row in rows if row["r"] is not None}, reverse=True)
    return DASHES[0] if r is None else DASHES[ranks.index(r) % len(DASHES)]


def curves(data: Mapping[str, Any]) -> Figure:
    """Validation loss against tokens or seconds of training, or at the end against memory, by the buttons above.

    What a button shows is one of "views", which the page's script switches between: what the legend hid stays hidden.
    Seconds are left out where they are of several machines.
    """
    rows = data["rows"]
    traces: list[Figure] = []
    scales = ("tokens", "seconds") if data["num_machines"] < 2 else ("tokens",)
    xs: dict[str, list[list[float]]] = {key: [] for key in scales}
    for row in rows:
        line = {"color": colour_of(rows, row["label"]), "dash": dash_of(rows, row["r"])}
        whole = list(row["curves"].items())
        means = [("", mean_curve([curve for _, curve in whole]), 2.5)] if whole else []
        for name, curve, width in [*means, *((s, c, 0.7) for s, c in whole)]:
            for key, of_key in xs.items():
                of_key.append(curve[key])
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines" if name else "lines+markers",
                    "x": curve["tokens"],
                    "y": curve["validation_loss"],
                    "name": _plain(row["name"]) + (f", seed {name}" if name else ""),
                    "legendgroup": row["name"],
                    "showlegend": not name,
                    "opacity": 0.5 if name else 1.0,
                    "line": {**line, "width": width},
                    "marker": {"size": 6},
                    "hovertemplate": "%{y:.4f} nats<extra>%{fullData.name}</extra>",
                }
            )
        for name, curve in row["lost_curves"].items():
            for key, of_key in xs.items():
                of_key.append(curve[key])
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines+markers",
                    "x": curve["tokens"],
                    "y": curve["validation_loss"],
                    "name": f"{_plain(row['name'])}, seed {name}, diverged",
                    "legendgroup": row["name"],
                    "line": {**line, "width": 0.7},
                    "marker": {"symbol": "x", "size": 8},
                }
            )
    by_memory = [{**trace, "visible": False} for trace in against_memory(data, "loss")]
    titles = {"tokens": "tokens", "seconds": "seconds of training", "memory": MEMORY}
    shown = [True] * len(traces) + [False] * len(by_memory)
    of_curves = xs["tokens"]
    views = {
        f"against {name}": {
            "x": [*xs.get(name, of_curves), *(trace["x"] for trace in by_memory)],
            "shown": shown if name in xs else [not one for one in shown],
            "title": titles[name],
        }
        for name in (*xs, "memory")
    }
    buttons = [{"label": name, "method": "skip"} for name in views]
    layout = {
        **LAYOUT,
        "height": 520,
        "xaxis": {"title": {"text": titles["tokens"]}, "gridcolor": "#ddd", "rangemode": "tozero"},
        "yaxis": {
            "title": {"text": "validation loss (nats per token)"},
            "gridcolor": "#ddd",
            "range": curve_range(rows),
        },
        "legend": {"groupclick": "togglegroup"},
        "updatemenus": [
            {"type": "buttons", "direction": "right", "x": 0, "xanchor": "left", "y": 1.12, "buttons": buttons}
        ],
    }
    return {"data": traces + by_memory, "layout": layout, "views": views}


def frontier(data: Mapping[str, Any]) -> Figure:
    """Perplexity against memory; the size of a point is its time per step; full points are not dominated."""
    means = [row["perplexity"]["mean"] for row in data["rows"] if row["perplexity"]["mean"] is not None]
    highest = highest_shown(means)
    layout = {
        **LAYOUT,
        "height": 480,
        "xaxis": {"title": {"text": MEMORY}, "gridcolor": "#ddd"},
        "yaxis": {
            "title": {"text": "validation perplexity"},
            "gridcolor": "#ddd",
            "range": None if highest is None else cut(min(means), highest),
        },
    }
    return {"data": against_memory(data, "perplexity"), "layout": layout}


def against_memory(data: Mapping[str, Any], what: str) -> list[Figure]:
    """A line a label, through its ranks: `what` ("loss" or "perplexity") at the end against bytes of memory."""
    slowest = max((row["step_seconds"] for row in data["rows"] if row["step_seconds"]), default=1.0)
    traces = []
    for label, rows in by_label(data["rows"], what):
        colour = colour_of(data["rows"], label)
        notes = [
            "nobody dominates it" if row["dominated_by"] is None else f"dominated by {_plain(row['dominated_by'])}"
            for row in rows
        ]
        traces.append(
            {
                "type": "scatter",
                "mode": "lines+markers+text",
                "x": [row["memory_bytes"] / MEGA for row in rows],
                "y": [row[what]["mean"] for row in rows],
                "error_y": {
                    "type": "data",
                    "array": [row[what]["sd"] or 0 for row in rows],
                    "color": colour,
                    "thickness": 1,
                },
                "text": ["" if row["r"] is None else str(row["r"]) for row in rows],
                "textposition": "top right",
                "textfont": {"size": 10, "color": colour},
                "name": _plain(label),
                "legendgroup": label,
                "line": {"color": colour, "width": 1},
                "marker": {
                    "size": [9 + 15 * row["step_seconds"] / slowest if row["step_seconds"] else 12 for row in rows],
                    "color": [colour if row["dominated_by"] is None else "rgba(255,255,255,0.8)" for row in rows],
                    "line": {"color": colour, "width": 2},
                },
                "customdata": [
                    f"{_plain(row['name'])}, {_time(row)}{note}" for row, note in zip(rows, notes, strict=True)
                ],
                "hovertemplate": "%{y:.4f} at %{x:.2f} MB<br>%{customdata}<extra></extra>",
            }
        )
    return traces


def _time(row: Row) -> str:
    return f"{row['step_seconds']:.3g} s a step, " if row["step_seconds"] else ""


def highest_shown(values: Sequence[float]) -> float | None:
    """Where an axis of costs ends at first, if some are so high that the others would lie on one line: see `FAR`."""
    if not values:
        return None
    lowest, middle = min(values), statistics.median(values)
    limit = middle + FAR * (middle - lowest)
    return max(value for value in values if value <= limit) if max(values) > limit else None


def cut(lowest: float, highest: float) -> list[float]:
    """A range of an axis with some room at both ends."""
    room = 0.08 * (highest - lowest) or 1.0
    return [lowest - room, highest + room]


def curve_range(rows: Sequence[Row]) -> list[float] | None:
    """What the axis of losses shows at first, where some runs end far above the others; None: everything."""
    ends = [row["loss"]["mean"] for row in rows if row["loss"]["mean"] is not None]
    highest = highest_shown(ends)
    if highest is None:
        return None
    near = [row for row in rows if row["loss"]["mean"] is not None and row["loss"]["mean"] <= highest]
    losses = [loss for row in near for curve in row["curves"].values() for loss in curve["validation_loss"]]
    return cut(min(losses), max(losses))


def by_label(rows: Sequence[Row], what: str) -> list[tuple[str, list[Row]]]:
    """The rows with a mean of `what` and known memory by label, those of a label by memory."""
    shown = [row for row in rows if row[what]["mean"] is not None and row["memory_bytes"]]
    return [
        (label, sorted((row for row in shown if row["label"] == label), key=lambda row: row["memory_bytes"]))
        for label in dict.fromkeys(row["label"] for row in shown)
    ]


def search(one: Mapping[str, Any]) -> Figure:
    """The points of one search: colour is loss, a ring the winner, a cross a run that diverged."""
    points = one["points"]
    found = [point for point in points if not point["diverged"]]
    lost = [point for point in points if point["diverged"]]
    best = one["best"] or {}
    ring = [4 if (p["lr"], p["other_lr"]) == (best.get("lr"), best.get("other_lr")) else 0.5 for p in found]
    losses = [point["loss"] for point in found]
    traces: list[Figure] = [
        {
            "type": "scatter",
            "mode": "markers+text",
            "x": [point["lr"] for point in found],
            "y": [point["other_lr"] for point in found],
            "text": [f"{loss:.3f}" for loss in losses],
            "textposition": "bottom center",
            "textfont": {"size": 11},
            "marker": {
                "size": 20,
                "color": losses,
                "colorscale": "Viridis",
                "reversescale": True,
                "line": {"color": "#b2182b", "width": ring},
            },
            "hovertemplate": "lr %{x:.3g}, other_lr %{y:.3g}: %{text} nats<extra></extra>",
        },
        {
            "type": "scatter",
            "mode": "markers",
            "x": [point["lr"] for point in lost],
            "y": [point["other_lr"] for point in lost],
            "marker": {"symbol": "x", "size": 12, "color": "#b2182b"},
            "hovertemplate": "lr %{x:.3g}, other_lr %{y:.3g}: diverged<extra></extra>",
        },
    ]
    layout = {
        **LAYOUT,
        "height": 300,
        "margin": {"l": 64, "r": 16, "t": 36, "b": 48},
        "title": {"text": _plain(one["name"]), "font": {"size": 13}},
        "showlegend": False,
        "xaxis": _log_axis("lr of the hidden matrices", [point["lr"] for point in points]),
        "yaxis": _log_axis("lr of the rest", [point["other_lr"] for point in points]),
    }
    return {"data": traces, "layout": layout}


def mean_curve(many: Sequence[Mapping[str, list[float]]]) -> dict[str, list[float]]:
    """Over the seeds, at the tokens where all of them were validated."""
    common = sorted(set.intersection(*(set(curve["tokens"]) for curve in many)))

    def mean_at(tokens: float, key: str) -> float:
        return statistics.fmean(curve[key][curve["tokens"].index(tokens)] for curve in many)

    return {key: [mean_at(at, key) for at in common] for key in ("tokens", "seconds", "validation_loss")}


def _plain(name: str) -> str:
    """A name in which plotly finds no markup."""
    return html.escape(name, quote=False)


def _log_axis(title: str, values: Sequence[float]) -> Figure:
    """A logarithmic axis with a tick at every value that was tried, and no others."""
    ticks = sorted(set(values))
    return {
        "type": "log",
        "gridcolor": "#eee",
        "title": {"text": title},
        "tickvals": ticks,
        "ticktext": [f"{tick:g}" for tick in ticks],
        "range": [math.log10(ticks[0]) - 0.25, math.log10(ticks[-1]) + 0.25],
    }
