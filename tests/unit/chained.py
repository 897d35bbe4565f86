"""q, k and v over one hidden state, for the tests of chains."""

import pytest
import torch
from torch import Tensor, nn

from switchlora import SwitchLoraLinear, layer


class Block(nn.Module):
    """q, k and v of odd shapes over one hidden state."""

    def __init__(self, dtype: torch.dtype = torch.float64, bias: bool = True) -> None:
        super().__init__()
        self.first = nn.Linear(6, 7, dtype=dtype)
        self.q, self.k, self.v = (
            SwitchLoraLinear(7, m, bias, dtype=dtype, factor_dtype=dtype, r=3, lora_alpha=2.0, name=name)
            for m, name in ((13, "q"), (9, "k"), (8, "v"))
        )

    def hidden(self, x: Tensor) -> Tensor:
        return torch.tanh(self.first(x))

    def forward(self, x: Tensor) -> list[Tensor]:
        h = self.hidden(x)
        return [self.q(h), self.k(h), self.v(h)]


def block(dtype: torch.dtype = torch.float64, bias: bool = True) -> Block:
    torch.manual_seed(0)
    return Block(dtype, bias)


def inputs(dtype: torch.dtype = torch.float64, leading: tuple[int, ...] = (5,)) -> Tensor:
    return torch.randn(*leading, 6, dtype=dtype, generator=torch.Generator().manual_seed(1))


def total(outputs: list[Tensor]) -> Tensor:
    return sum((y.sin().sum() for y in outputs), torch.zeros((), dtype=outputs[0].dtype))


def gradients(model: nn.Module) -> list[Tensor | None]:
    found = [parameter.grad for parameter in model.parameters()]
    model.zero_grad()
    return found


def apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(layer, "can_chain", lambda x: False)


def assert_same(ours: list[Tensor | None], theirs: list[Tensor | None], tolerance: float = 1e-12) -> None:
    for one, other in zip(ours, theirs, strict=True):
        assert (one is None) == (other is None)
        if one is not None and other is not None:
            torch.testing.assert_close(one, other, rtol=tolerance, atol=tolerance)


def depth(y: Tensor) -> int:
    """Layers of ours on the way from an output back to the start."""
    node, found = y.grad_fn, 0
    while node is not None:
        found += "EffectiveLinear" in type(node).__name__
        node = node.next_functions[0][0] if node.next_functions else None
    return found
