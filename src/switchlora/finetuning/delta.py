"""A sparse difference to a checkpoint: one safetensors file of indices and values, and the new head as a whole.

It belongs to the very weights that it was made from: a checksum of them is in its header, and another checkpoint is
refused. Another checksum is of the file's own content.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from switchlora.errors import UserError
from switchlora.finetuning.models import is_head
from switchlora.machine.files import let_others_read, temporary_beside
from switchlora.options.values import show
from switchlora.training.presets import first_line

FORMAT = "switchlora delta 3"


@dataclasses.dataclass(frozen=True)
class Delta:
    """What a file holds.

    Attributes:
        path: of the file, for messages.
        tensors: `indices:NAME` (k,) into the flattened tensor and `values:NAME` (k,), or `whole:NAME`.
        about: plain data: task, seed, epsilon, silo, and the name of the checkpoint.
        seed: `checksum` of the weights that it was made from.
    """

    path: str
    tensors: Mapping[str, Tensor]
    about: dict[str, Any]
    seed: str


def checksum(weights: Mapping[str, Tensor]) -> str:
    """A hash of names, formats and values."""
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.view(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def write_delta(path: Path, seed: Mapping[str, Tensor], trained: Mapping[str, Tensor], about: Mapping[str, Any]) -> int:
    """Write what differs, in one step.

    Args:
        seed: the checkpoint's weights by name; trained: the same after training, and the new head.
        about: plain data that goes with it, such as the task.

    Returns:
        the size of the file in bytes.
    """
    from safetensors.torch import save_file

    tensors: dict[str, Tensor] = {}
    for name, tensor in trained.items():
        new = tensor.detach().cpu()
        if name not in seed:
            tensors[f"whole:{name}"] = new.contiguous()
            continue
        old = seed[name].cpu().reshape(-1)
        which = (new.reshape(-1) != old).nonzero()[:, 0]
        if len(which):
            tensors[f"indices:{name}"] = which.to(torch.int32 if new.numel() < 2**31 else torch.int64)
            tensors[f"values:{name}"] = new.reshape(-1)[which].contiguous()
    header = {"seed": checksum(seed), "about": json.dumps(dict(about))}
    header["whole"] = _checksum_of_all(tensors, header)
    # One entry: safetensors writes several of them in any order, and the same delta would not be the same file.
    one_entry = {FORMAT: json.dumps(header)}
    temporary = temporary_beside(path)
    try:
        save_file(tensors, temporary, metadata=one_entry)
        let_others_read(temporary)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    return path.stat().st_size


def read_delta(path: str) -> Delta:
    """The delta of a file.

    Raises:
        UserError: no such file, not one of ours, or a damaged one.
    """
    from safetensors import safe_open

    file = Path(path).expanduser()
    if not file.is_file():
        raise UserError(
            f"--apply-delta {show(path)}: no such file; give delta.safetensors of a run with --method subset"
        )
    try:
        with safe_open(file, framework="pt") as opened:
            said = (opened.metadata() or {}).get(FORMAT)
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118  # no mapping
    except Exception as error:  # safetensors' own
        raise UserError(f"--apply-delta {show(path)}: cannot be read ({first_line(error)}); copy it again") from None
    if said is None:
        raise UserError(f"--apply-delta {show(path)}: is no delta of ours; give delta.safetensors of --method subset")
    try:
        header = json.loads(said)
        if header["whole"] != _checksum_of_all(tensors, header):
            raise ValueError
        return Delta(path, tensors, json.loads(header["about"]), header["seed"])
    except (ValueError, KeyError):
        raise UserError(f"--apply-delta {show(path)}: is damaged (its checksum is another); copy it again") from None


def _checksum_of_all(tensors: Mapping[str, Tensor], header: Mapping[str, str]) -> str:
    said = "\n".join(header.get(name, "") for name in ("seed", "about"))
    return checksum({**tensors, said: torch.empty(0)})


@torch.no_grad()
def apply_delta_(weights: Mapping[str, Tensor], delta: Delta) -> None:
    """Change a checkpoint's weights, and those of the new head, in place.

    Args:
        weights: of the classifier, by name, as the checkpoint has them.

    Raises:
        UserError: the weights are not those that the delta was made from.
    """
    if checksum({name: tensor for name, tensor in weights.items() if not is_head(name)}) != delta.seed:
        name = delta.about.get("checkpoint")
        raise UserError(
            f"--apply-delta {show(delta.path)}: was made from other weights than --checkpoint has (their checksums "
            f"differ); give the checkpoint that was fine-tuned{'' if name is None else f', then {show(name)}'}"
        )
    for entry, tensor in delta.tensors.items():
        kind, _, name = entry.partition(":")
        if kind == "whole":
            weights[name].copy_(tensor)
        elif kind == "indices":
            weights[name].view(-1)[tensor.long()] = delta.tensors[f"values:{name}"]
