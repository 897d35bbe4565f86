"""Stepping inside the backward pass computes what a step after it does, holds few gradients, and refuses the rest."""

import contextlib
import copy
import gc
import math
import pickle

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from switchlora import SwitchLora, UserError, convert, memory, switching
from switchlora.spent_gradient import SpentGradient
from tests.numerics.cases import assert_same, backward, chain, config_of, everything, layers_of, start, train

DIMS = (7, 13, 9, 13, 7)
DTYPES = {"fp32": (torch.float32, None), "bf16": (torch.bfloat16, None), "all bf16": (torch.bfloat16, torch.bfloat16),
          "fp64": (torch.float64, None)}  # fmt: skip


def fresh(fused_backward: bool, kind: str = "fp32", **settings):
    torch.manual_seed(0)
    dtype, factor_dtype = DTYPES[kind]
    config = config_of(**settings.pop("config", {}))
    return start(config, DIMS, dtype, factor_dtype=factor_dtype, fused_backward=fused_backward, **settings)


def has_gradient(parameter):
    return parameter.grad is not None and not isinstance(parameter.grad, SpentGradient)


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("settings", [{}, {"polar": 0.5, "candidates": "fresh"}, {"init_lora_weights": "lora"}])
def test_a_run_is_the_same_bit_for_bit(kind, settings):
    runs = []
    for fused_backward in (False, True):
        model, optimizer = fresh(fused_backward, kind, config=settings, weight_decay=0.1, other_lr=0.02)
        losses = train(model, optimizer, 20)
        runs.append((everything(model, optimizer), losses, optimizer.stats, optimizer.outcomes.keys()))
    assert_same(runs[0][0], runs[1][0])
    assert runs[0][1:] == runs[1][1:]
    assert runs[0][2].total.switches_done > 20


@pytest.mark.parametrize("polar", [0.0, 0.5])
def test_no_gradient_outlives_its_layer(polar):
    """While a layer further down is at work, those above it have no gradients any more."""
    model, optimizer = fresh(True, config={"polar": polar})
    alive = []
    for layer in layers_of(model)[1:]:  # the first one's input needs no gradient
        layer.register_full_backward_pre_hook(lambda *_: alive.append(sum(has_gradient(p) for p in model.parameters())))
    backward(model)
    assert len(alive) == 3
    assert max(alive) <= 2  # a bias may still wait for its turn
    assert memory(model, optimizer).gradient_bytes == 0
    optimizer.step()
    assert all(p.grad is None for p in model.parameters())


def test_a_run_that_was_saved_goes_on_the_same_way(tmp_path):
    model, optimizer = fresh(True)
    train(model, optimizer, 10)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    train(model, optimizer, range(10, 20))
    other_model, other = fresh(False)  # and on the other way of stepping
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    other_model.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    train(other_model, other, range(10, 20))
    assert_same(everything(other_model, other), everything(model, optimizer))


def test_copies_step_themselves_and_leave_the_original_alone():
    model, optimizer = fresh(True)
    train(model, optimizer, 5)
    copies = [copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
    before = everything(model, optimizer)
    for twin, twin_optimizer in copies:
        train(twin, twin_optimizer, range(5, 10))
    assert_same(everything(model, optimizer), before)
    train(model, optimizer, range(5, 10))
    for twin, twin_optimizer in copies:
        assert_same(everything(twin, twin_optimizer), everything(model, optimizer))


def test_a_discarded_optimizer_steps_nothing():
    model, optimizer = fresh(True)
    del optimizer
    gc.collect()
    before = copy.deepcopy(model.state_dict())
    backward(model)
    assert_same(dict(model.state_dict()), dict(before))
    assert layers_of(model)[0].lora_A.grad is not None


def test_a_closure_is_stepped_once():
    model, optimizer = fresh(True)
    twin, plain = fresh(False)
    optimizer.step(lambda: backward(model))
    backward(twin)
    plain.step()
    plain.zero_grad()
    assert_same(everything(model, optimizer), everything(twin, plain))


def test_the_learning_rate_is_that_at_the_backward_pass():
    model, optimizer = fresh(True)
    weight = layers_of(model)[0].weight.clone()
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    train(model, optimizer, 1)
    assert torch.equal(layers_of(model)[0].weight, weight)


def test_accumulation_is_refused_when_it_happens():
    model, _optimizer = fresh(True)
    backward(model, 0)
    with pytest.raises(UserError, match=r"gradients twice without a step.*accumulation.* need fused_backward=False"):
        backward(model, 1)


@pytest.mark.parametrize("use_reentrant", [False, True])
def test_a_layer_in_several_checkpoints_is_refused_where_each_has_its_own_backward_pass(use_reentrant):
    model, config = Uses(), config_of()
    convert(model, config)
    optimizer = SwitchLora(model, config, total_steps=100, lr=1e-2, fused_backward=True)
    x = torch.randn(5, 6, requires_grad=True)
    for layer in (model.a, model.b, model.a):
        x = checkpoint(layer, x, use_reentrant=use_reentrant).tanh()
    refused = pytest.raises(UserError, match="several reentrant checkpoints")
    with refused if use_reentrant else contextlib.nullcontext():
        x.sum().backward()
        optimizer.step()


class Uses(nn.Module):
    """Two layers of one shape; in a forward pass each is called as often as it is named in `calls`."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
        self.calls = "ab"

    def forward(self, x):
        for name in self.calls:
            x = getattr(self, name)(x).tanh()
        return x


def used(calls: list[str], fused_backward: bool, order: str = "random"):
    """A run in which step i calls the layers named in calls[i]."""
    torch.manual_seed(0)
    model, config = Uses(), config_of(order=order)
    convert(model, config)
    optimizer = SwitchLora(model, config, total_steps=100, lr=1e-2, fused_backward=fused_backward)
    for step, model.calls in enumerate(calls):
        train(model, optimizer, range(step, step + 1))
    return everything(model, optimizer)


@pytest.mark.parametrize("calls", [["aba", "aab", "bb"] * 4, ["ab", "b", "a"] * 4], ids=["several", "none"])
def test_a_layer_may_be_called_several_times_in_a_forward_pass_or_not_at_all(calls):
    assert_same(used(calls, True), used(calls, False))


def test_a_layer_of_two_names_is_refused():
    linear, config = nn.Linear(6, 6), config_of()
    model = nn.Sequential(linear, nn.Tanh(), linear)
    convert(model, config)
    with pytest.raises(UserError, match=r"layer 0 is also 2.*fused_backward=False"):
        SwitchLora(model, config, total_steps=10, lr=0.1, fused_backward=True)


def test_what_a_shape_switches_is_chosen_once_a_step(monkeypatch):
    model, optimizer = fresh(True)
    train(model, optimizer, 2)
    plans, plan = [], switching.plan
    monkeypatch.setattr(switching, "plan", lambda *args: plans.append(args[4]) or plan(*args))
    train(model, optimizer, range(2, 4))
    names = [[layer.name for layer in group.layers] for group in optimizer._layer_groups]
    assert sorted(plans) == sorted(names * 2)


@pytest.mark.parametrize("value", ["yes", 1, None], ids=str)
def test_the_argument_is_a_bool(value):
    with pytest.raises(UserError, match=r"fused_backward=.*: must be True or False"):
        fresh(value)


def test_a_later_optimizer_has_the_gradients_and_the_earlier_one_says_so():
    """As where a cell of a notebook is run again."""
    model, earlier = fresh(True)
    train(model, earlier, 1)
    later = SwitchLora(model, earlier.config, total_steps=100, lr=1e-2, fused_backward=True)
    backward(model, 1)
    with pytest.raises(UserError, match="a later optimizer steps this model inside its backward passes now; use that"):
        earlier.step()
    later.step()
    del earlier
    gc.collect()
    train(model, later, range(2, 4))
    assert later.param_groups[0]["step"] == 3


@pytest.mark.parametrize("unscaled", [False, True])
def test_a_gradient_scaler_is_refused(unscaled):
    model, optimizer = fresh(True)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.randn(5, 7)).square().mean()).backward()
    with pytest.raises(UserError, match=r"GradScaler.*scaled gradients.*bfloat16.*fused_backward=False"):
        scaler.unscale_(optimizer) if unscaled else scaler.step(optimizer)
    optimizer.step()
    train(model, optimizer, 1)  # without it


CLIPPING = {
    "norm": lambda parameters: nn.utils.clip_grad_norm_(parameters, 1.0),
    "one by one": lambda parameters: nn.utils.clip_grad_norm_(parameters, 1.0, foreach=False),
    "value": lambda parameters: nn.utils.clip_grad_value_(parameters, 1.0),
    "by hand": lambda parameters: [parameter.grad.mul_(0.5) for parameter in parameters],
}


@pytest.mark.parametrize("clip", CLIPPING.values(), ids=CLIPPING)
def test_clipping_is_refused_when_it_happens(clip):
    model, optimizer = fresh(True)
    backward(model)
    with pytest.raises(UserError, match=r"stepped in the backward pass.*clip.*max_grad_norm=0.*fused_backward=False"):
        clip([parameter for parameter in model.parameters() if parameter.requires_grad])
    optimizer.step()
    train(model, optimizer, 1)  # without it


def test_what_is_left_of_a_gradient_looks_like_it_and_may_be_measured_in_vain():
    """As transformers.Trainer does for its log where it does not clip."""
    model, _ = fresh(True)
    backward(model)
    assert nn.utils.clip_grad_norm_(model.parameters(), math.inf) == math.inf
    for parameter in (parameter for parameter in model.parameters() if parameter.requires_grad):
        grad = parameter.grad
        assert (grad.shape, grad.dtype, grad.device) == (parameter.shape, parameter.dtype, parameter.device)
        assert "Spent" in repr(grad)


def test_gradients_from_before_are_refused():
    model, config = chain(), config_of()
    convert(model, config)
    backward(model)
    with pytest.raises(UserError, match=r"fused_backward=True: .* has a gradient already; call zero_grad\(\)"):
        SwitchLora(model, config, total_steps=10, lr=0.1, fused_backward=True)


def test_a_gradient_scaler_works_with_a_step_of_its_own():
    model, optimizer = fresh(False)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(model(torch.randn(5, 7)).square().mean()).backward()
    scaler.step(optimizer)
    assert optimizer.param_groups[0]["step"] == 1


@pytest.mark.usefixtures("two_processes")
def test_several_processes_and_ddp_are_refused():
    model, config = chain(), config_of()
    convert(model, config)
    with pytest.raises(UserError, match=r"2 processes.*fused_backward=False"):
        SwitchLora(model, config, total_steps=10, lr=0.1, fused_backward=True)
    with pytest.raises(UserError, match=r"DDP.*fused_backward=False"):
        SwitchLora(nn.parallel.DistributedDataParallel(model), config, total_steps=10, lr=0.1, fused_backward=True)


def test_ddp_after_construction_is_refused_when_it_is_used(request):
    model, optimizer = fresh(True)
    before = everything(model, optimizer)
    request.getfixturevalue("two_processes")
    wrapped = nn.parallel.DistributedDataParallel(model)
    for _ in range(2):
        with pytest.raises(UserError, match=r"2 processes.*DDP.*fused_backward=False"):
            wrapped(torch.randn(5, 7)).sum().backward()
    assert_same(everything(model, optimizer), before)


def test_gradients_that_are_there_again_are_refused():
    """As DDP of one process leaves them, which would be stepped a second time."""
    model, optimizer = fresh(True)
    backward(model)
    layers_of(model)[1].lora_B.grad = torch.zeros_like(layers_of(model)[1].lora_B)
    with pytest.raises(UserError, match=r": 2 was stepped .* has a gradient again.*fused_backward=False"):
        optimizer.step()
