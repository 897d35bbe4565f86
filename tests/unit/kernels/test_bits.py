"""Rounding inside a kernel gives the bits of `precision.stochastic_bfloat16`, whatever the number and the key."""

import pytest
import torch

from switchlora import draws
from switchlora.kernels.tables import as_table
from switchlora.kernels.weight_update import add_rounded_
from switchlora.precision import stochastic_bfloat16
from switchlora.transfers import on_device

# No subnormal ones: the interpreter's own conversion to bfloat16 makes them zero.
SPECIAL = (0.0, 1.0, -2.5, 3.4028235e38, -3.4028235e38, float("inf"), float("-inf"), float("nan"))


def every_kind_of_number(rows: int, columns: int) -> torch.Tensor:
    """Of all sizes, exact in bfloat16 or not, zero, the largest, infinite and NaN."""
    value = torch.randn(rows, columns) * 10.0 ** torch.randint(-30, 30, (rows, columns))
    value.view(-1)[: len(SPECIAL)] = torch.tensor(SPECIAL)
    return value


@pytest.mark.parametrize("key", [0, 2**31, 2**32 - 1, 2**63 + 5, draws.key(3, "layer", "rounding of W", 7)])
def test_the_bits_are_those_of_the_eager_code(device, key):
    value = every_kind_of_number(41, 31).to(device)  # more than one block
    W = torch.zeros(41, 31, dtype=torch.bfloat16, device=device)
    add_rounded_(W, value[None], 1.0, 0.0, on_device(as_table([[W.data_ptr(), key]]), device), False)
    expected = stochastic_bfloat16(value, key)
    assert torch.equal(W.isnan(), expected.isnan())
    assert torch.equal(W.nan_to_num(0, 1, -1), expected.nan_to_num(0, 1, -1))
    assert torch.equal(W.isinf(), expected.isinf())
    assert not torch.equal(W.nan_to_num(0), value.bfloat16().nan_to_num(0))  # not rounded to nearest
