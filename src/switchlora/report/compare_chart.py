"""report.png: the comparison at a glance, for a README. Left the curves, right perplexity against memory."""

import io
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from switchlora.report.compare_figures import (
    MEGA,
    MEMORY,
    by_label,
    colour_of,
    curve_range,
    cut,
    dash_of,
    highest_shown,
    mean_curve,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES, DOTS_PER_INCH = (11.0, 4.8), 130
STYLES = {"solid": "-", "dash": "--", "dot": ":", "dashdot": "-.", "longdash": (0, (8, 3))}


def chart_png(data: Mapping[str, Any]) -> bytes:
    """The picture as the bytes of a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    _draw_curves(left, data)
    _draw_frontier(right, data)
    for axes in (left, right):
        axes.grid(color="#dddddd", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=9)
    with io.BytesIO() as content:
        figure.savefig(content, format="png")
        return content.getvalue()


def _draw_curves(axes: "Axes", data: Mapping[str, Any]) -> None:
    rows = [row for row in data["rows"] if row["curves"]]
    for row in rows:
        curve = mean_curve(list(row["curves"].values()))
        axes.plot(
            [tokens / MEGA for tokens in curve["tokens"]],
            curve["validation_loss"],
            color=colour_of(data["rows"], row["label"]),
            linestyle=STYLES[dash_of(data["rows"], row["r"])],
            linewidth=1.6,
        )
    axes.set_xlabel("million tokens")
    axes.set_ylabel("validation loss (nats per token)")
    if (shown := curve_range(rows)) is not None:
        axes.set_ylim(*shown)
    for label in dict.fromkeys(row["label"] for row in rows):
        axes.plot([], [], color=colour_of(data["rows"], label), label=label)
    for r in sorted({row["r"] for row in rows if row["r"] is not None}):
        axes.plot([], [], color="#444444", linestyle=STYLES[dash_of(data["rows"], r)], label=f"r={r}")
    if rows:
        axes.legend(frameon=False, fontsize=8, ncols=2)


def _draw_frontier(axes: "Axes", data: Mapping[str, Any]) -> None:
    means = [row["perplexity"]["mean"] for row in data["rows"] if row["perplexity"]["mean"] is not None]
    highest = highest_shown(means)
    for label, rows in by_label(data["rows"], "perplexity"):
        colour = colour_of(data["rows"], label)
        near = [row for row in rows if highest is None or row["perplexity"]["mean"] <= highest]
        axes.plot(
            [row["memory_bytes"] / MEGA for row in near],
            [row["perplexity"]["mean"] for row in near],
            color=colour,
            linewidth=0.8,
        )
        for row in rows:
            x, y = row["memory_bytes"] / MEGA, row["perplexity"]["mean"]
            if highest is not None and y > highest:
                axes.annotate(
                    f"{row['name']}: {y:.0f} ↑", (x, 1), xycoords=("data", "axes fraction"), fontsize=7, color=colour,
                    rotation=90, ha="center", va="top",
                )  # fmt: skip
                continue
            axes.errorbar(
                x, y, yerr=row["perplexity"]["sd"] or 0, fmt="o", markersize=7, color=colour, elinewidth=1,
                markerfacecolor=colour if row["best_for_memory"] else "white",
            )  # fmt: skip
            note = label if row["r"] is None else str(row["r"])
            axes.annotate(note, (x, y), xytext=(5, 5), textcoords="offset points", fontsize=7, color=colour)
    axes.set_xlabel(MEMORY)
    axes.set_ylabel("validation perplexity (filled: nobody is better in both)")
    axes.margins(0.12)
    if highest is not None:
        axes.set_ylim(*cut(min(means), highest + 0.25 * (highest - min(means))))
