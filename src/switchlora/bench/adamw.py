"""AdamW for the baselines: torch's fused one, and one with fp32 moments for bf16 parameters, which torch lacks.

torch's keeps moments in the dtype of the parameters, and its fused kernel insists on that. Where `--moments fp32` is
asked for beside bf16 weights, to compare memory like with like, the baseline gets a plain foreach AdamW instead. It is
slower than a fused kernel would be, so read its bytes, not its time.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from switchlora.closures import loss_of


def make_adamw(parameters: Sequence[Tensor], *, lr: float, moments: str) -> torch.optim.Optimizer:
    """The optimizer of all trainable `parameters` of a baseline; moments: own, fp32 or bf16."""
    narrow = any(p.dtype == torch.bfloat16 for p in parameters)
    if moments == "fp32" and narrow:
        return WideMomentsAdamW(parameters, lr=lr)
    return torch.optim.AdamW(parameters, lr=lr, weight_decay=0.0, fused=True)


class WideMomentsAdamW(torch.optim.Optimizer):
    """AdamW without decay, moments and arithmetic in fp32 whatever the parameters are; rounds to nearest."""

    def __init__(
        self, parameters: Sequence[Tensor], *, lr: float, betas: tuple[float, float] = (0.9, 0.999), eps: float = 1e-8
    ) -> None:
        super().__init__(parameters, {"lr": lr, "betas": betas, "eps": eps})
        self._step = 0
        for parameter in parameters:
            for name in ("exp_avg", "exp_avg_sq"):
                self.state[parameter][name] = torch.zeros_like(parameter, dtype=torch.float32)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """One step of every parameter with a gradient."""
        loss = loss_of(closure)
        self._step += 1
        for group in self.param_groups:
            moving = [p for p in group["params"] if p.grad is not None]
            grads = [p.grad.float() for p in moving]
            means = [self.state[p]["exp_avg"] for p in moving]
            squares = [self.state[p]["exp_avg_sq"] for p in moving]
            first, second = group["betas"]
            torch._foreach_lerp_(means, grads, 1 - first)
            torch._foreach_mul_(squares, second)
            torch._foreach_addcmul_(squares, grads, grads, 1 - second)
            sizes = torch._foreach_sqrt(squares)
            torch._foreach_div_(sizes, (1 - second**self._step) ** 0.5)
            torch._foreach_add_(sizes, group["eps"])
            updates = torch._foreach_div(means, sizes)
            torch._foreach_mul_(updates, -group["lr"] / (1 - first**self._step))
            torch._foreach_add_(updates, [p.float() for p in moving])
            torch._foreach_copy_(moving, updates)
        return loss
