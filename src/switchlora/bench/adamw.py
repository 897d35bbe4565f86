"""AdamW for the baselines: torch's fused one, and one with fp32 moments for bf16 parameters, which torch lacks.

torch's keeps moments in the dtype of the parameters, and its fused kernel insists on that. Where `--moments fp32` is
asked for beside bf16 weights, to compare memory like with like, the baseline gets a plain AdamW instead, which goes
through a parameter in pieces, so that its peak is that of what is held. It is slower than a fused kernel would be, so
read its bytes, not its time.
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


PIECE = 2**22  # numbers at a time


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
            first, second = group["betas"]
            root, size = (1 - second**self._step) ** 0.5, -group["lr"] / (1 - first**self._step)
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                state = self.state[parameter]
                whole = (parameter.data, parameter.grad.contiguous(), state["exp_avg"], state["exp_avg_sq"])
                pieces = [one.view(-1).split(PIECE) if parameter.is_contiguous() else (one,) for one in whole]
                for p, g, m, v in zip(*pieces, strict=True):
                    grad = g.float()
                    m.lerp_(grad, 1 - first)
                    v.mul_(second).addcmul_(grad, grad, value=1 - second)
                    p.copy_(p.float().addcdiv_(m, v.sqrt().div_(root).add_(group["eps"]), value=size))
        return loss
