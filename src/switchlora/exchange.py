"""Switched vectors change places with candidates, layer by layer: 4 of `switching`.

`kernels.exchange` does the factors' part of it by one launch, `distributed.scattered` where ranks share them out.
"""

import dataclasses

import torch
from torch import Tensor

from switchlora import switching
from switchlora.candidates import Candidates
from switchlora.transfers import by_layer


@dataclasses.dataclass
class DeviceVectors:
    """See `switching.Vectors`: the numbers of one side of some layers, as rows of length l."""

    factors: list[Tensor]  # each (r, l)
    candidates: Candidates | None  # None: this side is never switched
    first: int  # the number of the first of these layers in its group
    fused: bool = False  # by kernels

    def exchange(self, chosen: switching.Chosen, step: int) -> None:
        """See `switching.Vectors`."""
        assert self.candidates is not None
        layers, device = chosen.layers + self.first, self.factors[0].device
        arriving = self.candidates.take(layers, chosen.slots, chosen.incoming, step)
        if self.fused:
            from switchlora.kernels.exchange import exchange_

            leaving = exchange_(self.factors, chosen.layers, chosen.slots, arriving)
        else:
            leaving = torch.empty_like(arriving)
            for layer, place, slots in by_layer(chosen.layers, chosen.slots, device):
                leaving[place] = self.factors[layer][slots]
                self.factors[layer][slots] = arriving[place]
        self.candidates.put(layers, chosen.outgoing, leaving)
