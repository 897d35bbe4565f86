"""Dynamic Subset Tuning (arXiv 2411.08610): after every update only the entries that moved farthest keep their values.

Of each silo S, a tensor or the whole model, the floor(epsilon |S|) entries that are farthest from the checkpoint stay
as the update left them; all others return to the checkpoint. An entry that was chosen once may be dropped later. What
is trained is so a sparse difference, a file of a few kilobytes (`delta`). What it does not save: gradients, optimizer
state and compute are those of full fine-tuning, and a copy of the checkpoint's weights comes on top.
"""

import math
from collections.abc import Mapping
from decimal import ROUND_CEILING, Decimal
from typing import Literal

import torch
from torch import Tensor

from switchlora.errors import UserError

Silo = Literal["tensor", "model"]


class Subset:
    """Holds parameters to few differences from what they are now.

    Args:
        parameters: by name; changed in place by `project_`.
        epsilon: part of each silo that may differ.
        silo: what a silo is.

    Raises:
        UserError: epsilon leaves less than one entry of a silo.
    """

    def __init__(self, parameters: Mapping[str, Tensor], epsilon: float, silo: str) -> None:
        self.parameters = dict(parameters)
        sizes = [p.numel() for p in self.parameters.values()]
        self.silos = [list(self.parameters)] if silo == "model" else [[name] for name in self.parameters]
        smallest = sum(sizes) if silo == "model" else min(sizes)
        if num_kept(epsilon, smallest) < 1:
            way_out = "" if silo == "model" else ", or --silo model"
            raise UserError(
                f"--epsilon {epsilon:g}: keeps less than one entry of {_named(self.parameters, silo)}; "
                f"the smallest is {_smallest(smallest)!r}{way_out}"
            )
        self.epsilon = epsilon
        self.seed = {name: p.detach().clone() for name, p in self.parameters.items()}

    @torch.no_grad()
    def project_(self) -> None:
        """Return all but the farthest entries to the checkpoint. Of equally far ones the first stay."""
        for names in self.silos:
            sizes = [self.parameters[name].numel() for name in names]
            keep = num_kept(self.epsilon, sum(sizes))
            for name, kept in zip(names, self._farthest(names, keep), strict=True):
                p, seed = self.parameters[name].view(-1), self.seed[name].view(-1)
                values = p[kept]
                p.copy_(seed)
                p[kept] = values

    def _farthest(self, names: list[str], keep: int) -> list[Tensor]:
        """The indices of the `keep` farthest entries of a silo, by tensor. Of each, `keep` are looked at."""
        distances = [(self.parameters[name] - self.seed[name]).abs().view(-1) for name in names]
        tops = [_top(distance, min(keep, distance.numel())) for distance in distances]
        candidates = torch.cat([distance[top] for distance, top in zip(distances, tops, strict=True)])
        chosen = torch.zeros(len(candidates), dtype=torch.bool, device=candidates.device)
        chosen[_top(candidates, keep)] = True
        parts = chosen.split([len(top) for top in tops])  # type: ignore[no-untyped-call]
        return [top[part] for top, part in zip(tops, parts, strict=True)]


def _top(values: Tensor, keep: int) -> Tensor:
    """The indices of the largest, ascending; of equal ones the first. torch.topk leaves that open."""
    if keep >= len(values):
        return torch.arange(len(values), device=values.device)
    least = values.topk(keep).values[-1]
    above = (values > least).nonzero()[:, 0]
    equal = (values == least).nonzero()[:, 0][: keep - len(above)]
    return torch.cat((above, equal)).sort().values


def _named(parameters: Mapping[str, Tensor], silo: str) -> str:
    if silo == "model":
        return f"the model's {sum(p.numel() for p in parameters.values())}"
    name = min(parameters, key=lambda name: parameters[name].numel())
    return f"{name}, which has {parameters[name].numel()}"


def num_kept(epsilon: float, size: int) -> int:
    """floor(epsilon * size), epsilon taken as the decimal number that it was written as."""
    return math.floor(Decimal(repr(float(epsilon))) * size)


def _smallest(size: int) -> float:
    """The least epsilon of at most six digits that keeps one of so many, rounded up."""
    exact = Decimal(1) / size
    unit = Decimal(1).scaleb(exact.adjusted() - 5)
    return float(exact.quantize(unit, rounding=ROUND_CEILING))
