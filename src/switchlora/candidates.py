"""Where the vectors wait that are not active at the moment.

`Pool` keeps c = min(m, n) vectors per layer and side, in host memory by default: they are touched a few rows
at a time, so they need not occupy the device. What is switched out goes back with its trained value. The row of
a vector that is live holds a stale copy until the vector is switched out.

`Fresh` stores nothing: what is switched in is drawn anew from the initial distribution, what is switched out is
dropped.

Neither makes the host wait for the device: rows on their way to a pool in host memory are received in pinned
memory and filed when the pool is next touched, behind the event that says they have arrived.
"""

import dataclasses
from typing import Protocol

import torch
from torch import Tensor

from switchlora import draws
from switchlora.initialisation import draw_candidates, vector_bounds
from switchlora.layer import SwitchLoraLinear


class Candidates(Protocol):
    """A source of vectors for one side of one layer."""

    def swap(self, vectors: Tensor, slots: Tensor, outgoing: Tensor, incoming: Tensor, step: int) -> None:
        """Exchange active vectors for candidates, in place.

        Args:
            vectors: (r, length), the active vectors as rows.
            slots: (k,) int64 on the device of `vectors`: which of them go.
            outgoing: (k,) int64 on the host: their numbers as candidates.
            incoming: (k,) int64 on the host: the candidates that take their places.
            step: of the optimizer.
        """

    def settle(self) -> None:
        """Wait until every row that is on its way has been filed."""


class Pool:
    """Candidates kept in a tensor (c, length), whose home is the optimizer's state."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor
        self._arriving: list[tuple[Tensor, Tensor, torch.cuda.Event]] = []

    def swap(self, vectors: Tensor, slots: Tensor, outgoing: Tensor, incoming: Tensor, step: int) -> None:
        """See `Candidates`."""
        self.settle()
        here = self.tensor.device
        taken = self.tensor[incoming.to(here, non_blocking=True)]
        if vectors.is_cuda and here.type == "cpu":
            taken = taken.pin_memory()  # else the copy to the device would make the host wait
        taken = taken.to(vectors.device, non_blocking=True)
        leaving = vectors[slots]
        if leaving.is_cuda and here.type == "cpu":
            landing = torch.empty(leaving.shape, dtype=leaving.dtype, pin_memory=True)
            landing.copy_(leaving, non_blocking=True)
            arrived = torch.cuda.Event()  # type: ignore[no-untyped-call]
            arrived.record()
            self._arriving.append((outgoing, landing, arrived))
        else:
            self.tensor[outgoing.to(here, non_blocking=True)] = leaving.to(here, non_blocking=True)
        vectors[slots] = taken

    def settle(self) -> None:
        """See `Candidates`."""
        while self._arriving:
            index, rows, arrived = self._arriving.pop(0)
            arrived.synchronize()
            self.tensor[index] = rows


@dataclasses.dataclass(frozen=True)
class Fresh:
    """Candidates drawn when they are needed, a function of (seed, layer name, side, step, slot)."""

    seed: int
    name: str
    side: str
    bound: float

    def swap(self, vectors: Tensor, slots: Tensor, outgoing: Tensor, incoming: Tensor, step: int) -> None:
        """See `Candidates`; the candidates' numbers play no part."""
        key = draws.key(self.seed, self.name, f"fresh vectors of {self.side}", step)
        vectors[slots] = draws.uniform_vectors(key, slots, vectors.shape[1], self.bound, vectors.dtype)

    def settle(self) -> None:
        """See `Candidates`."""


def new_pool(layer: SwitchLoraLinear, side: str, num: int, slots: Tensor, device: torch.device) -> Tensor:
    """The pool of a layer's side at the start, (num, length): initial draws, and the active vectors in their slots."""
    vectors = (layer.lora_A if side == "A" else layer.lora_B.T).detach()
    bounds = vector_bounds(layer.out_features, layer.in_features, layer.r, layer.init_lora_weights)
    rows = torch.arange(num, device=device)
    pool = draw_candidates(layer.seed, layer.name, side, rows, vectors.shape[1], bounds[side], vectors.dtype)
    pool[slots.to(device)] = vectors.to(device)
    return pool
