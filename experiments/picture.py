"""docs/evidence/frontier.png: the frontier of docs/evidence/memory.md as a picture, from the same rows as its table.

python -m experiments.picture
"""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from experiments.tables import PAGES, PLACE, by_memory

MEGA = 1e6
NAMED = (
    *("full", "muon", "racs", "apollo-mini", "stable-spam", "fresh r=32", "switchlora r=32", "lora-tied r=32"),
    *("apollo-tied r=32", "galore-tied r=32", "switchlora-polar r=32"),
)


def main() -> None:
    """Draw it."""
    page = next(page for page in PAGES if page.stem == "memory")
    (words,) = (place["words"] for place in PLACE.finditer(page.read_text("utf-8")) if place["kind"] == "frontier")
    rows, by = by_memory(*words.split())
    figure = Figure(figsize=(9.0, 5.5), dpi=130, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for row, other in zip(rows, by, strict=True):
        x, y, best = row["memory_bytes"] / MEGA, row["perplexity"]["mean"], other is None
        colour = "#2166ac" if best else "#b2182b" if row["name"] in NAMED else "#aaaaaa"
        axes.errorbar(x, y, yerr=row["perplexity"]["sd"], fmt="o", color=colour, elinewidth=0.8,
                      markerfacecolor=colour if best else "white")  # fmt: skip
        if best or row["name"] in NAMED:
            axes.annotate(row["name"], (x, y), xytext=(5, 4), textcoords="offset points", fontsize=7, color=colour)
    axes.set_xlabel("weights, gradients, optimizer state, candidates beside them (MB)")
    axes.set_ylabel("validation perplexity (filled: nobody is better in both)")
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(page.parent / "frontier.png")


if __name__ == "__main__":
    main()
