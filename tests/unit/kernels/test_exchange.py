"""Vectors of many layers change places, exactly as by indexing."""

import numpy as np
import pytest
import torch

from switchlora.kernels.exchange import exchange_

SHAPES = [(4, 16), (3, 7), (6, 1030)]  # r and length: round; odd; more than one block
LAYERS, SLOTS = np.array([0, 0, 1, 3, 3, 3]), np.array([1, 0, 2, 0, 2, 1])


def vectors_of(letter: str, r: int, length: int, dtype: torch.dtype, device) -> list[torch.Tensor]:
    """Of four layers: rows of A, or columns of B."""
    if letter == "A":
        return [torch.randn(r, length, device=device).to(dtype) for _ in range(4)]
    return [torch.randn(length, r, device=device).to(dtype).T for _ in range(4)]


@pytest.mark.parametrize(("r", "length"), SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("letter", ["A", "B"])
def test_vectors_change_places(device, r, length, dtype, letter):
    factors = vectors_of(letter, r, length, dtype, device)
    before = [factor.clone() for factor in factors]
    arriving = torch.randn(len(LAYERS), length, device=device).to(dtype)
    leaving = exchange_(factors, LAYERS, SLOTS, arriving.clone())
    assert torch.equal(leaving, torch.stack([before[i][k] for i, k in zip(LAYERS, SLOTS, strict=True)]))
    for place, (i, k) in enumerate(zip(LAYERS, SLOTS, strict=True)):
        before[i][k] = arriving[place]
    for ours, expected in zip(factors, before, strict=True):
        assert torch.equal(ours, expected)
