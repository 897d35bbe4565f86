"""docs/evidence/frontier.png: the frontier of docs/evidence/memory.md as a picture, from the same rows as its table.

python -m experiments.picture
"""

from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.tables import PAGES, PLACE, by_memory

MEGA = 1e6
NAMED = (
    *("full", "muon", "racs", "apollo-mini", "stable-spam", "fresh r=32", "switchlora r=32", "lora-tied r=32"),
    *("apollo-tied r=32", "galore-tied r=32", "switchlora-polar r=32"),
)
FRONTIER, OTHER, UNNAMED = "#2166ac", "#b2182b", "#aaaaaa"
PLACES = ((5, 4, "left"), (5, -9, "left"), (-5, 4, "right"), (-5, -9, "right"), (5, 11, "left"), (5, -16, "left"))


def label_beside(axes: Any, text: str, x: float, y: float, colour: str, taken: list[Any]) -> None:
    """At the first of PLACES, offsets in points, that is free of points and of earlier labels; else at the first."""
    label = axes.annotate(text, (x, y), xytext=(0, 0), textcoords="offset points", fontsize=7, color=colour)
    for dx, dy, side in (*PLACES, PLACES[0]):
        label.set_position((dx, dy))
        label.set_ha(side)
        box = label.get_window_extent(axes.figure.canvas.get_renderer())
        if not box.count_overlaps(taken) and box.x1 < axes.bbox.x1:
            break
    taken.append(box)


def main() -> None:
    """Draw it."""
    page = next(page for page in PAGES if page.stem == "memory")
    (words,) = (place["words"] for place in PLACE.finditer(page.read_text("utf-8")) if place["kind"] == "frontier")
    rows, by = by_memory(*words.split())
    figure = Figure(figsize=(9.0, 5.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    labels = []
    for row, other in zip(rows, by, strict=True):
        x, y, best = row["memory_bytes"] / MEGA, row["perplexity"]["mean"], other is None
        colour = FRONTIER if best else OTHER if row["name"] in NAMED else UNNAMED
        axes.errorbar(x, y, yerr=row["perplexity"]["sd"], fmt="o", color=colour, elinewidth=0.8,
                      markerfacecolor=colour if best else "white", zorder=2 if colour == UNNAMED else 3)  # fmt: skip
        if colour != UNNAMED:
            labels.append((row["name"], x, y, colour))
    axes.set_xlabel("weights, gradients, optimizer state, candidates beside them (MB)")
    axes.set_ylabel("validation perplexity (filled: none is lower with as little memory)")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.margins(x=0.08)
    axes.spines[["top", "right"]].set_visible(False)
    figure.draw_without_rendering()  # places of points are known from here on
    taken = [_around(axes, row["memory_bytes"] / MEGA, row["perplexity"]["mean"]) for row in rows]
    for label in labels:
        label_beside(axes, *label, taken)
    figure.savefig(page.parent / "frontier.png")


def _around(axes: Any, x: float, y: float) -> Any:
    """The box of a marker, in pixels."""
    from matplotlib.transforms import Bbox

    column, row = axes.transData.transform((x, y))
    return Bbox.from_extents(column - 6, row - 6, column + 6, row + 6)


if __name__ == "__main__":
    main()
