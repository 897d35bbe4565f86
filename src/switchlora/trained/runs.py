"""What the folder of a finished model says of the run that made it, if it was one of ours."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from switchlora.errors import UserError
from switchlora.methods import method_named
from switchlora.options.values import show
from switchlora.training.folder import OPTIONS, RESULT
from switchlora.training.options import PretrainOptions


def run_options(checkpoint: str) -> PretrainOptions | None:
    """The options of the run whose output folder this is, or None for another model.

    Raises:
        UserError: they are damaged.
    """
    path = Path(checkpoint).expanduser() / OPTIONS
    try:
        return PretrainOptions.from_yaml(path) if path.is_file() else None
    except UserError as error:
        raise UserError(f"--checkpoint {show(checkpoint)}: its {OPTIONS} cannot be read ({error})") from None


def run_result(checkpoint: str) -> dict[str, Any]:
    """What result.json of the run says whose output folder this is; nothing where there is none that can be read."""
    try:
        found = json.loads((Path(checkpoint).expanduser() / RESULT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def labels_of(checkpoints: Sequence[str], labels: Sequence[str] | None) -> tuple[str, ...]:
    """One name for each model, no two alike: as given, else method, rank and seed of a run, else the folder's name."""
    if labels is not None:
        return tuple(labels)
    runs = [run_options(name) for name in checkpoints]
    folders = [Path(name).resolve().name if Path(name).exists() else name for name in checkpoints]
    seeds = {run.seed for run in runs if run is not None}
    found = []
    for run, folder in zip(runs, folders, strict=True):
        words = [folder] if run is None else [run.method, *([f"r={run.r}"] if run.r and _has_rank(run.method) else [])]
        found.append(" ".join([*words, *([f"seed {run.seed}"] if run is not None and len(seeds) > 1 else [])]))
    if len(set(found)) == len(found):
        return tuple(found)
    return tuple(folders if len(set(folders)) == len(folders) else checkpoints)


def _has_rank(method: str) -> bool:
    try:
        return "r" in method_named(method).uses
    except UserError:  # the file of a method of somebody's own, which a finished model no longer needs
        return False
