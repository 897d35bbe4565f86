"""APOLLO: the whole gradient, scaled channel by channel (or as a whole) by what Adam does in a random projection of it.

    R = P G,    R~ = Adam's direction for R (moments of R only),    s_j = |R~_j| / |R_j|,    W <- W - lr alpha G diag(s)

for G (m, n) with m <= n, its channels j being the columns, and P (r, m) random, entries N(0, 1/r), drawn anew every
`gap` steps from a seed and kept meanwhile; for m > n all of it transposed. APOLLO-Mini is r = 1 with one s for the
whole matrix, |R~| / |R|, and alpha = sqrt(128). The scaled gradient may grow by no more than 1 % a step in norm (Fira's
limiter, which the paper takes over). So every update has full rank. The state is 2 r max(m, n) numbers a matrix; P, r
min(m, n) numbers, is held beside it and not saved.

Written from the paper, Zhu et al. 2024 (arXiv 2412.05270), algorithm 1 and section 4, for its published code may not be
used (CC BY-NC), and the one in pytorch_optimizer 4.1 is another rule: it scales the *projected* gradient and projects
that back, so that an update has rank r.
"""

import math
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from switchlora.baselines.limiter import limited_
from switchlora.closures import loss_of
from switchlora.draws import key
from switchlora.rules import AdamW


class Apollo(Optimizer):
    """APOLLO on matrices.

    Args:
        params: matrices, or groups of them.
        lr: learning rate.
        r: rank of the projection.
        alpha: scale of the update; 1 for APOLLO, sqrt(128) for APOLLO-Mini.
        gap: steps for which a projection is kept.
        per_channel: one s for each channel; False: one for the matrix.
        betas, eps: of Adam in the projected space.
        weight_decay: decoupled, times the learning rate.
        seed: of the projections.
    """

    def __init__(
        self,
        params: Iterable[Any],
        *,
        lr: float,
        r: int,
        alpha: float = 1.0,
        gap: int = 200,
        per_channel: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        seed: int = 0,
    ) -> None:
        defaults = {
            "lr": lr, "r": r, "alpha": alpha, "gap": gap, "per_channel": per_channel, "betas": betas, "eps": eps,
            "weight_decay": weight_decay, "seed": seed,
        }  # fmt: skip
        super().__init__(params, defaults)
        self._drawn: dict[Tensor, tuple[int, Tensor]] = {}  # period and projection; no state, see `draw`

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Of a copy, and on loading a state: what was drawn is drawn again."""
        super().__setstate__(state)
        self._drawn = {}

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all matrices that have gradients."""
        loss = loss_of(closure)
        for group in self.param_groups:
            for number, parameter in enumerate(group["params"]):
                if parameter.grad is not None:
                    self._move(parameter, group, number)
        return loss

    def _move(self, parameter: Tensor, group: dict[str, Any], number: int) -> None:
        tall = parameter.shape[0] > parameter.shape[1]
        grad = (parameter.grad.T if tall else parameter.grad).float()  # type: ignore[union-attr]  # (m, n), m <= n
        state = self.state[parameter]
        if not state:
            state["step"] = 0  # a number, not a tensor, which in a dry run would have no value
            for name in AdamW.moments:
                state[name] = grad.new_zeros(min(group["r"], len(grad)), grad.shape[1])
            state["norm"] = grad.new_zeros(())
        step = int(state["step"])
        state["step"] = step + 1
        projected = self._projection(parameter, group, number, step // group["gap"]).to(grad) @ grad
        rule = AdamW(group["betas"], group["eps"])
        size, eps = (float(one) for one in rule.coefficients(np.array(step + 1), 1.0))
        direction = rule.change(projected, [state[name] for name in AdamW.moments], -size, eps)
        dim = 0 if group["per_channel"] else None
        scale = torch.linalg.vector_norm(direction, dim=dim) / (torch.linalg.vector_norm(projected, dim=dim) + 1e-8)
        update = limited_(grad * scale, state["norm"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_((update.T if tall else update).to(parameter.dtype), alpha=-group["lr"] * group["alpha"])

    def _projection(self, parameter: Tensor, group: dict[str, Any], number: int, period: int) -> Tensor:
        """P (r, m), drawn when a period begins."""
        drawn_for, P = self._drawn.get(parameter, (-1, parameter))
        if drawn_for != period:
            P = draw(group["seed"], number, period, group["r"], min(parameter.shape)).to(parameter.device)
            self._drawn[parameter] = (period, P)
        return P


def draw(seed: int, number: int, period: int, r: int, m: int) -> Tensor:
    """A projection, a function of (seed, which matrix, period), so that it need not be saved."""
    r = min(r, m)
    generator = torch.Generator().manual_seed(key(seed, f"matrix {number}", "projection", period) % 2**63)
    return torch.randn(r, m, generator=generator) / math.sqrt(r)
