"""ReLoRA: restarts that change no function, pruned moments, learning rates that warm up again, and the warm start."""

import copy

import pytest
import torch
from torch import nn

from switchlora import SwitchLoraConfig, convert
from switchlora.baselines.relora import ReLora, prune_
from switchlora.errors import UserError
from tests.numerics.cases import assert_same, backward, chain, everything, layers_of, train


def start_relora(dims=(7, 13, 9), r=3, **settings):
    torch.manual_seed(0)
    model, config = chain(dims), SwitchLoraConfig(r=r, interval=4.0, freeze_steps=2, init_lora_weights="lora")
    convert(model, config)
    return model, ReLora(
        model, config, **{"total_steps": 100, "lr": 1e-2, "restart_every": 5, "rewarm_steps": 2, **settings}
    )


def test_a_restart_leaves_the_function_and_what_trains_next_has_gradients():
    model, optimizer = start_relora()
    x = torch.randn(4, 7)
    train(model, optimizer, 4)
    before = [layer.lora_A.detach().clone() for layer in layers_of(model)]
    backward(model, 4)
    W = copy.deepcopy(model)
    restart, optimizer._restart = optimizer._restart, lambda layer: None
    optimizer.step()
    y = model(x)
    for layer in layers_of(model):
        restart(layer)
    assert torch.equal(model(x), y)
    assert not torch.equal(W(x), y)
    for layer, A in zip(layers_of(model), before, strict=True):
        assert not torch.equal(layer.lora_A, A)
        assert layer.lora_A.abs().min() > 0
        assert not layer.lora_B.any()
    optimizer.zero_grad()
    backward(model, 5)
    assert all(layer.lora_B.grad.abs().max() > 0 for layer in layers_of(model))


def test_restarts_come_when_they_should_and_the_rate_warms_up_again():
    model, optimizer = start_relora(kept_share=0.0)
    factors = [round(optimizer.rewarming(step), 4) for step in range(9)]
    assert factors == [1, 1, 1, 1, 1, 0.3333, 0.6667, 1, 1]
    train(model, optimizer, 11)
    assert optimizer.param_groups[0]["restarts"] == 2
    assert optimizer.param_groups[0]["moments_reset"] == 2 * sum(
        layer.lora_A.numel() + layer.lora_B.numel() for layer in layers_of(model)
    )
    assert optimizer.param_groups[0]["lr"] == 1e-2
    assert optimizer.stats.total.switches_done == 0


def test_a_step_that_fails_leaves_the_learning_rates():
    model, optimizer = start_relora()
    train(model, optimizer, 5)
    rates = [group["lr"] for group in optimizer.param_groups]

    def fails():
        raise RuntimeError("out of data")

    with pytest.raises(RuntimeError, match="out of data"):
        optimizer.step(fails)
    assert optimizer.param_groups[0]["rewarming"] < 1  # they were being warmed up again
    assert [group["lr"] for group in optimizer.param_groups] == rates


def test_a_restart_prunes_both_moments_where_the_first_is_not_among_the_largest_hundredth():
    """What stays is what was there, of both moments at the same places."""
    model, optimizer = start_relora(total_steps=20)
    assert optimizer.kept_share == 0.01
    train(model, optimizer, 4)
    backward(model, 4)
    restart, optimizer._restart = optimizer._restart, lambda layer: None
    optimizer.step()
    states = [optimizer.state[factor] for layer in layers_of(model) for factor in (layer.lora_A, layer.lora_B)]
    before = copy.deepcopy(states)
    optimizer.kept_share = 0.2
    for layer in layers_of(model):
        restart(layer)
    for state, old in zip(states, before, strict=True):
        kept = state["exp_avg"] != 0
        assert kept.sum() == round(0.2 * kept.numel())
        assert old["exp_avg"][kept].abs().min() >= old["exp_avg"][~kept].abs().max()
        for name in ("exp_avg", "exp_avg_sq"):
            assert torch.equal(state[name], old[name] * kept)


def test_no_step_after_a_restart_is_many_times_the_rate():
    """A first moment that is kept without its second makes steps of thousands of rates: here A has no gradient then."""
    model, optimizer = start_relora((64, 96), r=8)
    (layer,) = layers_of(model)
    longest = 0.0
    for step in range(20):
        restarted = step % 5 == 0 and step > 0
        before = [factor.detach().clone() for factor in (layer.lora_A, layer.lora_B)]
        backward(model, step)
        assert not (restarted and layer.lora_A.grad.any())
        restart, optimizer._restart = optimizer._restart, lambda layer: None
        optimizer.step()
        optimizer._restart = restart
        for factor, old in zip((layer.lora_A, layer.lora_B), before, strict=True):
            longest = max(longest, float((factor.detach() - old).abs().max()) / 1e-2)
        optimizer.zero_grad()
        if step % 5 == 4:
            restart(layer)
            assert optimizer.state[layer.lora_A]["exp_avg"].any()
    assert longest < 10


def test_after_a_restart_a_step_is_as_long_as_the_rate_that_warms_up_again():
    """The fresh B moves in proportion to it."""
    model, optimizer = start_relora(kept_share=0.0, lr=1e-2)
    train(model, optimizer, 5)
    assert optimizer.param_groups[0]["rewarming"] == 1
    layer = layers_of(model)[0]
    for moment in ("exp_avg", "exp_avg_sq"):
        assert not optimizer.state[layer.lora_B][moment].any()
    other_model, other = copy.deepcopy((model, optimizer))
    train(model, optimizer, range(5, 6))
    assert optimizer.param_groups[0]["rewarming"] == pytest.approx(1 / 3)
    other.rewarm_steps = 0
    train(other_model, other, range(5, 6))
    whole = layers_of(other_model)[0].lora_B.detach()
    torch.testing.assert_close(layer.lora_B.detach(), whole / 3, rtol=1e-4, atol=1e-9)


def test_relora_goes_on_from_a_state_as_it_would_have():
    model, optimizer = start_relora()
    train(model, optimizer, 6)
    other, resumed = start_relora()
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    copied_model, copied = copy.deepcopy((model, optimizer))
    for one in ((model, optimizer), (other, resumed), (copied_model, copied)):
        train(*one, range(6, 17))
    assert_same(everything(model, optimizer), everything(other, resumed))
    assert_same(everything(model, optimizer), everything(copied_model, copied))


def test_a_warm_start_is_full_rank_adamw_and_then_the_factors_begin():
    torch.manual_seed(0)
    plain = chain((7, 13, 9))
    adamw = torch.optim.AdamW(plain.parameters(), lr=3e-3, weight_decay=0.0, fused=True)
    model, optimizer = start_relora(warm_start_steps=4, warm_start_lr=3e-3, other_lr=3e-3)
    train(plain, adamw, 4)
    train(model, optimizer, 4)
    for layer, dense in zip(layers_of(model), (m for m in plain.modules() if type(m) is nn.Linear), strict=True):
        assert torch.equal(layer.weight, dense.weight)
        assert not layer.weight.requires_grad
        assert layer.weight not in optimizer.state
        assert not layer.lora_B.any()
    assert [round(optimizer.rewarming(step), 4) for step in range(11)] == [1] * 4 + [
        0.3333,
        0.6667,
        1,
        1,
        1,
        0.3333,
        0.6667,
    ]
    weights = [layer.weight.detach().clone() for layer in layers_of(model)]
    train(model, optimizer, range(4, 6))
    assert all(layer.weight.grad is None and layer.lora_B.any() for layer in layers_of(model))
    assert not any(torch.equal(layer.weight, W) for layer, W in zip(layers_of(model), weights, strict=True))
    train(model, optimizer, range(6, 15))
    assert optimizer.param_groups[0]["restarts"] == 2


@pytest.mark.parametrize("saved_after", [2, 4, 6])
def test_a_warm_start_goes_on_from_a_state_as_it_would_have(saved_after):
    settings = {"warm_start_steps": 4, "warm_start_lr": 3e-3}
    model, optimizer = start_relora(**settings)
    train(model, optimizer, saved_after)
    other, resumed = start_relora(**settings)
    other.load_state_dict(model.state_dict())
    resumed.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    copied_model, copied = copy.deepcopy((model, optimizer))
    for one in ((model, optimizer), (other, resumed), (copied_model, copied)):
        train(*one, range(saved_after, 17))
    assert_same(everything(model, optimizer), everything(other, resumed))
    assert_same(everything(model, optimizer), everything(copied_model, copied))


def test_pruning_keeps_the_largest_first_moments_and_their_second_ones():
    first, second = torch.tensor([[3.0, -5.0, 0.5], [1.0, 2.0, -4.0]]), torch.arange(1.0, 7.0).view(2, 3)
    assert prune_(first, second, 1 / 3) == 4
    assert first.tolist() == [[0, -5, 0], [0, 0, -4]]
    assert second.tolist() == [[0, 2, 0], [0, 0, 6]]
    prune_(first, second, 0.0)
    assert not first.any() and not second.any()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"fused_backward": True}, "fused_backward=True: ReLoRA changes the learning rate"),
        ({"rule": "muon"}, "rule='muon': ReLoRA's restarts prune AdamW's moments"),
    ],
)
def test_what_relora_does_not_go_with_is_refused(settings, message):
    with pytest.raises(UserError, match=message):
        start_relora(**settings)
