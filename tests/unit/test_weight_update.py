"""In which precision the products of the weight update run; what they compute is in numerics/test_weight_follows.py."""

import types

import pytest
import torch

from switchlora import weight_update
from tests.unit.products import asked_of

SETTINGS = torch.backends.cuda.matmul
# The machine of the tests has no GPU, but torch keeps the setting all the same.
W = types.SimpleNamespace(dtype=torch.bfloat16, is_cuda=True)


@pytest.fixture(autouse=True)
def as_it_was():
    mkldnn = torch.backends.mkldnn.matmul
    before = SETTINGS.fp32_precision, mkldnn.fp32_precision
    yield
    torch.set_float32_matmul_precision("highest")
    SETTINGS.fp32_precision, mkldnn.fp32_precision = before


def state() -> tuple[str, bool, str]:
    """By all names that torch has for it; an error where they disagree."""
    return SETTINGS.fp32_precision, SETTINGS.allow_tf32, torch.get_float32_matmul_precision()


@pytest.mark.parametrize("precision", [None, "highest", "high"])
def test_a_bfloat16_weight_takes_tensor_cores_and_leaves_the_setting(precision):
    if precision is not None:
        torch.set_float32_matmul_precision(precision)
    before = state()
    with pytest.raises(RuntimeError, match="in the middle"), weight_update.products_for(W):
        assert state() == ("tf32", True, "high")
        raise RuntimeError("in the middle")
    assert state() == before


def test_the_setting_by_its_new_name_alone_is_left():
    SETTINGS.fp32_precision = "tf32"  # with which its old names cannot be read
    with weight_update.products_for(W):
        assert SETTINGS.fp32_precision == "tf32"
    assert SETTINGS.fp32_precision == "tf32"


@pytest.mark.parametrize(("dtype", "is_cuda"), [(torch.float32, True), (torch.float64, True), (torch.bfloat16, False)])
def test_other_weights_go_by_torchs_setting(dtype, is_cuda):
    before = state()
    with weight_update.products_for(types.SimpleNamespace(dtype=dtype, is_cuda=is_cuda)):
        assert state() == before


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_an_update_asks_where_the_weight_is_rounded(monkeypatch, dtype):
    asked = asked_of(monkeypatch, weight_update)
    left, right = torch.ones(3, 2), torch.ones(2, 4)
    weight_update.update_weight_(torch.zeros(3, 4, dtype=dtype), left, right, 1.0, 1.0, lambda purpose: 0)
    assert asked == ([dtype] if dtype == torch.bfloat16 else [])
