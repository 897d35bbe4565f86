"""Mixed precision: autocast around the forward, backward() outside, as torch's documentation has it."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from switchlora import SwitchLoraLinear, effective_linear, token_blocks
from tests.numerics.cases import config_of, layers_of, start


def autocast():
    return torch.autocast("cpu", dtype=torch.bfloat16)


@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("bias", [True, False])
def test_gradients_have_the_parameters_dtype_and_the_right_values(monkeypatch, dense, inside, bias):
    monkeypatch.setattr(effective_linear, "dense_is_cheaper", lambda m, n, r, T: dense)
    linear = SwitchLoraLinear(33, 47, bias, r=5, name="layer")
    x = torch.randn(4, 6, 33, requires_grad=True)
    with autocast():
        y = linear(x)
        loss = y.float().square().sum()
        if inside:
            loss.backward()
    if not inside:
        loss.backward()
    assert y.dtype == torch.bfloat16
    narrow = [t if t is None else t.detach().bfloat16() for t in (x, linear.weight, linear.bias)]
    assert torch.equal(y, F.linear(*narrow))
    dY, X = 2 * y.detach().double().view(-1, 47), x.detach().double().view(-1, 33)
    expected = {
        "lora_A": linear.scaling * linear.lora_B.double().T @ dY.T @ X,
        "lora_B": linear.scaling * dY.T @ X @ linear.lora_A.double().T,
        "x": (dY @ linear.weight.double()).view_as(x),
    }
    if bias:
        expected["bias"] = dY.sum(0)
    for name, exact in expected.items():
        parameter = x if name == "x" else getattr(linear, name)
        assert parameter.grad.dtype == torch.float32
        assert (parameter.grad - exact).norm() < 0.015 * exact.norm(), name


def test_what_ran_in_float32_is_differentiated_in_float32(monkeypatch):
    """A layer that was kept out of autocast, and a backward pass inside of it: in blocks and shares of the tokens."""
    monkeypatch.setattr(token_blocks, "BLOCK_TOKENS", 16)
    monkeypatch.setattr(token_blocks, "SHARE_TOKENS", 8)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
    linear, x = SwitchLoraLinear(16, 24, r=3, name="layer"), torch.randn(64, 16)
    results = []
    for inside in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            with torch.autocast("cpu", enabled=False):
                read = x.clone().requires_grad_()
                loss = linear(read.sin()).square().sum()
            loss.backward()
        results.append([read.grad, linear.lora_A.grad, linear.lora_B.grad, linear.bias.grad])
        linear.zero_grad()
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_the_backward_saves_the_narrow_input():
    """Half the memory of the float32 input, which is what autocast is for."""
    linear, saved = SwitchLoraLinear(16, 24, r=3), []
    h = torch.randn(8, 16, requires_grad=True).tanh()
    with autocast(), torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        linear(h)
    assert [t.dtype for t in saved if t.shape == (8, 16)] == [torch.bfloat16]


@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16], ids=str)
def test_a_model_trains_under_autocast(weights):
    model, optimizer = start(config_of(), (16, 32, 32, 8), weights, lr=1e-2)
    x = torch.randn(64, 16)
    y = x[:, :8]
    losses = []
    for _ in range(100):
        with autocast():
            loss = (model(x.to(weights)).float() - y).square().mean()
        loss.backward()
        assert all(p.grad.dtype == p.dtype for p in model.parameters() if p.requires_grad)
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < 0.6 * losses[0]
    assert optimizer.stats.total.switches_done > 0


def test_autocast_agrees_with_a_plain_linear_under_autocast():
    linear = nn.Linear(16, 24)
    ours = SwitchLoraLinear(16, 24, r=3)
    ours.load_state_dict({**ours.state_dict(), **linear.state_dict()})
    x, x_ours = torch.randn(5, 16, requires_grad=True), None
    x_ours = x.detach().clone().requires_grad_()
    with autocast():
        one, other = linear(x), ours(x_ours)
    assert torch.equal(one, other)
    one.float().sum().backward()
    other.float().sum().backward()
    assert torch.equal(x.grad, x_ours.grad)
    torch.testing.assert_close(ours.bias.grad, linear.bias.grad, rtol=0.01, atol=0)


def test_double_inputs_are_left_alone_as_torch_leaves_them():
    linear = SwitchLoraLinear(16, 24, r=3, dtype=torch.float64)
    with autocast():
        y = linear(torch.randn(5, 16, dtype=torch.float64))
    assert y.dtype == torch.float64
    y.sum().backward()
    assert linear.lora_A.grad.dtype == torch.float64


@pytest.mark.parametrize("fused_backward", [False, True])
@pytest.mark.parametrize("settings", [{}, {"rule": "muon"}, {"polar": 0.5}], ids=str)
def test_a_step_inside_the_context_is_the_step_outside_it(settings, fused_backward):
    weights = []
    polar = settings.get("polar", 0.0)
    for inside in (True, False):
        torch.manual_seed(0)
        rule = {name: value for name, value in settings.items() if name == "rule"}
        model, optimizer = start(config_of(polar=polar), fused_backward=fused_backward, **rule)
        x = torch.randn(5, 7)
        with autocast():
            loss = model(x).float().square().sum()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=inside):
            loss.backward()
            optimizer.step()
        weights.append(layers_of(model)[0].weight)
    assert torch.equal(*weights)
