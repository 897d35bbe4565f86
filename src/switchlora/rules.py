"""Update rules for vectors: pure functions of a gradient and a state, wide inside, in place where they can be.

A vector that was reset starts again at step 0, so bias correction is per vector. It is folded into two numbers a
vector, computed on the host in float64 (`adamw_coefficients`), so that a pass over the numbers themselves is

    m <- lerp(m, g, 1 - beta1),    v <- beta2 v + (1 - beta2) g^2,    change = size * m / (sqrt(v) + eps'),

with size = -lr sqrt(1 - beta2^t) / (1 - beta1^t) and eps' = eps sqrt(1 - beta2^t): Adam's step with one division.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

Counts = np.ndarray[tuple[int, ...], np.dtype[np.signedinteger]]
Floats = np.ndarray[tuple[int, ...], np.dtype[np.float64]]


class Rule(Protocol):
    """How one parameter moves.

    Attributes:
        moments: the names of its moments in the optimizer's state, each shaped as the parameter.
        elementwise: whether a vector moves as if the others were not there.
    """

    @property
    def moments(self) -> tuple[str, ...]: ...

    @property
    def elementwise(self) -> bool: ...

    def coefficients(self, step: Counts, lr: float) -> tuple[Floats, Floats]:
        """`size` and `eps` of each vector, float64, shaped as `step`: the number of this step for each, from 1."""

    def follow(self, grad: Tensor, moments: Sequence[Tensor]) -> None:
        """The moments take in a gradient, in place, by which the parameter does not move; see `change`."""

    def change(
        self,
        grad: Tensor,
        moments: Sequence[Tensor],
        size: Tensor | float,
        eps: Tensor | float,
    ) -> Tensor:
        """What is to be added to the parameter; the moments are updated in place, as `follow` does.

        Args:
            grad: any shape, in the dtype of the computation; stays as it is.
            moments: of the same shape and dtype.
            size, eps: from `coefficients`, broadcastable: (r, 1) for A, (1, r) for B, a number for other parameters.

        Returns:
            a new tensor, same shape.
        """


@dataclasses.dataclass(frozen=True)
class AdamW:
    """See the head of this file."""

    betas: tuple[float, float]
    epsilon: float
    moments: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    elementwise: ClassVar[bool] = True

    def coefficients(self, step: Counts, lr: float) -> tuple[Floats, Floats]:
        """See `Rule`."""
        return adamw_coefficients(step, lr, self.betas, self.epsilon)

    def follow(self, grad: Tensor, moments: Sequence[Tensor]) -> None:
        """See `Rule`."""
        exp_avg, exp_avg_sq = moments
        follow_(grad, exp_avg, exp_avg_sq, self.betas)

    def change(
        self,
        grad: Tensor,
        moments: Sequence[Tensor],
        size: Tensor | float,
        eps: Tensor | float,
    ) -> Tensor:
        """See `Rule`."""
        exp_avg, exp_avg_sq = moments
        return adamw_(grad, exp_avg, exp_avg_sq, size, eps, self.betas)


def bias_corrections(step: Counts, betas: tuple[float, float]) -> tuple[Floats, Floats]:
    """1 - beta^step for both betas, float64, exact to the last bits at any step count (-expm1(t ln beta))."""
    first, second = (-np.expm1(step * math.log(beta)) if beta else np.ones(np.shape(step)) for beta in betas)
    return first, second


def adamw_coefficients(step: Counts, lr: float, betas: tuple[float, float], eps: float) -> tuple[Floats, Floats]:
    """size and eps' of each vector, float64, shaped as `step`.

    Args:
        step: the number of this step for each vector, from 1.
        lr, betas, eps: of AdamW.
    """
    first, second = bias_corrections(step, betas)
    root = np.sqrt(second)
    return -lr * root / first, eps * root


def follow_(grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, betas: tuple[float, float]) -> None:
    """AdamW's moments take in a gradient, in place; see `adamw_`."""
    exp_avg.lerp_(grad, 1 - betas[0])
    exp_avg_sq.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])


def adamw_(
    grad: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    size: Tensor | float,
    eps: Tensor | float,
    betas: tuple[float, float],
) -> Tensor:
    """AdamW's change of a parameter; the moments are updated in place.

    Args:
        grad: any shape, in the dtype of the computation; stays as it is.
        exp_avg, exp_avg_sq: m and v, same shape and dtype.
        size, eps: from `adamw_coefficients`, broadcastable: (r, 1) for A, (1, r) for B, a number for other parameters.
        betas: decay rates of m and v.

    Returns:
        what is to be added to the parameter, same shape, a new tensor.

    Source: Kingma & Ba 2015 (arXiv 1412.6980), with torch.optim.AdamW's placing of eps.
    """
    follow_(grad, exp_avg, exp_avg_sq, betas)
    change = exp_avg_sq.sqrt().add_(eps)
    return torch.div(exp_avg, change, out=change).mul_(size)
