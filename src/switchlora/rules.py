"""Update rules for vectors: pure functions of a gradient and a state, wide inside, in place where they can be.

A vector that was reset starts again at step 0, so bias correction is per vector. It is folded into two numbers a
vector, computed on the host in float64 (`AdamW.coefficients`), so that a pass over the numbers themselves is

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
    """See the head of this file.

    Attributes:
        betas: decay rates of m and v.
        epsilon: eps.

    Source: Kingma & Ba 2015 (arXiv 1412.6980), with torch.optim.AdamW's placing of eps.
    """

    betas: tuple[float, float]
    epsilon: float
    moments: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    elementwise: ClassVar[bool] = True

    def coefficients(self, step: Counts, lr: float) -> tuple[Floats, Floats]:
        """See `Rule`."""
        first, second = bias_corrections(step, self.betas)
        root = np.sqrt(second)
        return -lr * root / first, self.epsilon * root

    def follow(self, grad: Tensor, moments: Sequence[Tensor]) -> None:
        """See `Rule`."""
        exp_avg, exp_avg_sq = moments
        exp_avg.lerp_(grad, 1 - self.betas[0])
        exp_avg_sq.mul_(self.betas[1]).addcmul_(grad, grad, value=1 - self.betas[1])

    def change(
        self,
        grad: Tensor,
        moments: Sequence[Tensor],
        size: Tensor | float,
        eps: Tensor | float,
    ) -> Tensor:
        """See `Rule`."""
        self.follow(grad, moments)
        exp_avg, exp_avg_sq = moments
        change = exp_avg_sq.sqrt().add_(eps)
        return torch.div(exp_avg, change, out=change).mul_(size)


def bias_corrections(step: Counts, betas: tuple[float, float]) -> tuple[Floats, Floats]:
    """1 - beta^step for both betas, float64, exact to the last bits at any step count (-expm1(t ln beta))."""
    first, second = (-np.expm1(step * math.log(beta)) if beta else np.ones(np.shape(step)) for beta in betas)
    return first, second
