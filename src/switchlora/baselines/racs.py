"""RACS: the gradient, each row and each column divided by a scale, so that all are of one size; no moments.

    s <- (G∘G)^T q / |q|^2,    q <- (G∘G) s / |s|^2,    five times, from q = 1        s (n), q (m)

is a power iteration on the squared gradient G (m, n): q s^T is its best approximation of rank one. Moving averages of
both scale the gradient,

    G~ = diag(q)^(-1/2) G diag(s)^(-1/2),    W <- W - lr alpha G~,    |G~| growing by at most 1 % a step.

Twice the gradient is four times s and the same q, so the same G~: the update does not depend on the size of the
gradient. The averages start at 0 and are not corrected for it, so the first update is 1 / (1 - beta) times as large as
later ones will be; that is the paper's, and a warm-up takes care of it. State: m + n + 1 numbers a matrix.

Written from the paper, Gong et al. 2025 (arXiv 2502.07752), equation 16 and algorithm 1, for the one in
pytorch_optimizer 4.1 is another rule: without the iteration, it divides by the mean squares of rows *and* of columns,
both of which are of the size of G∘G, so that its update shrinks as the gradient grows.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from switchlora.baselines.limiter import limited_
from switchlora.closures import loss_of

NUM_ITERATIONS = 5
TINY = torch.finfo(torch.float32).tiny  # instead of zero, where a row or a column of the gradient is zero


class Racs(Optimizer):
    """RACS on matrices.

    Args:
        params: matrices, or groups of them.
        lr: learning rate.
        alpha: scale of the update.
        beta: of the moving averages.
        weight_decay: decoupled, times the learning rate.
    """

    def __init__(
        self, params: Iterable[Any], *, lr: float, alpha: float = 0.05, beta: float = 0.9, weight_decay: float = 0.0
    ) -> None:
        super().__init__(params, {"lr": lr, "alpha": alpha, "beta": beta, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of all matrices that have gradients."""
        loss = loss_of(closure)
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._move(parameter, group)
        return loss

    def _move(self, parameter: Tensor, group: dict[str, Any]) -> None:
        grad, state = parameter.grad.float(), self.state[parameter]  # type: ignore[union-attr]
        if not state:
            state["row_scale"], state["column_scale"] = grad.new_zeros(grad.shape[0]), grad.new_zeros(grad.shape[1])
            state["norm"] = grad.new_zeros(())
        for name, scale in zip(("row_scale", "column_scale"), scales(grad), strict=True):
            state[name].lerp_(scale, 1 - group["beta"])
        rows, columns = (state[name].clamp_min(TINY).rsqrt() for name in ("row_scale", "column_scale"))
        update = limited_(grad * rows[:, None] * columns, state["norm"])
        parameter.mul_(1 - group["lr"] * group["weight_decay"])
        parameter.add_(update.to(parameter.dtype), alpha=-group["lr"] * group["alpha"])


def scales(grad: Tensor) -> tuple[Tensor, Tensor]:
    """q of the rows and s of the columns of a gradient (m, n), such that q s^T is about its square."""
    squares = grad.square()
    size = squares.mean()  # taken out meanwhile, for |s|^2 is of the fourth power of the gradient, and would underflow
    squares /= size.clamp_min(TINY)
    q = squares.new_ones(len(squares))
    for _ in range(NUM_ITERATIONS):
        s = squares.T @ q / q.dot(q).clamp_min(TINY)
        q = squares @ s / s.dot(s).clamp_min(TINY)
    return q, s * size
