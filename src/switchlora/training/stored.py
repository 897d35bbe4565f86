"""Parameters that lie in files of safetensors, read one at a time: what `deferred` does for those that are drawn.

A rank of a model that is shared out needs its rows of every parameter, and never has more than one parameter whole.
"""

import dataclasses
import json
from pathlib import Path

import torch
from torch import Tensor, nn

from switchlora.data.network import hub_resolves
from switchlora.options.values import show
from switchlora.training.dense_shards import INDEX
from switchlora.training.presets import not_finite

SINGLE = "model.safetensors"


@dataclasses.dataclass(frozen=True)
class Stored:
    """A tensor in a file, in the place of `deferred.Recorded`."""

    path: Path
    name: str

    def value(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """The whole parameter, on the CPU, rounded to `dtype`; its shape is the file's.

        Raises:
            NonFiniteError: it is not finite.
        """
        from safetensors import safe_open

        with safe_open(self.path, framework="pt") as file:
            tensor: Tensor = file.get_tensor(self.name)
        if not bool(tensor.isfinite().all()):
            raise not_finite(f"--model {show(str(self.path.parent))}", self.name)
        return tensor.to(dtype)


def stored_parameters(folder: Path, model: nn.Module) -> dict[str, Stored] | None:
    """Where each parameter of a model lies; None unless all of its state is there under the same names and shapes.

    Tied weights lie there once, under any of their names. transformers renames and merges tensors of some models;
    these it has to load itself.
    """
    from safetensors import SafetensorError, safe_open

    first_names: dict[Tensor, str] = {}
    found: dict[str, Stored] = {}
    try:
        places = _places(folder)
        for path in set(places.values()):
            with safe_open(path, framework="pt") as file:
                for name, parameter in model.named_parameters(remove_duplicate=False):
                    first = first_names.setdefault(parameter, name)
                    if places.get(name) == path and tuple(file.get_slice(name).get_shape()) == tuple(parameter.shape):
                        if first in found:  # each name a tensor of its own, which may differ
                            return None
                        found[first] = Stored(path, name)
    except (OSError, ValueError, SafetensorError):  # the usual way says what is wrong
        return None
    names = {first_names.get(tensor, name) for name, tensor in model.state_dict(keep_vars=True).items()}
    return found if found.keys() == names else None


def hub_folder(name: str) -> Path | None:
    """The folder in which the hub's client keeps a model's safetensors, downloaded if they are not there yet."""
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError

    offline = not hub_resolves()
    try:
        try:
            files = set(_files(Path(hf_hub_download(name, INDEX, local_files_only=offline))).values())
        except EntryNotFoundError:  # also what is not among the local files
            files = {SINGLE}
        folders = {Path(hf_hub_download(name, file, local_files_only=offline)).parent for file in files}
    except Exception:  # the client's own, its transport's and plain ones; the usual way says what is wrong
        return None
    return folders.pop() if len(folders) == 1 else None


def _files(index: Path) -> dict[str, str]:
    """In which file of its folder each tensor is."""
    found: dict[str, str] = json.loads(index.read_text("utf-8"))["weight_map"]
    return found


def _places(folder: Path) -> dict[str, Path]:
    from safetensors import safe_open

    if (folder / INDEX).is_file():
        return {name: folder / file for name, file in _files(folder / INDEX).items()}
    with safe_open(folder / SINGLE, framework="pt") as file:
        return dict.fromkeys(file.keys(), folder / SINGLE)
