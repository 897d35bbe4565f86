"""One matrix trained by the rules of the papers of GaLore, Fira, Stable-SPAM and RACS, written out in float64.

Each function takes the gradients of some steps and returns what every step takes from W, divided by the learning rate.
Those that project want m <= n, as the papers do; `turned` says that the code has the transposed matrices.
"""

import torch
from torch import Tensor

BETA1, BETA2, EPS = 0.9, 0.999, 1e-8


def leading(G: Tensor, r: int, turned: bool) -> Tensor:
    """P (m, r): the first left singular vectors.

    Their signs are chance, and matter where old moments meet a new P: so what is decomposed is, turned or not and in
    fp32, the very matrix that the code has.
    """
    U, _, Vh = torch.linalg.svd((G.T if turned else G).float(), full_matrices=False)
    return (Vh.T if turned else U)[:, :r].double()


def galore(gradients: list[Tensor], r: int, alpha: float, refresh_at: tuple[int, ...], turned: bool) -> list[Tensor]:
    """arXiv 2403.03507, algorithm 2: Adam on P^T G, projected back, times alpha. Steps count from 1."""
    return [alpha * P @ N for P, _, N, _ in _projected(gradients, r, refresh_at, turned)]


def fira(
    gradients: list[Tensor], r: int, alpha: float, refresh_at: tuple[int, ...], turned: bool, *, limit_raw: bool
) -> list[Tensor]:
    """arXiv 2410.01623, algorithm 1: what GaLore takes, and S = the rest of G, column by column scaled as Adam scaled.

    limit_raw: whether the limiter looks at S before Adam's bias correction, as code does, or after, as the paper does.
    """
    updates, last = [], None
    for G, (P, R, N, correction) in zip(gradients, _projected(gradients, r, refresh_at, turned), strict=True):
        S = (G - P @ R) * N.norm(dim=0) / R.norm(dim=0)
        if limit_raw:
            S = S / correction
        if last is not None:
            S = S * 1.01 / max(float(S.norm()) / last, 1.01)
        last = float(S.norm())
        if limit_raw:
            S = S * correction
        updates.append(alpha * (P @ N + S))
    return updates


def _projected(gradients: list[Tensor], r: int, refresh_at: tuple[int, ...], turned: bool):  # type: ignore[no-untyped-def]
    """P, R = P^T G, Adam's direction N for R, and the factor in N that corrects the moments' bias, of every step."""
    M = V = 0.0
    for t, G in enumerate(gradients, start=1):
        if t in refresh_at:
            P = leading(G, r, turned)
        R = P.T @ G
        M, V = BETA1 * M + (1 - BETA1) * R, BETA2 * V + (1 - BETA2) * R**2
        correction = (1 - BETA2**t) ** 0.5 / (1 - BETA1**t)
        yield P, R, correction * M / (V.sqrt() + EPS), correction


def stable_spam(gradients: list[Tensor], reset_every: int) -> list[Tensor]:
    """arXiv 2502.17055, as others cite it: spikes cut, the norm replaced by a running one, Adam with resets."""
    gamma1, gamma2, gamma3 = 0.7, 0.9, 0.999
    threshold = norm = norm_sq = M = V = 0.0
    since, updates = 0, []
    for t, G in enumerate(gradients, start=1):
        largest = float(G.abs().max())
        threshold = gamma3 * threshold + (1 - gamma3) * largest
        at_most = threshold / (1 - gamma3**t)
        G = torch.where(G.abs() > at_most, G / largest * at_most, G)
        size = float(G.norm())
        norm, norm_sq = gamma1 * norm + (1 - gamma1) * size, gamma2 * norm_sq + (1 - gamma2) * size**2
        G = G / size * (norm / (1 - gamma1**t)) / ((norm_sq / (1 - gamma2**t)) ** 0.5 + EPS)
        since += 1
        if t % reset_every == 0:
            M, V, since = 0.0, 0.0, 1
        M, V = BETA1 * M + (1 - BETA1) * G, BETA2 * V + (1 - BETA2) * G**2
        updates.append(M / (1 - BETA1**since) / ((V / (1 - BETA2**since)).sqrt() + EPS))
    return updates


def racs(gradients: list[Tensor], alpha: float, beta: float) -> list[Tensor]:
    """arXiv 2502.07752, equation 16 and algorithm 1."""
    s, q = torch.zeros(gradients[0].shape[1]).double(), torch.zeros(gradients[0].shape[0]).double()
    updates, last = [], 0.0
    for t, G in enumerate(gradients, start=1):
        Q = torch.eye(len(G)).double()
        for _ in range(5):
            S = torch.diag(torch.diag(G.T @ Q @ G)) / Q.norm() ** 2
            Q = torch.diag(torch.diag(G @ S @ G.T)) / S.norm() ** 2
        s, q = beta * s + (1 - beta) * S.diag(), beta * q + (1 - beta) * Q.diag()
        scaled = torch.diag(q**-0.5) @ G @ torch.diag(s**-0.5)
        eta = 1.01 / max(float(scaled.norm()) / last, 1.01) if t > 1 else 1.0
        last = eta * float(scaled.norm())
        updates.append(alpha * eta * scaled)
    return updates
