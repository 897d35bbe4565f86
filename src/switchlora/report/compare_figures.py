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
    """Validation loss against tokens, seconds of training, or memory, by the buttons above it."""
    rows = [row for row in data["rows"] if row["curves"]]
    traces: list[Figure] = []
    xs: dict[str, list[list[float]]] = {"tokens": [], "seconds": [], "memory": []}
    for row in rows:
        line = {"color": colour_of(rows, row["label"]), "dash": dash_of(rows, row["r"])}
        whole = list(row["curves"].items())
        for name, curve, width in [
            ("", mean_curve([curve for _, curve in whole]), 2.5),
            *((s, c, 0.7) for s, c in whole),
        ]:
            xs["tokens"].append(curve["tokens"])
            xs["seconds"].append(curve["seconds"])
            xs["memory"].append([(row["device_bytes"] or 0) / MEGA] * len(curve["tokens"]))
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
    titles = {
        "tokens": "tokens",
        "seconds": "seconds of training",
        "memory": "memory: weights, gradients, state (MB)",
    }
    buttons = [
        {"label": f"against {name}", "method": "update", "args": [{"x": xs[name]}, {"xaxis.title.text": titles[name]}]}
        for name in xs
    ]
    layout = {
        **LAYOUT,
        "height": 520,
        "xaxis": {"title": {"text": titles["tokens"]}, "gridcolor": "#ddd", "rangemode": "tozero"},
        "yaxis": {"title": {"text": "validation loss (nats per token)"}, "gridcolor": "#ddd"},
        "legend": {"groupclick": "togglegroup"},
        "updatemenus": [
            {"type": "buttons", "direction": "right", "x": 0, "xanchor": "left", "y": 1.12, "buttons": buttons}
        ],
    }
    return {"data": traces, "layout": layout}


def frontier(data: Mapping[str, Any]) -> Figure:
    """Perplexity against memory; the size of a point is its time per step; full points are not dominated."""
    shown = [row for row in data["rows"] if row["perplexity"]["mean"] is not None and row["device_bytes"]]
    rows = sorted(shown, key=lambda row: row["dominated_by"] is None)  # those that nobody dominates are drawn on top
    slowest = max((row["step_seconds"] for row in rows), default=1.0)
    traces = []
    for row in rows:
        free = row["dominated_by"] is None
        colour = colour_of(data["rows"], row["label"])
        note = "nobody dominates it" if free else f"dominated by {_plain(row['dominated_by'])}"
        traces.append(
            {
                "type": "scatter",
                "mode": "markers+text",
                "x": [row["device_bytes"] / MEGA],
                "y": [row["perplexity"]["mean"]],
                "error_y": {"type": "data", "array": [row["perplexity"]["sd"] or 0], "color": colour, "thickness": 1},
                "text": [_plain(row["name"])],
                "textposition": "top center",
                "textfont": {"size": 11},
                "name": _plain(row["name"]),
                "showlegend": False,
                "marker": {
                    "size": 9 + 15 * row["step_seconds"] / slowest,
                    "color": colour if free else "rgba(255,255,255,0.8)",
                    "line": {"color": colour, "width": 2},
                },
                "hovertemplate": f"%{{y:.2f}} at %{{x:.2f}} MB, {row['step_seconds']:.3g} s a step, {note}"
                "<extra>%{fullData.name}</extra>",
            }
        )
    layout = {
        **LAYOUT,
        "height": 480,
        "xaxis": {
            "title": {"text": "weights, gradients and optimizer state (MB)"},
            "gridcolor": "#ddd",
        },
        "yaxis": {"title": {"text": "validation perplexity"}, "gridcolor": "#ddd"},
    }
    return {"data": traces, "layout": layout}


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
    """Point by point over the seeds, as far as all of them go."""
    keys = ("tokens", "seconds", "validation_loss")
    length = min(len(curve["tokens"]) for curve in many)
    return {key: [statistics.fmean(curve[key][place] for curve in many) for place in range(length)] for key in keys}


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
