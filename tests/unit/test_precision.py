"""Stochastic rounding to bfloat16: unbiased, exact where it can be, a function of key, row and column."""

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from switchlora.precision import stochastic_bfloat16, store_, wide_dtype


def many(value: float, num: int = 40_000) -> torch.Tensor:
    """One value rounded many times over."""
    return stochastic_bfloat16(torch.full((200, num // 200), value), key=11).double()


@pytest.mark.parametrize("value", [1.001, -1.001, 3.14159e-5, -2.7e10, 1.0039, 1e-39, 0.3])
def test_the_mean_is_the_value_and_only_its_two_neighbours_come_up(value):
    exact = float(torch.tensor(value))
    rounded = many(value)
    low, high = rounded.min().item(), rounded.max().item()
    assert low < exact < high
    assert torch.unique(rounded).numel() == 2
    assert torch.equal(torch.tensor([low, high]).bfloat16().double(), torch.tensor([low, high], dtype=torch.float64))
    share = (exact - low) / (high - low)
    bound = 5 * (share * (1 - share) / rounded.numel()) ** 0.5
    assert abs((rounded == high).double().mean().item() - share) < bound


@hypothesis.given(st.integers(-(2**15), 2**15 - 1), st.integers(0, 2**64 - 1))
def test_what_bfloat16_holds_stays(bits, key):
    """Every one of the 65536 bfloat16 values: zeros of both signs, subnormals, infinities and NaN included."""
    value = torch.tensor([bits], dtype=torch.int16).view(torch.bfloat16)
    rounded = stochastic_bfloat16(value.float(), key)
    assert rounded.dtype == torch.bfloat16
    if value.isnan():
        assert rounded.isnan()
    else:
        assert rounded.view(torch.int16).item() == bits


def test_non_finite_values_beside_others_change_nothing():
    value = torch.tensor([[float("inf"), 1.001, float("-inf")], [float("nan"), 0.0, -1.001]])
    rounded = stochastic_bfloat16(value, key=3)
    assert torch.equal(rounded.isnan(), value.isnan())
    assert torch.equal(rounded[0, [0, 2]].float(), value[0, [0, 2]])


@pytest.mark.parametrize("bits", [0x7F800001, 0x7FFFFFFF, -1, -0x7FFFFF, 0x7F80FFFF])
def test_every_nan_stays_one(bits):
    """Also those whose payload lies in the bits that are cut off, or that noise would carry over into the sign."""
    value = torch.full((50,), bits, dtype=torch.int32).view(torch.float32)
    assert value.isnan().all()
    assert stochastic_bfloat16(value, key=1).isnan().all()


@pytest.mark.parametrize("shape", [(), (5,), (4, 7), (3, 4, 5), (2, 3, 4, 5), (0,), (0, 4), (3, 0)], ids=str)
@pytest.mark.parametrize("transposed", [False, True])
def test_any_shape_and_stride(shape, transposed):
    value = torch.randn(shape)
    value = value.transpose(0, -1) if transposed and len(shape) > 1 else value
    rounded = stochastic_bfloat16(value, key=5)
    assert rounded.shape == value.shape
    assert ((rounded.float() - value).abs() <= value.abs() * 2**-7).all()
    assert torch.equal(rounded, stochastic_bfloat16(value.contiguous(), key=5))


def test_rounding_depends_on_the_key_and_the_place_alone():
    value = torch.full((64, 64), 1.001)
    one = stochastic_bfloat16(value, key=5)
    torch.manual_seed(9)
    assert torch.equal(one, stochastic_bfloat16(value, key=5))
    assert not torch.equal(one, stochastic_bfloat16(value, key=6))
    assert torch.equal(one[:10], stochastic_bfloat16(value[:10], key=5))  # the first rows of a shard on dim 0
    assert one[0].unique().numel() == one[:, 0].unique().numel() == 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_wide_targets_are_stored_as_computed(dtype):
    value = torch.randn(4, 5, dtype=dtype)
    target = torch.zeros(4, 5, dtype=dtype)
    assert store_(target, value, key=0) is target
    assert torch.equal(target, value)


def test_a_bfloat16_target_is_written_in_place_with_stochastic_rounding():
    value, target = torch.full((100, 100), 1.001), torch.zeros(100, 100, dtype=torch.bfloat16)
    pointer = target.data_ptr()
    store_(target, value, key=0)
    assert target.data_ptr() == pointer
    assert torch.equal(target, stochastic_bfloat16(value, 0))
    assert torch.equal(store_(torch.zeros_like(target), value.double(), key=0), target)


@pytest.mark.parametrize(
    ("dtype", "wide"), [(torch.bfloat16, torch.float32), (torch.float32, torch.float32), (torch.float64, torch.float64)]
)
def test_wide_dtypes(dtype, wide):
    assert wide_dtype(dtype) == wide
