"""LoRA with an adapter branch, as most code has it: y = W x + s B (A x), W frozen, in plain autograd.

The same factors as SwitchLoRA's at the same rank, without the effective weight: two thin products more in the forward
pass, their transposes in the backward pass, and the activation A x kept in between. What PEFT does, without PEFT:
no dropout, no dispatch over adapters, so what it costs above full rank is the branch itself.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from switchlora.conversion import replace_modules


class AdapterLinear(nn.Module):
    """A frozen linear layer of shape (m, n) and a trainable branch of rank r beside it.

    Attributes:
        base: the frozen layer.
        lora_A: (r, n), lora_B: (m, r), in the dtype of the weight; B starts at zero, so the function is the layer's.
        scaling: s.
    """

    def __init__(self, base: nn.Linear, *, r: int, lora_alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base.requires_grad_(False)
        self.scaling = lora_alpha / r
        m, n = base.weight.shape
        A = (torch.rand(r, n, generator=generator) * 2 - 1) / n**0.5
        self.lora_A = nn.Parameter(A.to(base.weight))
        self.lora_B = nn.Parameter(base.weight.new_zeros(m, r))

    def forward(self, x: Tensor) -> Tensor:
        """x (..., n) -> (..., m)."""
        base: Tensor = self.base(x)
        return base + self.scaling * F.linear(F.linear(x, self.lora_A), self.lora_B)


def add_adapters(model: nn.Module, linears: list[nn.Linear], *, r: int, lora_alpha: float = 1.0, seed: int = 0) -> None:
    """Put a branch beside each of `linears`, in place. Everything else goes on training."""
    generator = torch.Generator().manual_seed(seed)
    adapters: dict[nn.Module, nn.Module] = {
        linear: AdapterLinear(linear, r=r, lora_alpha=lora_alpha, generator=generator) for linear in linears
    }
    replace_modules(model, adapters)
