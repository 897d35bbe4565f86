"""loss.png: the loss of a run over its steps, and the learning rate below it.

The raw loss of single batches is faint, for it is mostly noise; the line is a moving average, centred so that it does
not lag behind and as wide as 1/50 of the run. Validation points are the ones to compare runs by.

Drawn on a figure of its own rather than through pyplot, which would keep it open and pick a screen.
"""

import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes

Row = Mapping[str, Any]
Points = tuple[np.ndarray, np.ndarray]

BLUE, RED, GREY = "#2166ac", "#b2182b", "#555555"
INCHES, DOTS_PER_INCH = (8.0, 5.2), 150


def write_loss_curve(path: Path, rows: Sequence[Row], *, title: str) -> None:
    """Draw the rows of metrics.jsonl (`step`, `loss`, `validation_loss`, `lr`; each but `step` may be missing)."""
    Path(path).write_bytes(loss_curve_png(rows, title=title))


def loss_curve_png(rows: Sequence[Row], *, title: str) -> bytes:
    """The picture as the bytes of a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=INCHES, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    upper, lower = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    _draw_loss(upper, points(rows, "loss"), points(rows, "validation_loss"))
    _draw_learning_rate(lower, points(rows, "lr"))
    upper.set_title(title, loc="left", fontsize=12, fontweight="bold", color="#222222", wrap=True)
    figure.align_ylabels()
    with io.BytesIO() as content:
        figure.savefig(content, format="png")
        return content.getvalue()


def points(rows: Sequence[Row], key: str) -> Points:
    """(steps, values) of the rows that have a finite value under `key`."""
    found = [(row["step"], row[key]) for row in rows if isinstance(row.get(key), int | float)]
    pairs = np.array(found, dtype=np.float64).reshape(-1, 2)
    pairs = pairs[np.isfinite(pairs[:, 1])]
    return pairs[:, 0], pairs[:, 1]


def moving_average(values: np.ndarray, window: int) -> np.ndarray:
    """Centred mean over up to `window` neighbours; the window shrinks evenly on both sides towards the ends."""
    sums = np.concatenate([[0.0], np.cumsum(values)])
    index = np.arange(len(values))
    reach = np.minimum(np.minimum(index, index[::-1]), window // 2)
    return np.asarray((sums[index + reach + 1] - sums[index - reach]) / (2 * reach + 1))


def _draw_loss(axes: "Axes", train: Points, validation: Points) -> None:
    steps, loss = train
    axes.plot(steps, loss, color=BLUE, alpha=0.25, linewidth=0.8)
    smooth = moving_average(loss, max(1, len(loss) // 50))
    dot = "." if len(loss) == 1 else None  # a line through one point is nothing
    axes.plot(steps, smooth, color=BLUE, marker=dot, linewidth=1.8, label="training, smoothed (each batch faint)")
    if len(validation[0]):
        axes.plot(*validation, color=RED, marker="o", markersize=4.5, linewidth=1.0, label="validation")
        last_step, last_loss = float(validation[0][-1]), float(validation[1][-1])
        perplexity = f"\nperplexity {np.exp(last_loss):.4g}" if last_loss < 20 else ""
        axes.annotate(
            f"{last_loss:.3f}{perplexity}",
            (last_step, last_loss),
            xytext=(-4, 12),
            textcoords="offset points",
            ha="right",
            color=RED,
            fontsize=9,
        )
    axes.set_ylabel("loss (nats per token)")
    _style(axes)
    if len(loss) or len(validation[0]):
        axes.legend(frameon=False, loc="upper right", fontsize=9)


def _draw_learning_rate(axes: "Axes", rate: Points) -> None:
    axes.plot(*rate, color=GREY, linewidth=1.4)
    axes.set_ylabel("learning rate")
    axes.set_xlabel("optimizer step")
    axes.set_ylim(bottom=0)
    axes.ticklabel_format(axis="y", style="sci", scilimits=(-2, 2), useMathText=True)
    _style(axes)


def _style(axes: "Axes") -> None:
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.01)
    axes.tick_params(labelsize=9, color=GREY)
