"""Update rules for vectors: pure functions of a gradient and a state, fp32 inside.

A vector that was reset starts again at step 0, so bias correction is per vector: `step` has the shape of one
number per row of A, (r, 1), or per column of B, (1, r), and broadcasts. An ordinary parameter has one number, ().
"""

import math

import torch
from torch import Tensor


def bias_corrections(step: Tensor, betas: tuple[float, float]) -> tuple[Tensor, Tensor]:
    """1 - beta^step for both betas, float64, exact to the last bits at any step count (-expm1(t ln beta))."""
    steps = step.to(torch.float64)
    first, second = (torch.expm1(steps * math.log(beta)).neg_() if beta else torch.ones_like(steps) for beta in betas)
    return first, second


def adamw_(
    grad: Tensor, exp_avg: Tensor, exp_avg_sq: Tensor, step: Tensor, betas: tuple[float, float], eps: float
) -> Tensor:
    """AdamW's direction, m_hat / (sqrt(v_hat) + eps); the moments are updated in place.

    Args:
        grad: any shape, in the dtype of the computation.
        exp_avg, exp_avg_sq: m and v, same shape and dtype.
        step: integer, broadcastable: the number of this step for each vector, from 1; a vector at step 0 has had none.
        betas: decay rates of m and v.
        eps: added to the denominator.

    Returns:
        the direction, same shape; the parameter moves by -lr times it.

    Source: Kingma & Ba 2015 (arXiv 1412.6980), with torch.optim.AdamW's placing of eps.
    """
    exp_avg.lerp_(grad, 1 - betas[0])
    exp_avg_sq.mul_(betas[1]).addcmul_(grad, grad, value=1 - betas[1])
    first, second = (c.to(grad, non_blocking=True) for c in bias_corrections(step, betas))
    denominator = exp_avg_sq.div(second).sqrt_().add_(eps)
    return exp_avg.div(first).div_(denominator)
