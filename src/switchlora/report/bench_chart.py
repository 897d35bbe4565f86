"""The chart of `switchlora bench`: step time against full rank, one panel for each batch size.

A bar is the median of paired ratios, its whisker the 10th to the 90th percentile of single rounds, the number at the
right the median. The tick is the limit by FLOPs: where the bar would end if time were matrix products alone.

Drawn from the plain dictionary of the JSON file, so that old results can be drawn again.
"""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, LIGHT_BLUE, GREY, LIGHT_GREY, RED = "#2166ac", "#67a9cf", "#555555", "#b3b3b3", "#b2182b"
INCHES_WIDE, INCHES_PER_BAR, INCHES_AROUND, DOTS_PER_INCH = 8.0, 0.27, 1.1, 150


def bench_chart_png(result: Mapping[str, Any]) -> bytes:
    """The picture as the bytes of a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    panels = [bars(workload) for workload in result["workloads"]]
    heights = [INCHES_AROUND + INCHES_PER_BAR * len(panel) for panel in panels]
    figure = Figure(figsize=(INCHES_WIDE, sum(heights) + 0.6), dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    all_axes = figure.subplots(len(panels), 1, height_ratios=heights, squeeze=False)[:, 0]
    right = max((bar["p90"] for panel in panels for bar in panel), default=1.0)
    for axes, panel, workload in zip(all_axes, panels, result["workloads"], strict=True):
        _draw(axes, panel, right)
        title = f"{workload['sequences']} sequences of {workload['seq_len']} tokens"
        axes.set_title(title, loc="left", fontsize=10, color="#222222")
    all_axes[0].legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 1.0), fontsize=9, borderaxespad=0.1)
    all_axes[-1].set_xlabel("step time, full-rank AdamW = 1 (whisker: 10th to 90th percentile of rounds)", fontsize=9)
    options, machine = result["options"], result["machine"]
    figure.suptitle(
        f"{options['model']}, {options['dtype']}, {machine['gpu'] or machine['cpu']}, {threads(machine)}",
        x=0.01, ha="left", fontsize=12, fontweight="bold", color="#222222",
    )  # fmt: skip
    with io.BytesIO() as content:
        figure.savefig(content, format="png")
        return content.getvalue()


def threads(machine: Mapping[str, Any]) -> str:
    """'1 thread' or '2 threads'."""
    return f"{machine['threads']} thread{'s' if machine['threads'] > 1 else ''}"


def bars(workload: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What is drawn: of each measured method, from the top down, name, median, p10, p90 and limit by FLOPs.

    GaLore gets two: without its decompositions, as the others are measured, and with their share.
    """
    found = []
    for row in workload["contestants"]:
        if "seconds" not in row:
            continue
        named = {"name": row["name"], "method": row["method"]}
        found.append({**named, "flops": row["flops_ratio"], **row["ratio_to_full"]})
        if row["amortised"]:
            found[-1]["name"] += ", without SVD"
            with_svd = {"name": f"{row['name']}, with SVD", "flops": None}
            found.append({**named, **with_svd, **row["amortised"]["ratio_to_full"]})
    return found


def _draw(axes: "Axes", panel: Sequence[Mapping[str, Any]], right: float) -> None:
    places = list(range(len(panel)))
    medians = [bar["median"] for bar in panel]
    axes.barh(places, medians, height=0.68, color=[_colour(bar["method"]) for bar in panel])
    whiskers = [
        [max(0.0, bar["median"] - bar["p10"]) for bar in panel],
        [max(0.0, bar["p90"] - bar["median"]) for bar in panel],
    ]
    axes.errorbar(medians, places, xerr=whiskers, fmt="none", ecolor="#222222", elinewidth=0.9, capsize=2.5)
    limits = [(bar["flops"], place) for bar, place in zip(panel, places, strict=True) if bar["flops"] is not None]
    axes.scatter(
        [x for x, _ in limits], [y for _, y in limits], marker="|", s=110, color=RED, linewidths=1.8, zorder=4,
        label="limit by FLOPs",
    )  # fmt: skip
    axes.axvline(1.0, color="#222222", linewidth=0.9, linestyle=(0, (4, 3)), zorder=3)
    for bar, place in zip(panel, places, strict=True):
        axes.annotate(
            f"{bar['median']:.3f}", (max(bar["p90"], bar["median"], bar["flops"] or 0.0), place), xytext=(6, 0),
            textcoords="offset points", va="center", fontsize=8.5, color="#222222", zorder=5,
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.0},
        )  # fmt: skip
    axes.set_yticks(places, [bar["name"] for bar in panel], fontsize=9, color="#222222")
    axes.set_ylim(len(panel) - 0.4, -0.6)
    axes.set_xlim(0.0, 1.12 * max(right, 1.0))
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(axis="x", labelsize=9, color=GREY)
    axes.tick_params(axis="y", length=0)


def _colour(method: str) -> str:
    if method == "full":
        return GREY
    if method == "switchlora":
        return BLUE
    return LIGHT_BLUE if method.startswith("switchlora") else LIGHT_GREY
