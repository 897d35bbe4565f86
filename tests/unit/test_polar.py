"""The weights' group, and that nothing but the option brings it about."""

import copy
import math
import pickle

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import lr_scheduler

from switchlora import SwitchLora, UserError, convert, memory, to_dense
from switchlora.baselines.relora import ReLora
from switchlora.muon import scaled
from tests.numerics.cases import assert_same, backward, chain, config_of, everything, layers_of, start, train

KINDS = {"fp32": (torch.float32, None), "bf16": (torch.bfloat16, None), "all bf16": (torch.bfloat16, torch.bfloat16),
         "fp64": (torch.float64, None)}  # fmt: skip


def fresh(kind: str = "fp32", polar: float = 0.5, **settings):
    torch.manual_seed(0)
    dtype, factor_dtype = KINDS[kind]
    config = config_of(polar=polar, **settings.pop("config", {}))
    return start(config, dtype=dtype, factor_dtype=factor_dtype, **{"weight_decay": 0.1, **settings})


def test_without_it_weights_take_no_gradient_and_are_in_no_group():
    model, optimizer = fresh(polar=0.0)
    backward(model)
    assert all(layer.weight.grad is None and not layer.weight.requires_grad for layer in layers_of(model))
    assert [len(group["params"]) for group in optimizer.param_groups] == [4, 2]  # factors; biases
    assert config_of().polar == 0.0


def test_weights_are_a_group_of_their_own_without_state():
    model, optimizer = fresh(lr=0.02, other_lr=0.03)
    without = fresh(polar=0.0)
    factors, weights, others = optimizer.param_groups
    assert all(map(torch.equal, weights["params"], (layer.weight for layer in layers_of(model))))
    assert (weights["lr"], weights["weight_decay"], weights["clip"]) == (0.02, 0.0, False)
    assert (factors["lr"], factors["weight_decay"], others["lr"]) == (0.02, 0.1, 0.03)
    for one in ((model, optimizer), without):
        train(*one, 3)
    assert all(optimizer.state[weight] == {} for weight in weights["params"])
    held, plain = memory(model, optimizer), memory(*without)
    assert held.optimizer_device_bytes == plain.optimizer_device_bytes
    assert held.weight_bytes == plain.weight_bytes


def test_a_gradient_of_the_size_of_w_is_held_and_dropped():
    (model, optimizer), without = fresh(), fresh(polar=0.0)
    for one in (model, without[0]):
        backward(one)
    more = memory(model, optimizer).gradient_bytes - memory(*without).gradient_bytes
    assert more == sum(layer.weight.nbytes for layer in layers_of(model))
    gradients = [p.grad.clone() for p in model.parameters()]
    optimizer.step()
    assert all(torch.equal(p.grad, grad) for p, grad in zip(model.parameters(), gradients, strict=True))
    optimizer.zero_grad()
    assert all(p.grad is None for p in model.parameters())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("settings", [{}, {"rule": "muon", "config": {"order": "random"}}], ids=["adamw", "muon"])
def test_a_saved_run_goes_on_bitwise(tmp_path, kind, settings):
    model, optimizer = fresh(kind, **settings)
    train(model, optimizer, 10)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    copies = [copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
    train(model, optimizer, range(10, 20))
    loaded = fresh(kind, **settings)
    train(*loaded, 3)  # a state to be overwritten
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    loaded[0].load_state_dict(saved["model"])
    loaded[1].load_state_dict(saved["optimizer"])
    for other in (*copies, loaded):
        assert all(layer.weight.requires_grad for layer in layers_of(other[0]))
        train(*other, range(10, 20))
        assert_same(everything(*other), everything(model, optimizer))


def test_states_with_and_without_it_are_not_taken_for_each_other():
    (_, with_it), (_, without) = fresh(), fresh(polar=0.0)
    for one, other in ((with_it, without), (without, with_it)):
        with pytest.raises(UserError, match=r"has [23] parameter groups and this optimizer [23]; load it with .*polar"):
            one.load_state_dict(other.state_dict())
    without.add_param_group({"params": [nn.Parameter(torch.ones(2))]})  # as many
    with pytest.raises(UserError, match=r"optimizer state holds .* where this optimizer has nothing; load it with"):
        with_it.load_state_dict(without.state_dict())


def test_a_scheduler_acts_on_it_as_on_the_others():
    model, optimizer = fresh(lr=0.02)
    scheduler = lr_scheduler.LambdaLR(optimizer, lambda step: float(step == 0))
    train(model, optimizer, 1)
    scheduler.step()
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0, 0.0]
    before = [layer.weight.clone() for layer in layers_of(model)]
    train(model, optimizer, range(1, 5))
    assert all(torch.equal(layer.weight, W) for layer, W in zip(layers_of(model), before, strict=True))


def test_the_share_is_not_in_the_rate_that_loops_and_schedulers_set():
    """Many of them give all groups one rate; and the share is the configuration's, not a loaded state's."""
    saved, (model, optimizer) = fresh(polar=0.5)[1].state_dict(), fresh(polar=0.2)
    optimizer.load_state_dict(saved)
    lr_scheduler.OneCycleLR(optimizer, max_lr=0.1, total_steps=10)
    lr = optimizer.param_groups[0]["lr"]
    assert [group["lr"] for group in optimizer.param_groups] == [lr] * 3 and lr > 0
    optimizer.param_groups[0]["lr"] = 0.0  # so that only this step moves W
    before = [layer.weight.clone() for layer in layers_of(model)]
    backward(model)
    optimizer.step()
    for layer, W in zip(layers_of(model), before, strict=True):
        torch.testing.assert_close(W - layer.weight, 0.2 * lr * scaled(layer.weight.grad))


def test_every_rounding_of_a_step_has_random_bits_of_its_own(monkeypatch):
    model, optimizer = fresh("bf16")
    purposes = []

    def key_of(name, suffix=""):
        return lambda purpose: purposes.append((name, purpose + suffix)) or len(purposes)

    monkeypatch.setattr(optimizer, "_key_of", key_of)
    train(model, optimizer, 1)
    assert len(purposes) == len(set(purposes)) > 4


def test_a_layer_that_takes_no_part_is_named(caplog):
    """One whose weight the model reads itself, and one that was frozen after the optimizer was made."""
    model, optimizer = fresh()
    first, second = layers_of(model)
    second.weight.requires_grad_(False)
    first.forward = lambda input: nn.functional.linear(input, first.weight, first.bias)
    backward(model)
    assert first.weight.grad is not None and second.lora_A.grad is not None
    optimizer.step()
    assert "2 converted layers got no gradient in the first step, such as 0" in caplog.text


def test_clipping_and_a_gradient_scaler_see_it():
    """The direction knows no size; what the scaler unscales is the gradient before it."""
    model, optimizer = fresh("fp64")
    twin, plain = fresh("fp64")
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(4):
        generator = torch.Generator().manual_seed(step)
        x = torch.randn(5, 7, generator=generator, dtype=torch.float64)
        scaler.scale(model(x).square().mean()).backward()
        scaler.unscale_(optimizer)
        twin(x).square().mean().backward()
        for one, other in zip(model.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(one.grad, other.grad)
        expected = math.sqrt(sum(float(p.grad.square().sum()) for p in twin.parameters()))  # of W, too
        for one in (model, twin):
            assert float(nn.utils.clip_grad_norm_(one.parameters(), 0.01)) == pytest.approx(expected)
        scaler.step(optimizer)
        scaler.update()
        plain.step()
        optimizer.zero_grad()
        plain.zero_grad()
    for one, other in zip(model.parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(one, other)


def test_a_layer_without_all_its_gradients_is_left_alone():
    model, optimizer = fresh()
    backward(model)
    first, second = layers_of(model)
    first.weight.grad = None
    before = [p.detach().clone() for p in (first.weight, first.lora_A, first.lora_B)]
    moving = second.weight.detach().clone()
    optimizer.step()
    assert all(map(torch.equal, before, (first.weight, first.lora_A, first.lora_B)))
    assert not torch.equal(second.weight, moving)


def test_the_dense_model_is_a_plain_one():
    model, optimizer = fresh()
    train(model, optimizer, 3)
    weights = [layer.weight.detach().clone() for layer in layers_of(model)]
    to_dense(model)
    assert [type(module) for module in model] == [nn.Linear, nn.Tanh, nn.Linear]
    assert all(torch.equal(model[i].weight, W) for i, W in zip((0, 2), weights, strict=True))
    assert all(p.requires_grad for p in model.parameters())


def test_a_group_may_be_added_and_is_of_ordinary_parameters():
    model, optimizer = fresh()
    more = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [more]})
    assert optimizer.state[more].keys() == {"exp_avg", "exp_avg_sq", "step"}
    backward(model)
    more.grad = torch.ones(3)
    optimizer.step()
    assert (more < 1).all()


@pytest.mark.parametrize(("converted", "given"), [(0.0, 0.5), (0.5, 0.0)])
def test_another_configuration_than_the_layers_is_refused(converted, given):
    model = chain()
    convert(model, config_of(polar=converted))
    with pytest.raises(UserError, match="layer 0 was converted with another configuration"):
        SwitchLora(model, config_of(polar=given), total_steps=10, lr=0.1)


def test_weights_that_were_frozen_since_are_refused():
    model, config = chain(), config_of(polar=0.5)
    convert(model, config)
    layers_of(model)[0].weight.requires_grad_(False)
    with pytest.raises(UserError, match=r"layer 0: .* weight must, with polar above 0; undo the requires_grad_\(\)"):
        SwitchLora(model, config, total_steps=10, lr=0.1)


def test_without_it_a_weight_that_is_asked_for_its_gradient_has_none():
    """As by torch.func, or by requires_grad_ after convert: the factors' way stays what it is."""
    model, _ = fresh(polar=0.0)
    backward(model)
    factors = [layer.lora_A.grad.clone() for layer in layers_of(model)]
    model.zero_grad()
    model.requires_grad_(True)
    backward(model)
    assert all(layer.weight.grad is None for layer in layers_of(model))
    assert all(map(torch.equal, factors, (layer.lora_A.grad for layer in layers_of(model))))


def test_relora_is_refused():
    model, config = chain(), config_of(polar=0.5, init_lora_weights="lora")
    convert(model, config)
    with pytest.raises(UserError, match=r"polar=0.5: ReLoRA trains its factors alone; use polar=0"):
        ReLora(model, config, restart_every=5, rewarm_steps=1, total_steps=10, lr=0.1)


@pytest.mark.usefixtures("two_processes")
def test_sharded_layers_are_refused():
    model, config = chain(), config_of(polar=0.5)
    convert(model, config)
    fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    with pytest.raises(UserError, match=r"polar=0.5: needs whole matrices, and layer 0 is sharded; use DDP, or"):
        SwitchLora(model, config, total_steps=10, lr=0.1)
