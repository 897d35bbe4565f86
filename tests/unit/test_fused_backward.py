"""Stepping inside the backward pass computes what a step after it does, holds few gradients, and refuses the rest."""

import copy
import gc
import pickle

import pytest
import torch
import torch.distributed as dist
from torch import nn
from torch.testing._internal.distributed.fake_pg import FakeStore

from switchlora import SwitchLora, UserError, convert
from tests.numerics.cases import assert_same, backward, chain, config_of, everything, layers_of, start, train

DIMS = (7, 13, 9, 13, 7)
DTYPES = {"fp32": (torch.float32, None), "bf16": (torch.bfloat16, None), "all bf16": (torch.bfloat16, torch.bfloat16),
          "fp64": (torch.float64, None)}  # fmt: skip


def fresh(fused_backward: bool, kind: str = "fp32", **settings):
    torch.manual_seed(0)
    dtype, factor_dtype = DTYPES[kind]
    config = config_of(**settings.pop("config", {}))
    return start(config, DIMS, dtype, factor_dtype=factor_dtype, fused_backward=fused_backward, **settings)


@pytest.mark.parametrize("kind", DTYPES)
@pytest.mark.parametrize("settings", [{}, {"order": "random", "candidates": "fresh"}, {"init_lora_weights": "lora"}])
def test_a_run_is_the_same_bit_for_bit(kind, settings):
    runs = []
    for fused_backward in (False, True):
        model, optimizer = fresh(fused_backward, kind, config=settings, weight_decay=0.1, other_lr=0.02)
        losses = train(model, optimizer, 20)
        runs.append((everything(model, optimizer), losses, optimizer.stats, optimizer.outcomes.keys()))
    assert_same(runs[0][0], runs[1][0])
    assert runs[0][1:] == runs[1][1:]
    assert runs[0][2].total.switches_done > 20


def test_no_gradient_outlives_its_layer():
    """While a layer further down is at work, those above it have no gradients any more."""
    model, optimizer = fresh(True)
    alive = []
    for layer in layers_of(model)[1:]:  # the first one's input needs no gradient
        layer.register_full_backward_pre_hook(
            lambda *_: alive.append(sum(p.grad is not None for p in model.parameters()))
        )
    backward(model)
    assert len(alive) == 3
    assert max(alive) <= 2  # a bias may still wait for its turn
    assert all(p.grad is None for p in model.parameters())
    optimizer.step()


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
    with pytest.raises(UserError, match=r"got gradients twice without a step.*accumulate with fused_backward=False"):
        backward(model, 1)


def test_a_shared_layer_is_refused():
    linear = nn.Linear(6, 6)
    model = nn.Sequential(linear, nn.Tanh(), linear)
    config = config_of()
    convert(model, config)
    with pytest.raises(UserError, match=r"layer 0 is also 2.*fused_backward=False"):
        SwitchLora(model, config, total_steps=10, lr=0.1, fused_backward=True)


@pytest.fixture
def two_processes():
    dist.init_process_group("fake", rank=0, world_size=2, store=FakeStore())
    yield
    dist.destroy_process_group()


@pytest.mark.usefixtures("two_processes")
def test_several_processes_and_ddp_are_refused():
    model, config = chain(), config_of()
    convert(model, config)
    with pytest.raises(UserError, match=r"2 processes.*fused_backward=False"):
        SwitchLora(model, config, total_steps=10, lr=0.1, fused_backward=True)
    with pytest.raises(UserError, match=r"DDP.*fused_backward=False"):
        SwitchLora(nn.parallel.DistributedDataParallel(model), config, total_steps=10, lr=0.1, fused_backward=True)
