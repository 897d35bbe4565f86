"""W_reference: another model, or the weights that a run began with.

A run keeps no copy of its first weights, and needs none: random weights are a function of (configuration, seed), drawn
in fp32 by the CPU's generator and rounded to the run's dtype (`training.models.random_model`). So `initial` builds them
again, with the configuration that the run exported. A run that went on from weights began with those, if they are still
where its options say. Equal to the bit under the versions of torch and transformers that made the run; under others
they very likely are, since torch keeps its CPU generator stable, and a warning tells.
"""

import json
from pathlib import Path
from typing import TYPE_CHECKING

from switchlora.errors import UserError
from switchlora.machine.console import print_warning
from switchlora.options.values import show
from switchlora.precision import stored_dtype
from switchlora.spectrum.layers import matrices
from switchlora.spectrum.options import INITIAL
from switchlora.trained.loading import load_config, load_model, require_checkpoint
from switchlora.trained.runs import run_options
from switchlora.training.folder import RESULT
from switchlora.training.models import random_model
from switchlora.training.options import PretrainOptions
from switchlora.training.presets import HUB_NAME, PRESETS, has_weights

if TYPE_CHECKING:
    from torch import Tensor

DECIDE_WEIGHTS = ("torch", "transformers")


def initial_matrices(checkpoint: str) -> "tuple[dict[str, Tensor], str]":
    """The weights of a run's hidden layers before its first step, by module name, and where they are from.

    Raises:
        UserError: not a run of switchlora pretrain, or one that went on from weights that are gone.
    """
    options = run_options(checkpoint)
    if options is None:
        raise UserError(
            f"--reference {INITIAL}: {show(checkpoint)} is no run of switchlora pretrain, so what it began with is not "
            "known; give a folder, or none"
        )
    source = _began_with(checkpoint, options)
    dtype = stored_dtype(options.dtype)
    if source is not None:
        return matrices(load_model(source, "--reference", dtype=dtype)), source
    _say_other_versions(checkpoint)
    config = load_config(checkpoint)
    return matrices(random_model(config, seed=options.seed, dtype=dtype)), f"{INITIAL} (seed {options.seed})"


def _began_with(checkpoint: str, options: PretrainOptions) -> str | None:
    """The weights that a run went on from, or None if it began with random ones.

    Raises:
        UserError: its --model is a path that is not there any more.
    """
    if options.model in PRESETS:
        return None
    for path in (Path(options.model).expanduser(), *_beside_the_run(checkpoint, options)):
        if path.exists():
            return str(path) if has_weights(str(path)) else None
    if HUB_NAME.fullmatch(options.model) and options.tokenizer == options.model:  # what resolve makes of a hub name
        return options.model
    raise UserError(
        f"--reference {INITIAL}: {show(checkpoint)} began with --model {show(options.model)}, which is not here, so "
        "whether that held weights cannot be told; start where that path exists, or give --reference FOLDER or none"
    )


def _beside_the_run(checkpoint: str, options: PretrainOptions) -> list[Path]:
    """Where a relative --model was, if the run's folder lies where it lay below the folder it was started in."""
    output = Path(options.output or "")
    folder = Path(checkpoint).expanduser().resolve()
    if output.is_absolute() or not output.parts or folder.parts[-len(output.parts) :] != output.parts:
        return []
    return [Path(*folder.parts[: -len(output.parts)]) / options.model]


def _say_other_versions(checkpoint: str) -> None:
    from importlib.metadata import version

    folder = require_checkpoint(checkpoint)
    assert folder is not None
    try:
        then = json.loads((folder / RESULT).read_bytes())["versions"]
    except (OSError, ValueError, KeyError):
        return
    now = {name: version(name) for name in DECIDE_WEIGHTS}
    other = [
        f"{name} {then[name]}, not {now[name]}"
        for name in DECIDE_WEIGHTS
        if str(then.get(name)).split("+")[0] != now[name].split("+")[0]
    ]
    if other:
        print_warning(f"{checkpoint}: was made with {', '.join(other)}; its initial weights may have been others")
