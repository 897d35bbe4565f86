"""AdamW on many ordinary parameters by one launch, against the eager code, which takes them one by one."""

import copy

import pytest
import torch
from torch import Tensor

from switchlora import draws
from switchlora.kernels import ordinary as kernels
from switchlora.ordinary import move_ordinary_

SHAPES = [(64, 32), (0, 3), (7,), (), (5, 301), (3, 2, 5), (0,)]  # sizes of all kinds, empty shards too
SETTINGS = {"lr": 0.01, "betas": (0.9, 0.99), "eps": 1e-8, "weight_decay": 0.1}


def parameters_of(dtype: torch.dtype, moment: torch.dtype, device) -> tuple[list[Tensor], list[dict[str, Tensor]]]:
    """The parameters, each with a gradient, and their states at different numbers of steps."""
    parameters, states = [], []
    for i, shape in enumerate(SHAPES):
        parameter = torch.randn(shape, device=device).to(dtype).requires_grad_()
        parameter.grad = torch.randn_like(parameter)
        like = parameter.detach()
        moments = {"exp_avg": torch.randn_like(like).to(moment), "exp_avg_sq": torch.rand_like(like).to(moment)}
        parameters.append(parameter)
        states.append({**moments, "step": torch.tensor(i, dtype=torch.int32)})
    return parameters, states


def copies(tensors: list[Tensor]) -> list[Tensor]:
    found = []
    for tensor in tensors:
        found.append(tensor.detach().clone().requires_grad_())
        found[-1].grad = tensor.grad.clone()
    return found


@pytest.mark.parametrize(
    ("dtype", "moment"),
    [(torch.bfloat16, torch.float32), (torch.bfloat16, torch.bfloat16), (torch.float32, torch.bfloat16)],
    ids=str,
)
def test_kernels_do_what_the_eager_code_does(device, monkeypatch, dtype, moment):
    parameters, states = parameters_of(dtype, moment, device)
    reference, reference_states = copies(parameters), copy.deepcopy(states)
    keys = [lambda purpose, i=i: draws.key(0, f"parameter {i}", purpose, 3) for i in range(len(SHAPES))]
    launches = []
    move_many_ = kernels.move_many_
    monkeypatch.setattr(kernels, "move_many_", lambda *arguments: launches.append(move_many_(*arguments)))
    with torch.no_grad():
        move_ordinary_(reference, reference_states, SETTINGS, keys, fused=False)
        assert not launches
        move_ordinary_(parameters, states, SETTINGS, keys, fused=True)
    assert len(launches) == 1
    for ours, expected in zip(parameters, reference, strict=True):
        torch.testing.assert_close(ours, expected, rtol=2**-7 if dtype == torch.bfloat16 else 1e-6, atol=1e-6)
        assert (ours != expected).sum() <= 0.01 * ours.numel() or dtype == torch.float32
    for ours, expected in zip(states, reference_states, strict=True):
        assert ours["step"] == expected["step"]
        for name in ("exp_avg", "exp_avg_sq"):
            torch.testing.assert_close(ours[name], expected[name], rtol=2**-7, atol=1e-6)
            assert (ours[name] != expected[name]).sum() <= 0.01 * ours[name].numel() or moment == torch.float32
