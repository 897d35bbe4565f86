"""The interactive figures of spectrum.html, as plain dictionaries for plotly.js.

A model has one colour throughout and one entry in the legend, which shows and hides it in all panels of a figure.
"""

import html
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from switchlora.report.compare_figures import COLOURS, LAYOUT
from switchlora.report.spectrum_shapes import bin_edges, histogram, mean_spectrum, types_in, values_of

Model = Mapping[str, Any]
Figure = dict[str, Any]
COLUMNS, ROW_PIXELS = 4, 250


def histograms(models: Sequence[Model], kind: str) -> Figure:
    """Percent of singular values per logarithmic bin, a panel for each layer type."""

    def trace(model: Model, type: str) -> Figure | None:
        edges = bin_edges(models, kind, type)
        if not len(edges):
            return None
        shares = histogram(model, kind, type, edges)
        return {
            "x": edges.tolist(),
            "y": [*shares.tolist(), float(shares[-1])],
            "line": {"shape": "hv", "width": 1.6},
            "hovertemplate": "%{y:.1f} % from %{x:.3g}<extra>%{fullData.name}</extra>",
        }

    return _panels(models, kind, trace, x={"type": "log"}, y={"rangemode": "tozero", "ticksuffix": " %"})


def spectra(models: Sequence[Model], kind: str) -> Figure:
    """The k-th largest singular value against k, geometric mean over layers, a panel for each layer type."""

    def trace(model: Model, type: str) -> Figure | None:
        if not len(bin_edges(models, kind, type)):
            return None
        places, values = mean_spectrum(model, kind, type)
        return {
            "x": places.tolist(),
            "y": [value if value > 0 else None for value in values.tolist()],
            "line": {"width": 1.8},
            "hovertemplate": "%{y:.3g}, the %{x}th<extra>%{fullData.name}</extra>",
        }

    return _panels(models, kind, trace, x={"rangemode": "tozero"}, y={"type": "log", "exponentformat": "power"})


def ranks_by_depth(models: Sequence[Model], kind: str, number: str) -> Figure:
    """Effective or stable rank of each layer against the block it is in, a panel for each layer type."""

    def trace(model: Model, type: str) -> Figure | None:
        layers = [layer for layer in model["layers"] if layer["type"] == type and layer[kind] is not None]
        ranks = [layer[kind][number] for layer in layers]
        return {
            "mode": "lines+markers",
            "x": [place if layer["depth"] is None else layer["depth"] for place, layer in enumerate(layers)],
            "y": [rank if rank == rank else None for rank in ranks],
            "line": {"width": 1.6},
            "hovertemplate": "%{y:.1f} in block %{x}<extra>%{fullData.name}</extra>",
        }

    return _panels(models, kind, trace, x={"dtick": None}, y={"rangemode": "tozero"})


def _panels(
    models: Sequence[Model], kind: str, trace: Callable[[Model, str], Figure | None], *, x: Figure, y: Figure
) -> Figure:
    types = types_in(models, kind)
    rows = -(-len(types) // COLUMNS)
    columns = min(COLUMNS, len(types))
    traces: list[Figure] = []
    axes: Figure = {}
    titles: list[Figure] = []
    for panel, type in enumerate(types):
        suffix = "" if panel == 0 else str(panel + 1)
        axes[f"xaxis{suffix}"] = {"gridcolor": "#eee", "tickfont": {"size": 10}, **x}
        axes[f"yaxis{suffix}"] = {"gridcolor": "#eee", "tickfont": {"size": 10}, **y}
        titles.append(
            {
                "text": html.escape(type, quote=False),
                "xref": f"x{suffix} domain",
                "yref": f"y{suffix} domain",
                "x": 0.5,
                "y": 1.13,
                "showarrow": False,
                "font": {"size": 13},
            }
        )
        for place, model in enumerate(models):
            drawn = trace(model, type) if values_of(model, kind, type) else None
            if drawn is None:
                continue
            colour = COLOURS[place % len(COLOURS)]
            traces.append(
                {
                    "type": "scatter",
                    "mode": "lines",
                    "name": html.escape(model["label"], quote=False),
                    "legendgroup": model["label"],
                    "showlegend": model["label"] not in {one["legendgroup"] for one in traces},
                    "xaxis": f"x{suffix}",
                    "yaxis": f"y{suffix}",
                    **drawn,
                    "line": {**drawn["line"], "color": colour},
                }
            )
    layout = {
        **LAYOUT,
        **axes,
        "height": 110 + ROW_PIXELS * rows,
        "grid": {"rows": rows, "columns": columns, "pattern": "independent", "ygap": 0.32},
        "annotations": titles,
        "legend": {"orientation": "h", "y": -0.12, "groupclick": "togglegroup"},
    }
    return {"data": traces, "layout": layout}
