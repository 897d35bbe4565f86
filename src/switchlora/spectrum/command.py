"""`switchlora spectrum` from options to files: load, subtract, decompose, one JSON, one page, one picture.

One model is in memory at a time, and one copy of the reference's matrices. A matrix of m x n takes about
4 m n min(m, n) FLOPs in float64: a second or so for a model of ten million weights on one CPU core, and work for a GPU
(`--device cuda`) from a billion on.
"""

import math
import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from switchlora.errors import UserError
from switchlora.machine import description, devices
from switchlora.machine.console import say
from switchlora.machine.files import atomic_write_bytes, atomic_write_json, writing
from switchlora.options.values import show
from switchlora.spectrum.layers import depth_of, matrices, types_of
from switchlora.spectrum.measures import measured
from switchlora.spectrum.options import INITIAL, NO_REFERENCE, SpectrumOptions
from switchlora.spectrum.reference import initial_matrices
from switchlora.trained.loading import load_model, require_checkpoint
from switchlora.trained.output import output_folder
from switchlora.trained.runs import labels_of, run_options
from switchlora.training.export import command

if TYPE_CHECKING:
    import torch
    from torch import Tensor

JSON, PAGE, PICTURE = "spectrum.json", "spectrum.html", "spectrum.png"
KINDS = ("weight", "change")
RANKS = ("effective_rank", "stable_rank")
NUMBERS = (*RANKS, "spectral_norm", "frobenius_norm")


def spectrum(options: SpectrumOptions) -> dict[str, Any]:
    """Run `switchlora spectrum`; see docs/spectrum.md.

    Returns:
        what spectrum.json holds.

    Raises:
        UserError: a model that is not there or not whole, a reference of another shape, or files that would be
            overwritten.
    """
    from switchlora.report.spectrum_page import page, require_packages

    require_packages()
    if not options.checkpoint:
        raise UserError("--checkpoint: must be given; name the output folder of a finished run")
    for name in options.checkpoint:
        require_checkpoint(name)
    output = output_folder(options.output, JSON, overwrite=options.overwrite)
    device = devices.choose_device(options.device)
    devices.set_threads(options.threads)
    references = References(options)
    models = []
    for name, label in zip(options.checkpoint, labels_of(options.checkpoint, options.labels), strict=True):
        say(f"{label}: {name}")
        models.append(_model(name, label, references, device))
    result = {"models": models, "command": command(), "config": options.to_dict(), **description.machine_record(device)}
    say(table(models))
    from switchlora.report.spectrum_chart import chart_png

    with writing("the spectra", output):
        output.mkdir(parents=True, exist_ok=True)
        atomic_write_bytes(output / PICTURE, chart_png(models))
        atomic_write_bytes(output / PAGE, page(result).encode("utf-8"))
        atomic_write_json(output / JSON, result)  # last: where it is, the folder is taken
    say(f"{output / JSON}, {output / PAGE}, {output / PICTURE}")
    return result


class References:
    """What each model is compared with. A reference that all share is loaded once."""

    def __init__(self, options: SpectrumOptions) -> None:
        self.asked = options.reference
        self.shared: dict[str, Tensor] | None = None
        if self.asked not in (None, INITIAL, NO_REFERENCE):
            require_checkpoint(self.asked, "--reference")

    def of(self, name: str) -> "tuple[dict[str, Tensor], str] | None":
        """Matrices by module name and where they are from, or None for no comparison.

        Raises:
            UserError: see `reference.initial_matrices`.
        """
        if self.asked == NO_REFERENCE:
            return None
        if self.asked is None and run_options(name) is None:
            say(f"{name}: is no run of switchlora pretrain and --reference is not given, so W alone is shown")
            return None
        if self.asked in (None, INITIAL):
            return initial_matrices(name)
        if self.shared is None:
            self.shared = matrices(load_model(self.asked, "--reference", needs_head=False))
        return self.shared, self.asked


def _model(name: str, label: str, references: References, device: "torch.device") -> dict[str, Any]:
    found = matrices(load_model(name, needs_head=False))
    reference = references.of(name)
    if reference is not None:
        _require_same_shapes(name, found, *reference)
    if not found:
        raise UserError(f"--checkpoint {show(name)}: has no linear layers to look into; give a causal language model")
    types = types_of(found)
    layers = []
    for layer, W in found.items():
        wide = W.detach().to(device).double()
        one: dict[str, Any] = {
            "name": layer,
            "type": types[layer],
            "depth": depth_of(layer),
            "m": W.shape[0],
            "n": W.shape[1],
        }
        one["weight"] = measured(wide)
        one["change"] = None if reference is None else measured(wide - reference[0][layer].detach().to(device).double())
        layers.append(one)
    return {
        "label": label,
        "checkpoint": name,
        "reference": None if reference is None else reference[1],
        "types": {kind: _by_type(layers, kind) for kind in KINDS if layers[0][kind] is not None},
        "layers": layers,
    }


def _by_type(layers: list[dict[str, Any]], kind: str) -> dict[str, dict[str, Any]]:
    """Means over the layers of a type, and how many there are.

    A layer that did not change at all has no rank, and counts in the means of norms alone; `num_with_rank` counts the
    others.
    """
    result: dict[str, dict[str, Any]] = {}
    for type in dict.fromkeys(layer["type"] for layer in layers):
        own = [layer[kind] for layer in layers if layer["type"] == type]
        ranked = [one for one in own if not math.isnan(one["effective_rank"])]
        result[type] = {"num_layers": len(own), "num_with_rank": len(ranked)}
        for number in NUMBERS:
            some = ranked if number in RANKS else own
            result[type][number] = statistics.fmean(one[number] for one in some) if some else math.nan
    return result


def _require_same_shapes(
    name: str, found: "Mapping[str, Tensor]", reference: "Mapping[str, Tensor]", whence: str
) -> None:
    for layer, W in found.items():
        other = reference.get(layer)
        if other is None or other.shape != W.shape:
            has = "lacks it" if other is None else f"has {tuple(other.shape)}"
            raise UserError(
                f"--reference {show(whence)}: is another model than {show(name)}, whose {layer} is {tuple(W.shape)} "
                f"(the reference {has}); give a model of the same shape, or none"
            )


def table(models: list[dict[str, Any]]) -> str:
    """Effective and stable ranks by type, for the terminal: means over layers."""
    lines = []
    for kind, title in zip(KINDS, ("W", "W - W_reference"), strict=True):
        shown = [model for model in models if kind in model["types"]]
        if not shown:
            continue
        types = list(dict.fromkeys(type for model in shown for type in model["types"][kind]))
        lines += ["", f"{title}: effective rank / stable rank, mean over layers"]
        width = max(len(model["label"]) for model in shown)
        lines.append(f"{'':{width}}  " + "  ".join(f"{type:>15}" for type in types))
        for model in shown:
            cells = [_cell(model["types"][kind].get(type)) for type in types]
            lines.append(f"{model['label']:{width}}  " + "  ".join(f"{cell:>15}" for cell in cells))
    return "\n".join(lines)


def _cell(found: Mapping[str, float] | None) -> str:
    return "" if found is None else f"{found['effective_rank']:.1f} / {found['stable_rank']:.1f}"
