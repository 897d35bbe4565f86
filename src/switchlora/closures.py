"""The `closure` of `torch.optim.Optimizer.step`, for optimizers that do not need its loss themselves."""

from collections.abc import Callable
from typing import Any

import torch


def loss_of(closure: Callable[[], Any] | None) -> Any:
    """Evaluate the model again, with gradients; None without a closure."""
    if closure is None:
        return None
    with torch.enable_grad():
        return closure()
