"""Effective and stable rank against values worked out by hand."""

import math

import pytest
import torch

from switchlora.spectrum.layers import depth_of, types_of
from switchlora.spectrum.measures import effective_rank, measured, singular_values, stable_rank


def test_equal_singular_values_have_full_rank() -> None:
    found = measured(3 * torch.linalg.qr(torch.randn(7, 5, generator=torch.Generator().manual_seed(0)))[0])
    assert found["effective_rank"] == pytest.approx(5)
    assert found["stable_rank"] == pytest.approx(5)
    assert found["spectral_norm"] == pytest.approx(3)
    assert found["frobenius_norm"] == pytest.approx(3 * math.sqrt(5))


def test_values_by_hand() -> None:
    sigma = torch.tensor([2.0, 1.0, 1.0, 0.0], dtype=torch.float64)
    assert stable_rank(sigma) == pytest.approx(6 / 4)
    entropy = 0.5 * math.log(2) + 2 * 0.25 * math.log(4)
    assert effective_rank(sigma) == pytest.approx(math.exp(entropy))


def test_neither_depends_on_scale_and_zero_has_neither() -> None:
    sigma = torch.tensor([3.0, 2.0, 0.5], dtype=torch.float64)
    for rank in (effective_rank, stable_rank):
        assert rank(sigma * 1e-200) == pytest.approx(rank(sigma))
        assert math.isnan(rank(torch.zeros(3)))


def test_a_product_of_rank_two_has_two_values() -> None:
    generator = torch.Generator().manual_seed(1)
    W = torch.randn(9, 2, generator=generator) @ torch.randn(2, 6, generator=generator)
    sigma = singular_values(W)
    assert sigma.shape == (6,)
    assert (sigma[2:] < 1e-5 * sigma[0]).all()
    assert (sigma[:-1] >= sigma[1:]).all()


def test_types_are_as_short_as_they_can_be() -> None:
    llama = [f"model.layers.{i}.{part}" for i in range(2) for part in ("self_attn.q_proj", "mlp.up_proj")]
    assert set(types_of(llama).values()) == {"q_proj", "up_proj"}
    gpt2 = [f"transformer.h.{i}.{part}" for i in range(2) for part in ("attn.c_proj", "mlp.c_proj", "mlp.c_fc")]
    assert set(types_of(gpt2).values()) == {"attn.c_proj", "mlp.c_proj", "c_fc"}
    assert depth_of(llama[2]) == 1
    assert depth_of("lm_head") is None
