"""From the singular values of a matrix to two numbers that say how many directions it really uses.

Effective rank (Roy & Vetterli, 2007): exp of the entropy of p_k = sigma_k / sum(sigma). It is r for a matrix with r
equal singular values and no others, and counts small ones a little.
Stable rank: (Frobenius norm / spectral norm)^2 = sum(sigma^2) / sigma_1^2. It never exceeds the rank, and small
singular values hardly count.

Both are at least 1 and at most min(m, n), and neither depends on the matrix's scale. A zero matrix has neither (NaN).
Singular values are computed in float64, so that those of a low-rank change that should be zero are about 1e-16 of the
largest, plus what the weights' own format rounds away.
"""

import math

import torch
from torch import Tensor


def singular_values(W: Tensor) -> Tensor:  # (m, n)
    """All min(m, n) singular values in descending order, float64, on the CPU."""
    sigma: Tensor = torch.linalg.svdvals(W.detach().double())
    return sigma.cpu()


def effective_rank(sigma: Tensor) -> float:  # (min(m, n),)
    """exp(entropy of sigma / sum(sigma)); NaN where all are zero."""
    total = sigma.sum()
    if not total > 0:
        return math.nan
    p = sigma / total
    return float(torch.exp(-torch.xlogy(p, p).sum()))


def stable_rank(sigma: Tensor) -> float:  # (min(m, n),)
    """sum(sigma^2) / max(sigma)^2; NaN where all are zero."""
    largest = sigma.max()
    if not largest > 0:
        return math.nan
    return float((sigma / largest).square().sum())  # scaled first, so that tiny values do not underflow


def measured(W: Tensor) -> dict[str, object]:  # (m, n)
    """Singular values, descending, and what follows from them, as plain data."""
    sigma = singular_values(W)
    return {
        "effective_rank": effective_rank(sigma),
        "stable_rank": stable_rank(sigma),
        "spectral_norm": float(sigma.max()),
        "frobenius_norm": float(sigma.square().sum().sqrt()),
        "singular_values": sigma.tolist(),
    }
