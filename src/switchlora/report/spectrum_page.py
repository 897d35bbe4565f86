"""spectrum.html: tables of ranks and figures of singular values, in one page that opens offline.

Every single singular value is in spectrum.json; the page holds what it draws, so that a model of a billion weights
still makes a page of a few megabytes.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any

from switchlora.errors import UserError, way_to_install
from switchlora.report import spectrum_figures as figures
from switchlora.report.page_parts import cell, number, table, text, whole_page
from switchlora.report.spectrum_shapes import KINDS, types_in

Model = Mapping[str, Any]
TITLE = "Singular values"
MEANING = {
    "weight": "The matrices as they are.",
    "change": "What lies between each matrix and its reference: what training did to it.",
}
NUMBERS = {"effective_rank": "effective rank", "stable_rank": "stable rank"}


def require_packages() -> None:
    """Before anything is computed.

    Raises:
        UserError: plotly is missing.
    """
    from importlib.util import find_spec

    if find_spec("plotly") is None:
        raise UserError(f"spectrum: needs plotly; {way_to_install('compare')}")


def page(result: Mapping[str, Any]) -> str:
    """The page as text, from what spectrum.json holds."""
    models = result["models"]
    kinds = [kind for kind in KINDS if types_in(models, kind)]
    drawn: dict[str, Any] = {}
    body = [f"<h1>{TITLE}</h1>", _models(models)]
    for kind in kinds:
        parts = {
            "histogram": ("Histogram (logarithmic bins; the lowest also holds all below it)", figures.histograms),
            "sorted": ("Sorted: the k-th largest, geometric mean over layers", figures.spectra),
        }
        body += [f"<h2>{KINDS[kind]}</h2>", f"<p>{MEANING[kind]}</p>", rank_table(models, kind)]
        for name, (title, draw) in parts.items():
            drawn[f"{kind}-{name}"] = draw(models, kind)
            body += [f"<h3>{title}</h3>", f'<div id="{kind}-{name}" class="figure"></div>']
        for rank, title in NUMBERS.items():
            drawn[f"{kind}-{rank}"] = figures.ranks_by_depth(models, kind, rank)
            body += [f"<h3>{title.capitalize()} by block</h3>", f'<div id="{kind}-{rank}" class="figure"></div>']
    shown = {key: value for key, value in result.items() if key != "models"}
    body += ["<h2>Configuration</h2>", f"<pre>{text(json.dumps(shown, indent=2))}</pre>"]
    return whole_page(TITLE, "\n".join(body), data=[_numbers(model, kinds) for model in models], figures=drawn)


def rank_table(models: Sequence[Model], kind: str) -> str:
    """Mean over layers of effective and stable rank, a line for each layer type and model."""
    head = ("layer type", "model", "layers", "m × n", "effective rank", "of min(m, n)", "stable rank", "spectral norm",
            "Frobenius norm")  # fmt: skip
    lines = []
    for type in types_in(models, kind):
        for model in models:
            found = model["types"].get(kind, {}).get(type)
            if found is not None:
                lines.append(_cells(model, type, found))
    return table(f"{kind}-ranks", head, lines)


def _cells(model: Model, type: str, found: Mapping[str, Any]) -> list[str]:
    sizes = sorted({(layer["m"], layer["n"]) for layer in model["layers"] if layer["type"] == type})
    effective, idle = _finite(found["effective_rank"]), found["num_layers"] - found["num_with_rank"]
    most = min(sizes[0]) if len(sizes) == 1 else None
    return [
        cell(type),
        cell(model["label"]),
        cell(str(found["num_layers"]) + (f", {idle} unchanged" if idle else "")),
        cell(", ".join(f"{m} × {n}" for m, n in sizes)),
        number(effective, "{:.1f}"),
        number(effective / most if effective is not None and most else None, "{:.1%}"),
        number(_finite(found["stable_rank"]), "{:.2f}"),
        number(found["spectral_norm"], "{:.4g}"),
        number(found["frobenius_norm"], "{:.4g}"),
    ]


def _models(models: Sequence[Model]) -> str:
    lines = [[cell(model["label"]), cell(model["checkpoint"]), cell(model["reference"] or "none")] for model in models]
    note = (
        '<p class="note">Effective rank: exp of the entropy of the singular values as shares of their sum (Roy &amp; '
        "Vetterli 2007). Stable rank: (Frobenius norm / spectral norm)². Both at most min(m, n). Means over the layers "
        "of a type; a layer that did not change has no rank. Embeddings and LM head are not among the layers.</p>"
    )
    return table("models", ("model", "folder", "W_reference"), lines) + note


def _numbers(model: Model, kinds: Sequence[str]) -> dict[str, Any]:
    """A model without its singular values; numbers that JSON cannot spell become null."""
    types = {
        kind: {type: {key: _finite(value) for key, value in found.items()} for type, found in by_type.items()}
        for kind, by_type in model["types"].items()
        if kind in kinds
    }
    return {"label": model["label"], "checkpoint": model["checkpoint"], "reference": model["reference"], "types": types}


def _finite(value: float) -> float | None:
    return value if value == value else None
