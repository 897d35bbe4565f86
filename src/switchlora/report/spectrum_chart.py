"""spectrum.png: for W and for what training changed in it, by layer type: histograms above, sorted spectra below."""

import io
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from switchlora.report.compare_figures import COLOURS
from switchlora.report.spectrum_shapes import KINDS, bin_edges, histogram, mean_spectrum, types_in, values_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PANEL_INCHES, DOTS_PER_INCH = (2.3, 2.0), 120


def chart_png(models: Sequence[Mapping[str, Any]]) -> bytes:
    """The picture as the bytes of a PNG file."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kinds = [kind for kind in KINDS if types_in(models, kind)]
    types = list(dict.fromkeys(type for kind in kinds for type in types_in(models, kind)))
    rows, columns = 2 * len(kinds), len(types)
    size = (1.0 + PANEL_INCHES[0] * max(columns, 3), 0.6 + PANEL_INCHES[1] * rows)
    figure = Figure(figsize=size, dpi=DOTS_PER_INCH, layout="constrained")
    FigureCanvasAgg(figure)
    panels = figure.subplots(rows, columns, squeeze=False)
    for row, kind in enumerate(kinds):
        for column, type in enumerate(types):
            above, below = panels[2 * row][column], panels[2 * row + 1][column]
            _draw_histograms(above, models, kind, type)
            _draw_spectra(below, models, kind, type)
            above.set_title(f"{type}: {KINDS[kind]}", fontsize=9)
            if column == 0:
                above.set_ylabel("% of singular values", fontsize=8)
                below.set_ylabel("k-th singular value", fontsize=8)
    handles = [figure.add_artist(_sample(place)) for place in range(len(models))]
    labels = [model["label"] for model in models]
    figure.legend(handles, labels, loc="outside lower center", ncols=min(len(models), 4), frameon=False, fontsize=9)
    with io.BytesIO() as content:
        figure.savefig(content, format="png")
        return content.getvalue()


def _draw_histograms(axes: "Axes", models: Sequence[Mapping[str, Any]], kind: str, type: str) -> None:
    edges = bin_edges(models, kind, type)
    for place, model in enumerate(models):
        if len(edges) and values_of(model, kind, type):
            axes.stairs(histogram(model, kind, type, edges), edges, color=_colour(place), linewidth=1.3)
    if len(edges):
        axes.set_xscale("log")
        _only_decades(axes.xaxis)
    _style(axes)


def _draw_spectra(axes: "Axes", models: Sequence[Mapping[str, Any]], kind: str, type: str) -> None:
    edges = bin_edges(models, kind, type)
    some = False  # positive: none is where one layer of the type is all zero
    for place, model in enumerate(models):
        if len(edges) and values_of(model, kind, type):
            k, sigma = mean_spectrum(model, kind, type)
            axes.plot(k, sigma, color=_colour(place), linewidth=1.3)
            some |= max(sigma) > 0
    if some:
        axes.set_yscale("log")
        _only_decades(axes.yaxis)
        axes.set_ylim(edges[0], edges[-1] * 1.3)
    axes.set_xlabel("k", fontsize=8)
    _style(axes)


def _only_decades(axis: Any) -> None:
    """Labels at powers of ten alone: on a short axis matplotlib would write one at every digit, over each other."""
    from matplotlib.ticker import LogLocator, NullFormatter

    axis.set_major_locator(LogLocator(subs=(1.0,)))
    axis.set_minor_formatter(NullFormatter())


def _sample(place: int) -> Any:
    from matplotlib.lines import Line2D

    return Line2D([], [], color=_colour(place), linewidth=2)


def _colour(place: int) -> str:
    return COLOURS[place % len(COLOURS)]


def _style(axes: "Axes") -> None:
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=7)
