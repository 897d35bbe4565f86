"""Muon's rule for a factor: momentum, orthogonalised, so that every direction of an update is equally long.

    m <- lerp(m, g, 1 - mu),    u = lerp(g, m, mu) (Nesterov),    change = size * 0.2 sqrt(max(rows, columns)) * O(u),

where O(u) = U V^T for u = U S V^T, by five Newton-Schulz steps. The factor 0.2 sqrt(max(rows, columns)) gives an update
the root mean square that AdamW's has as a rule, so that learning rates mean the same. There is one moment, not two. A
vector that was reset has no momentum left, and while it rests it has no gradient: its row (of A; column of B) of u is
zero and takes no part in O.

Source: Jordan et al. 2024 (kellerjordan.github.io/posts/muon), with the scale of Liu et al. 2025 (arXiv 2502.16982).
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from switchlora.rules import AdamW, Counts, Floats, Rule

COEFFICIENTS = (3.4445, -4.7750, 2.0315)  # of Jordan et al.: singular values end up in about [0.7, 1.2]
STEPS = 5
EPS = 1e-7
RMS = 0.2


@dataclasses.dataclass(frozen=True)
class Muon:
    """See the head of this file, and `rules.Rule`."""

    momentum: float
    moments: ClassVar[tuple[str, ...]] = ("momentum_buffer",)
    elementwise: ClassVar[bool] = False

    def coefficients(self, step: Counts, lr: float) -> tuple[Floats, Floats]:
        """See `rules.Rule`. No bias is to be corrected, and no eps is needed."""
        return np.full(step.shape, -lr), np.zeros(step.shape)

    def follow(self, grad: Tensor, moments: Sequence[Tensor]) -> None:
        """See `rules.Rule`."""
        update_momentum_(grad, moments[0], self.momentum)

    def change(
        self,
        grad: Tensor,
        moments: Sequence[Tensor],
        size: Tensor | float,
        eps: Tensor | float,
    ) -> Tensor:
        """See `rules.Rule`."""
        return self.scaled(nesterov_(grad, moments[0], self.momentum)).mul_(size)

    def scaled(self, update: Tensor) -> Tensor:
        """O(u) 0.2 sqrt(max(rows, columns)); new."""
        return scaled(update)


def rule_of(settings: dict[str, Any]) -> Rule:
    """The factors' rule, from the optimizer's group of them: Muon where it names a momentum, else AdamW."""
    if "momentum" in settings:
        return Muon(float(settings["momentum"]))
    return AdamW(settings["betas"], settings["eps"])


def muon_(grad: Tensor, momentum_buffer: Tensor, momentum: float) -> Tensor:
    """O(u) 0.2 sqrt(max(rows, columns)), to be multiplied by -lr; the momentum is updated in place.

    Args:
        grad: (rows, columns), in the dtype of the computation; stays as it is.
        momentum_buffer: m, of the same shape and dtype.
        momentum: mu.

    Returns:
        a new tensor of the same shape.
    """
    return scaled(nesterov_(grad, momentum_buffer, momentum))


def scaled(update: Tensor) -> Tensor:
    """O(u) 0.2 sqrt(max(rows, columns)) of u (rows, columns); new."""
    return orthogonalise(update).mul_(RMS * math.sqrt(max(update.shape)))


def nesterov_(grad: Tensor, momentum_buffer: Tensor, momentum: float) -> Tensor:
    """u, with the momentum updated in place; see `muon_`."""
    update_momentum_(grad, momentum_buffer, momentum)
    return grad.lerp(momentum_buffer, momentum)


def update_momentum_(grad: Tensor, momentum_buffer: Tensor, momentum: float) -> None:
    """The momentum takes in a gradient, in place."""
    momentum_buffer.lerp_(grad, 1 - momentum)


def orthogonalise(matrix: Tensor) -> Tensor:
    """O(matrix): nearly U V^T of its singular value decomposition U S V^T; zero for zero. (rows, columns), new.

    In bfloat16 on an accelerator, where that is fast and enough; in the matrix's own dtype on the CPU, where bfloat16
    products are slow.
    """
    wide = matrix.T if matrix.shape[0] > matrix.shape[1] else matrix
    X = wide.to(torch.bfloat16, copy=True) if wide.is_cuda else wide.clone()
    X /= X.norm().clamp(min=EPS)
    for _ in range(STEPS):
        X = newton_schulz(X, X @ X.T)
    X = X.to(matrix.dtype)
    return X.T if matrix.shape[0] > matrix.shape[1] else X


def newton_schulz(X: Tensor, gram: Tensor) -> Tensor:
    """One step: a X + (b gram + c gram^2) X, where gram (rows, rows) is X X^T, X (rows, columns) whole."""
    a, b, c = COEFFICIENTS
    return torch.addmm(X, torch.addmm(gram, gram, gram, beta=b, alpha=c), X, beta=a)
