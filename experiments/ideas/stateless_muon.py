"""Full-rank Muon without momentum: the gradient, orthogonalised, and no optimizer state on the hidden matrices.

The control for `polar`: what does the orthogonalised gradient do alone? Near it are SWAN (arXiv 2412.13148),
which normalises rows first, and spectral descent.
"""

from collections.abc import Callable
from typing import Any

import torch

from switchlora.closures import loss_of
from switchlora.methods.muon import MuonMethod
from switchlora.methods.parameters import groups_of, with_adamw
from switchlora.muon import scaled


class Polar(torch.optim.Optimizer):
    """W <- W - lr (O(G) 0.2 sqrt(max(rows, columns)) + weight_decay W), see `switchlora.muon`."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all matrices that have gradients."""
        loss = loss_of(closure)
        for group in self.param_groups:
            for W in group["params"]:
                if W.grad is not None:
                    W.mul_(1 - group["lr"] * group["weight_decay"]).sub_(scaled(W.grad), alpha=group["lr"])
        return loss


class StatelessMuon(MuonMethod):
    """See `switchlora.methods.protocol.Method`."""

    name = "stateless-muon"

    def optimizer(self, model: Any, options: Any) -> Any:
        """`Polar` for the hidden matrices, AdamW for the rest."""
        hidden, *others = groups_of(model, options)
        polar = Polar([hidden], {"lr": options.lr, "weight_decay": options.weight_decay})
        return with_adamw(polar, others, options)


METHOD = StatelessMuon()
