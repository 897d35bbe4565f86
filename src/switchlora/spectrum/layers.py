"""The matrices of a model that training with factors would touch, by type: q_proj, k_proj, ..., down_proj.

A type is what a module is called below its block's number (`model.layers.3.self_attn.q_proj` -> `q_proj`), with as
much of the path as keeps two types apart (`attn.c_proj`, `mlp.c_proj` in GPT-2). Embeddings and the LM head are not
among them. Conv1D stores its weight as (n, m); singular values do not see a transposition, so it stays as it is.
"""

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING

from switchlora.conversion import hidden_linears

if TYPE_CHECKING:
    from torch import Tensor, nn


def matrices(model: "nn.Module") -> "dict[str, Tensor]":
    """The weights of all hidden linear layers by module name, in the model's order."""
    hidden = {id(linear) for linear in hidden_linears(model)}
    return {name: module.weight for name, module in model.named_modules() if id(module) in hidden}


def types_of(names: Iterable[str]) -> dict[str, str]:
    """The type of every module name: the shortest ending of its path below the block that no other type shares."""
    paths = {name: tuple(re.split(r"(?:^|\.)\d+\.", name)[-1].split(".")) for name in names}
    whole = set(paths.values())

    def shortest(path: tuple[str, ...]) -> str:
        for length in range(1, len(path)):
            if sum(other[-length:] == path[-length:] for other in whole) == 1:
                return ".".join(path[-length:])
        return ".".join(path)

    return {name: shortest(path) for name, path in paths.items()}


def depth_of(name: str) -> int | None:
    """The number of the block that a module is in, or None."""
    numbers = re.findall(r"(?:^|\.)(\d+)(?=\.)", name)
    return int(numbers[-1]) if numbers else None
