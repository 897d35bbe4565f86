"""A and B that move in turn: a step each, while the moments of both follow every gradient."""

import copy
import itertools
import math

import pytest
import torch

from switchlora import SwitchLoraConfig
from switchlora.flops import count_flops, model_weight_update_flops
from switchlora.moving_layers import turn_of
from tests.numerics.cases import (
    assert_same,
    backward,
    base,
    config_of,
    everything,
    layers_of,
    side_state,
    start,
    train,
)


def started(rule: str = "adamw", dtype: torch.dtype = torch.float64, **settings):
    torch.manual_seed(0)
    of_optimizer = {name: settings.pop(name) for name in ("lr", "fused_backward", "factor_dtype") if name in settings}
    return start(config_of(**{"alternate": True, **settings}), dtype=dtype, rule=rule, **of_optimizer)


def test_by_default_both_move_in_every_step():
    assert [turn_of(step, False) for step in range(3)] == ["AB", "AB", "AB"]
    assert [turn_of(step, True) for step in range(4)] == ["A", "B", "A", "B"]
    assert not SwitchLoraConfig().alternate


@pytest.mark.parametrize("rule", ["adamw", "muon"])
@pytest.mark.parametrize(
    ("dtype", "factor_dtype"), [(torch.float64, None), (torch.float32, None), (torch.float32, torch.bfloat16)]
)
def test_one_factor_moves_and_the_weight_follows_it(rule, dtype, factor_dtype):
    model, optimizer = started(rule, dtype, interval=math.inf, factor_dtype=factor_dtype)
    layers = layers_of(model)
    bases = [base(layer) for layer in layers]
    for step in range(6):
        before = [(layer.lora_A.detach().clone(), layer.lora_B.detach().clone()) for layer in layers]
        train(model, optimizer, range(step, step + 1))
        for layer, (A, B), W_base in zip(layers, before, bases, strict=True):
            assert torch.equal(layer.lora_A, A) == (step % 2 == 1)
            assert torch.equal(layer.lora_B, B) == (step % 2 == 0)
            torch.testing.assert_close(base(layer), W_base, rtol=0, atol=1e-14 if dtype == torch.float64 else 1e-6)


def test_a_factor_moves_by_adam_s_rule_on_moments_of_every_gradient():
    """Against the rule as it is written: t counts all steps, those without a move too."""
    lr, (beta1, beta2), eps = 1e-2, (0.9, 0.999), 1e-8
    model, optimizer = started(interval=math.inf, lr=lr)
    (layer, _) = layers_of(model)
    factors = {"A": layer.lora_A, "B": layer.lora_B}
    expected = {letter: factor.detach().clone() for letter, factor in factors.items()}
    m, v = ({letter: torch.zeros_like(factor) for letter, factor in expected.items()} for _ in range(2))
    for step in range(7):
        backward(model, step)
        for letter, factor in factors.items():
            m[letter] = beta1 * m[letter] + (1 - beta1) * factor.grad
            v[letter] = beta2 * v[letter] + (1 - beta2) * factor.grad**2
        letter, t = "AB"[step % 2], step + 1
        corrected = (m[letter] / (1 - beta1**t)) / ((v[letter] / (1 - beta2**t)).sqrt() + eps)
        expected[letter] -= lr * corrected
        optimizer.step()
        optimizer.zero_grad()
        for letter, factor in factors.items():
            torch.testing.assert_close(factor.detach(), expected[letter], rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("rule", ["adamw", "muon"])
@pytest.mark.parametrize("reset", [True, False])
def test_all_but_the_moves_is_as_if_both_moved(rule, reset):
    """At a learning rate of 0, where no move shows: moments, counters, rests, resets, slots and candidates."""
    runs = []
    for alternate in (False, True):
        model, optimizer = started(rule, alternate=alternate, reset=reset, lr=0.0)
        train(model, optimizer, 15)
        assert optimizer.stats.total.switches_done > 10
        runs.append(everything(model, optimizer))
    assert_same(*runs)


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_a_vector_that_rests_keeps_still_in_its_turn(rule):
    model, optimizer = started(rule)
    layers, rested = layers_of(model), 0
    for step in range(30):
        backward(model, step)
        before = [(layer.lora_A.detach().clone(), layer.lora_B.T.detach().clone()) for layer in layers]
        optimizer.step()
        optimizer.zero_grad()
        for layer, old in zip(layers, before, strict=True):
            number = step % 2  # of the factor in turn
            letter, vectors = "AB"[number], (layer.lora_A, layer.lora_B.T)[number].detach()
            switched = optimizer.outcomes[layer.name].switches.get(letter)
            mine = set() if switched is None else set(switched.slots.tolist())
            frozen = side_state(optimizer, layer, letter)["frozen"]
            for slot in range(len(vectors)):
                if int(frozen[slot]) > 0 and slot not in mine:
                    assert torch.equal(vectors[slot], old[number][slot])
                    rested += 1
    assert rested > 10


@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_stepping_inside_the_backward_pass_is_the_same(rule):
    runs = []
    for fused_backward in (False, True):
        model, optimizer = started(rule, torch.float32, fused_backward=fused_backward)
        train(model, optimizer, 9)
        runs.append(everything(model, optimizer))
    assert_same(*runs)


def test_a_run_goes_on_in_turn_from_a_state_of_any_step():
    model, optimizer = started(dtype=torch.float32)
    train(model, optimizer, 5)
    again, its_optimizer = started(dtype=torch.float32)
    again.load_state_dict(model.state_dict())
    its_optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    for run in ((model, optimizer), (again, its_optimizer)):
        train(*run, range(5, 9))
    assert_same(everything(again, its_optimizer), everything(model, optimizer))


@pytest.mark.parametrize("alternate", [False, True])
def test_the_weight_update_is_one_product_of_rank_r(alternate):
    dims, r = (33, 20, 65), 3
    model, optimizer = start(config_of(r=r, alternate=alternate), dims)
    expected = sum((2 if alternate else 4) * m * n * r for n, m in itertools.pairwise(dims))
    for step in range(2):
        backward(model, step)
        assert count_flops(optimizer.step) == model_weight_update_flops(model, alternate=alternate) == expected
        optimizer.zero_grad()
