"""W's step along its orthogonalised gradient: against the formula written anew, and what must hold of it."""

import copy
import math

import pytest
import torch

from switchlora import SwitchLora, convert
from switchlora.draws import key
from switchlora.muon import orthogonalise, scaled
from switchlora.polar import follow_gradient_
from tests.numerics.cases import backward, chain, config_of, layers_of, start, train

WIDE = torch.float64


@pytest.fixture(autouse=True)
def _wide():
    torch.set_default_dtype(WIDE)
    yield
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("rule", ["adamw", "muon"])
@pytest.mark.parametrize("settings", [{}, {"order": "random", "candidates": "fresh"}], ids=["cyclic", "fresh"])
@pytest.mark.parametrize("dims", [(20, 24, 13), (7, 13, 9)], ids=str)
def test_a_step_is_the_factors_step_and_then_the_formula(dims, settings, rule):
    """Over 12 steps with switches, decay and a rate of the weights' own; W follows its factors first."""
    config = config_of(polar=0.5, **settings)
    model, optimizer = start(config, dims, WIDE, rule=rule, weight_decay=0.3)
    optimizer.param_groups[1]["lr"] = rate = 0.007  # of which the step takes half
    for step in range(12):
        alone = copy.deepcopy((model, optimizer))
        for one in (model, alone[0]):
            backward(one, step)
        alone[1].param_groups[1]["lr"] = 0.0  # W follows its factors only
        alone[1].step()
        optimizer.step()
        for ours, without in zip(layers_of(model), layers_of(alone[0]), strict=True):
            assert torch.equal(ours.lora_A, without.lora_A) and torch.equal(ours.lora_B, without.lora_B)
            G = ours.weight.grad
            size = 0.5 * rate * 0.2 * math.sqrt(max(G.shape))
            moved = (without.weight - ours.weight).detach() / size
            torch.testing.assert_close(moved, orthogonalise(G), rtol=1e-7, atol=1e-7)
            U, S, Vh = torch.linalg.svd(G, full_matrices=False)
            live = 0.02 * S.norm() < S  # five steps lift no smaller ones to 1
            along = U.T @ moved @ Vh.T
            torch.testing.assert_close(along, torch.diag(along.diagonal()), atol=1e-7, rtol=0)
            assert along.diagonal()[live].min() > 0.5 and along.diagonal().max() < 1.3
        optimizer.zero_grad()
    assert optimizer.stats.total.switches_done > 5


def test_the_gradient_of_w_is_that_of_a_plain_linear_and_the_factors_come_from_it():
    model, _ = start(config_of(polar=0.5), (7, 13, 9), WIDE)
    plain = torch.nn.Sequential(torch.nn.Linear(7, 13), torch.nn.Tanh(), torch.nn.Linear(13, 9))
    plain.load_state_dict(model.state_dict(), strict=False)
    backward(model)
    backward(plain)
    for ours, theirs in zip(layers_of(model), (plain[0], plain[2]), strict=True):
        G, s = theirs.weight.grad, ours.scaling
        torch.testing.assert_close(ours.weight.grad, G)
        torch.testing.assert_close(ours.lora_A.grad, s * ours.lora_B.T @ G)
        torch.testing.assert_close(ours.lora_B.grad, s * G @ ours.lora_A.T)


def test_accumulated_gradients_are_those_of_one_batch():
    def loss_of(model, x):
        return model(x).square().sum()

    torch.manual_seed(1)
    model, optimizer = start(config_of(polar=0.5), (7, 13, 9), WIDE)
    other_model, other = copy.deepcopy((model, optimizer))
    for _ in range(6):
        x = torch.randn(8, 7)
        loss_of(model, x).backward()
        for part in x.split(3):
            loss_of(other_model, part).backward()
        for one in (optimizer, other):
            one.step()
            one.zero_grad()
    for ours, theirs in zip(model.parameters(), other_model.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_bfloat16_weight_takes_small_steps_on_average():
    """A quarter of what bfloat16 resolves at 1: to nearest, nothing would move."""
    W, G = torch.full((64, 64), 1.0, dtype=torch.bfloat16), torch.eye(64, dtype=torch.float32)
    direction = scaled(G).diagonal()[0].item()
    lr, total = 2**-10 / direction, 0.0
    for number in range(256):
        moved = W.clone()
        follow_gradient_(moved, G, lr, lambda purpose, number=number: key(0, "layer", purpose, number))
        total += float((W.double() - moved.double()).diagonal().mean())
    assert total / 256 == pytest.approx(2**-10, rel=0.05)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_narrow_runs_move_w_as_the_wide_one(dtype):
    moved = {}
    for kind in (WIDE, dtype):
        torch.manual_seed(3)
        model, config = chain((7, 13, 9), torch.float32), config_of(polar=0.5)
        convert(model, config)
        model.to(kind)
        optimizer = SwitchLora(model, config, total_steps=100, lr=1e-2)
        before = [layer.weight.detach().double().clone() for layer in layers_of(model)]
        train(model, optimizer, 10)
        moved[kind] = [layer.weight.detach().double() - W for layer, W in zip(layers_of(model), before, strict=True)]
    tolerance = 1e-3 if dtype == torch.float32 else 0.3
    for ours, exact in zip(moved[dtype], moved[WIDE], strict=True):
        assert (ours - exact).norm() < tolerance * exact.norm()


def test_it_learns_what_the_factors_alone_cannot():
    """A target far from W, a rank of 2 that never switches: the factors alone stay behind."""
    losses = {}
    for polar in (0.0, 1.0):
        torch.manual_seed(0)
        model, optimizer = start(
            config_of(r=2, interval=math.inf, freeze_steps=0, polar=polar), (16, 16), WIDE, bias=False
        )
        target = torch.randn(16, 16) / 4
        for _ in range(150):
            x = torch.randn(64, 16)
            loss = (model(x) - x @ target.T).square().mean()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
        losses[polar] = float(loss.detach())
    assert losses[1.0] < 0.2 * losses[0.0], losses


def test_nothing_is_asked_of_switching_that_was_not_before():
    """The same switches with and without: choices know nothing of it."""
    done = []
    for polar in (0.0, 0.5):
        model, optimizer = start(config_of(polar=polar))
        outcomes = []
        for step in range(10):
            train(model, optimizer, range(step, step + 1))
            outcomes.append({name: list(one.switches) for name, one in optimizer.outcomes.items()})
        done.append((outcomes, optimizer.stats.total))
    assert done[0] == done[1]
