"""Where kernels run by themselves, and what `fused=True` says where they cannot."""

import pytest
import torch

from switchlora import UserError
from switchlora.kernels import availability
from switchlora.kernels.availability import use_kernels
from tests.numerics.cases import config_of, start


def test_on_the_cpu_nobody_gets_kernels_who_did_not_ask(device):
    assert use_kernels(None, [torch.zeros(2)]) is False
    assert use_kernels(None, [torch.zeros(2, device=device)]) is (device.type == "cuda")
    assert use_kernels(False, [torch.zeros(2, device=device)]) is False
    assert use_kernels(True, [torch.zeros(2, device=device)]) is True


@pytest.mark.parametrize(
    ("make", "reason"),
    [
        (lambda device: torch.zeros(2, dtype=torch.float64, device=device), "float32 and bfloat16, not torch.float64"),
        (lambda device: torch.zeros(2, 3, device=device).T, "contiguous"),
        (lambda device: torch.zeros(1, device=device).expand(2**31), "contiguous"),
        (lambda device: torch.zeros(2, device="meta"), "for CUDA, and a parameter is on meta"),
    ],
)
def test_asking_where_they_cannot_run_is_an_error_with_the_way_out(device, make, reason):
    tensors = [torch.zeros(2, device=device), make(device)]
    with pytest.raises(UserError, match=rf"fused=True: .*{reason}.*; use fused=None"):
        use_kernels(True, tensors)


def test_without_triton_asking_is_an_error(device, monkeypatch):
    monkeypatch.setattr(availability, "_has_triton", lambda: False)
    with pytest.raises(UserError, match=r"fused=True: .*triton, which is not installed.*; use fused=None"):
        use_kernels(True, [torch.zeros(2, device=device)])


def test_float64_stays_eager_and_cannot_be_asked_for():
    config = config_of()
    assert not start(config, dtype=torch.float64)[1]._layer_groups[0].fused
    with pytest.raises(UserError, match=r"fused=True: .*(float64|on cpu)"):  # the latter beside a GPU
        start(config, dtype=torch.float64, fused=True)


def test_other_values_are_refused():
    with pytest.raises(UserError, match=r"fused='yes': must be True, False, or None"):
        start(config_of(), fused="yes")
