"""One optimizer step, rule by rule: the order of docs/algorithm.md, seen through the public optimizer."""

import copy
import math

import pytest
import torch

from tests.numerics.cases import backward, config_of, layers_of, side_state, start, switch_alone, train

OTHER = {"A": "B", "B": "A"}


class Scripted:
    """Draws that switch in one step only."""

    def __init__(self, step: int = 0) -> None:
        self.step = step

    def uniform(self, name: str, step: int) -> float:
        return 0.0 if step == self.step else 1.0 - 2**-53

    def choose(self, name, side, step, idle, num):
        return idle[:num]


def one_layer(switch_at: int = 3, r: int = 6, N: int = 5, **settings):
    """A layer that switches one vector per side, in one step only: slot 0 of A, slot 3 of B."""
    optimizer_settings = {key: settings.pop(key) for key in ("lr", "weight_decay", "rule") if key in settings}
    config = config_of(r=r, interval=2.0 * r, freeze_steps=N, **settings)
    model, optimizer = start(config, (12, 10), torch.float64, **optimizer_settings)
    optimizer.draws = Scripted(switch_at)
    (layer,) = layers_of(model)
    return model, optimizer, layer


def vectors(layer, letter):
    return (layer.lora_A if letter == "A" else layer.lora_B.T).detach()


def moments(optimizer, layer, letter, name):
    state = side_state(optimizer, layer, letter)[name]
    return state if letter == "A" else state.T


@pytest.mark.parametrize(("letter", "slot"), [("A", 0), ("B", 3)])
def test_the_incoming_vector_keeps_its_slot_s_state_and_moves_in_this_very_step(letter, slot):
    """(c): from the pool's value, by AdamW on the slot's moments and the gradient taken before the switch."""
    model, optimizer, layer = one_layer()
    train(model, optimizer, 3)
    backward(model, 3)
    gradient = (layer.lora_A.grad if letter == "A" else layer.lora_B.grad.T)[slot].clone()
    m, v = (moments(optimizer, layer, letter, name)[slot].clone() for name in ("exp_avg", "exp_avg_sq"))
    arriving = side_state(optimizer, layer, letter)["candidates"][0].clone()
    optimizer.step()
    assert optimizer.outcomes[layer.name].switches[letter].slots.tolist() == [slot]
    assert optimizer.outcomes[layer.name].switches[letter].incoming.tolist() == [0]
    m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
    torch.testing.assert_close(moments(optimizer, layer, letter, "exp_avg")[slot], m, rtol=1e-12, atol=0)
    direction = (m / (1 - 0.9**4)) / ((v / (1 - 0.999**4)).sqrt() + 1e-8)
    torch.testing.assert_close(vectors(layer, letter)[slot], arriving - 1e-2 * direction, rtol=1e-12, atol=0)
    assert int(side_state(optimizer, layer, letter)["step"].view(-1)[slot]) == 4
    assert int(side_state(optimizer, layer, letter)["frozen"][slot]) == 0


@pytest.mark.parametrize("letter", ["A", "B"])
def test_the_outgoing_vector_s_trained_value_is_back_among_the_candidates(letter):
    model, optimizer, layer = one_layer()
    slot = {"A": 0, "B": 3}[letter]
    train(model, optimizer, 3)
    backward(model, 3)
    state = side_state(optimizer, layer, letter)
    leaving, place = vectors(layer, letter)[slot].clone(), int(state["slots"][slot])
    assert not torch.equal(state["candidates"][place], leaving)  # a stale copy while the vector is live
    pool = state["candidates"].clone()
    optimizer.step()
    assert torch.equal(state["candidates"][place], leaving)
    pool[place] = leaving
    assert torch.equal(state["candidates"], pool)  # and nothing else changed there
    assert int(state["slots"][slot]) == 0


@pytest.mark.parametrize("letter", ["A", "B"])
@pytest.mark.parametrize("N", [1, 2, 5])
def test_the_counterpart_is_reset_and_rests_for_n_steps_this_one_included(letter, N):
    """(c) and (d): moments zero and value still for N steps, while its counter runs on; all others move."""
    model, optimizer, layer = one_layer(N=N)
    slot = {"A": 0, "B": 3}[OTHER[letter]]  # where the other side switches, this side's counterpart rests
    train(model, optimizer, 3)
    still = vectors(layer, letter)[slot].clone()
    for rested in range(1, N + 1):
        before = vectors(layer, letter).clone()
        train(model, optimizer, range(2 + rested, 3 + rested))
        moved = (vectors(layer, letter) != before).all(dim=1)
        assert torch.equal(vectors(layer, letter)[slot], still)
        assert moved.sum() == len(moved) - 1
        for name in ("exp_avg", "exp_avg_sq"):
            assert not moments(optimizer, layer, letter, name)[slot].any()
        assert int(side_state(optimizer, layer, letter)["step"].view(-1)[slot]) == rested
        assert int(side_state(optimizer, layer, letter)["frozen"][slot]) == N - rested
    train(model, optimizer, range(3 + N, 4 + N))
    assert (vectors(layer, letter)[slot] != still).all()


@pytest.mark.parametrize("rule", ["adamw", "muon"])
@pytest.mark.parametrize("reset", [True, False])
@pytest.mark.parametrize("value", [math.inf, math.nan])
def test_a_resting_vector_and_w_stay_finite_whatever_its_gradient_is(value, reset, rule):
    """(d): it counts as zero, which a product with zero would not make of it."""
    model, optimizer, layer = one_layer(N=5, reset=reset, rule=rule)
    train(model, optimizer, 4)
    for letter in "AB":
        (slot,) = side_state(optimizer, layer, letter)["frozen"].view(-1).nonzero()[:1, 0].tolist()
        backward(model, 4)
        factor = layer.lora_A if letter == "A" else layer.lora_B.T
        still = factor.detach()[slot].clone()
        (layer.lora_A.grad if letter == "A" else layer.lora_B.grad.T)[slot] = value
        optimizer.step()
        optimizer.zero_grad()
        assert torch.equal(factor.detach()[slot], still)
        for tensor in (layer.weight, layer.lora_A, layer.lora_B):
            assert tensor.isfinite().all()


@pytest.mark.parametrize(("N", "expected"), [(5, 0.522), (1, 0.744), (2, 0.639)])
def test_the_first_live_update_after_a_rest_is_smaller_than_lr(N, expected):
    """Its counter ran on: 0.1 / (1 - 0.9^(N+1)) over the root of 0.001 / (1 - 0.999^(N+1)); 0.522 lr at N = 5."""
    model, optimizer, layer = one_layer(N=N, lr=1e-3)
    train(model, optimizer, 3 + N)
    before = layer.lora_A.detach().clone()
    train(model, optimizer, range(3 + N, 4 + N))
    change = (layer.lora_A.detach() - before)[3].abs() / 1e-3
    exact = (0.1 / (1 - 0.9 ** (N + 1))) / math.sqrt(0.001 / (1 - 0.999 ** (N + 1)))
    torch.testing.assert_close(change, torch.full_like(change, exact), rtol=1e-4, atol=0)
    assert exact == pytest.approx(expected, abs=5e-4)


def test_without_a_freeze_the_stale_gradient_is_used_after_the_reset():
    """N = 0, an ablation: the counterpart's first step after the reset is Adam's first, of full size."""
    model, optimizer, layer = one_layer(N=0)
    train(model, optimizer, 3)
    backward(model, 3)
    before, gradient = layer.lora_A.detach().clone(), layer.lora_A.grad.clone()
    optimizer.step()
    torch.testing.assert_close((layer.lora_A - before)[3], -1e-2 * gradient[3].sign(), rtol=1e-3, atol=0)
    assert side_state(optimizer, layer, "A")["step"].view(-1).tolist() == [4, 4, 4, 1, 4, 4]
    assert not side_state(optimizer, layer, "A")["frozen"].any()


def test_without_a_reset_the_state_stays_and_a_frozen_vector_still_does_not_move():
    model, optimizer, layer = one_layer(reset=False)
    train(model, optimizer, 3)
    still, m = layer.lora_A.detach()[3].clone(), side_state(optimizer, layer, "A")["exp_avg"][3].clone()
    train(model, optimizer, range(3, 8))
    assert torch.equal(layer.lora_A.detach()[3], still)
    torch.testing.assert_close(side_state(optimizer, layer, "A")["exp_avg"][3], m * 0.9**5)
    assert side_state(optimizer, layer, "A")["step"].unique().tolist() == [8]
    assert (optimizer.stats.total.resets_requested, optimizer.stats.total.resets_done) == (2, 0)


def test_the_switch_comes_before_the_rule_and_the_weight_after_it():
    """(b) (e) (f): W moves by the change of A and B since the switch, not by the exchange."""
    model, optimizer, layer = one_layer(switch_at=0)
    backward(model)
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    optimizer.step()
    (other,) = layers_of(twin)
    with torch.no_grad():
        switch_alone(twin_optimizer, other, 0)
    A, B, W = (t.detach().clone() for t in (other.lora_A, other.lora_B, other.weight))
    expected = W + layer.scaling * (layer.lora_B @ layer.lora_A - B @ A)
    torch.testing.assert_close(layer.weight, expected.detach(), rtol=1e-13, atol=1e-15)


def test_lora_init_never_switches_b_and_never_rests_a():
    model, optimizer = start(config_of(init_lora_weights="lora"), dtype=torch.float64)
    layers = layers_of(model)
    assert not any(layer.lora_B.any() for layer in layers)
    for step in range(20):
        train(model, optimizer, range(step, step + 1))
        assert not any("B" in outcome.switches for outcome in optimizer.outcomes.values())
        assert not any(side_state(optimizer, layer, "A")["frozen"].any() for layer in layers)
    assert optimizer.stats.total.switches_done > 10
    assert optimizer.stats.total.switches_done == optimizer.stats.total.switches_requested
    assert "candidates" not in side_state(optimizer, layers[0], "B")
