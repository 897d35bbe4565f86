"""Fira's norm-growth limiter, which APOLLO and RACS took over: an update grows by no more than 1 % a step in norm.

Scaling by norms has none of Adam's memory for a single spike, so that one bad batch could undo much. Source: Chen et
al. 2024 (arXiv 2410.01623), section 4.2.
"""

import torch
from torch import Tensor

LARGEST_GROWTH = 1.01  # gamma, from one step to the next


def limited_(update: Tensor, norm: Tensor) -> Tensor:
    """Shrink `update` where it has grown too much; `norm` (scalar), that of the last update, becomes this one's.

    After a norm of 0 nothing is limited: it stands for "no step yet", and a limit of 0 would never let go again.
    """
    size = torch.linalg.vector_norm(update)
    limit = LARGEST_GROWTH * norm
    shrink = torch.where((norm > 0) & (size > limit), limit / size, 1.0)
    norm.copy_(size * shrink)
    return update.mul_(shrink)
