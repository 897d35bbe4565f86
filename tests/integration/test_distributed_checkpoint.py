"""torch.distributed.checkpoint's state functions, which call step() on an optimizer that has no state."""

import copy

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from switchlora import SwitchLora, convert
from tests.numerics.cases import assert_same, chain, config_of, everything, start, train

FORMS = [StateDictOptions(), StateDictOptions(flatten_optimizer_state_dict=True)]
FORM = pytest.mark.parametrize("options", FORMS, ids=["nested", "flat"])


@FORM
def test_asking_a_fresh_optimizer_changes_nothing(options):
    model, optimizer = start(config_of(), lr=0.1, weight_decay=0.1)
    before = everything(model, optimizer)
    state = get_optimizer_state_dict(model, optimizer, options=options)
    assert_same(everything(model, optimizer), before)
    keys = state.keys() if options.flatten_optimizer_state_dict else state["state"].keys()
    assert any("0.lora_A" in key for key in keys)
    assert all(p.grad is None for p in model.parameters())


@FORM
@pytest.mark.parametrize("settings", [{}, {"order": "random"}, {"candidates": "fresh"}, {"polar": 0.5}])
def test_a_state_that_went_round_goes_on_bitwise(options, settings):
    model, optimizer = start(config_of(**settings))
    train(model, optimizer, 10)
    saved = copy.deepcopy(
        {"model": get_model_state_dict(model), "optimizer": get_optimizer_state_dict(model, optimizer, options=options)}
    )
    train(model, optimizer, range(10, 20))
    other_model, other = start(config_of(**settings))
    set_model_state_dict(other_model, saved["model"])
    set_optimizer_state_dict(other_model, other, saved["optimizer"], options=options)
    train(other_model, other, range(10, 20))
    assert_same(everything(other_model, other), everything(model, optimizer))


@FORM
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.filterwarnings("ignore:torch.distributed is disabled, unavailable or uninitialized:UserWarning")
@pytest.mark.parametrize("polar", [0.0, 0.5])
def test_a_checkpoint_on_disk_goes_on_bitwise(tmp_path, options, dtype, polar):
    def fresh():
        torch.manual_seed(0)
        return start(config_of(polar=polar), dtype=dtype)

    def state_of(model, optimizer):
        state = get_optimizer_state_dict(model, optimizer, options=options)
        return {"model": get_model_state_dict(model), "optimizer": state}

    model, optimizer = fresh()
    train(model, optimizer, 10)
    dcp.save(state_of(model, optimizer), checkpoint_id=tmp_path / "checkpoint")
    train(model, optimizer, range(10, 20))
    other_model, other = fresh()
    saved = state_of(other_model, other)
    dcp.load(saved, checkpoint_id=tmp_path / "checkpoint")
    set_model_state_dict(other_model, saved["model"])
    set_optimizer_state_dict(other_model, other, saved["optimizer"], options=options)
    assert other.param_groups[0]["step"] == 10
    train(other_model, other, range(10, 20))
    assert_same(everything(other_model, other), everything(model, optimizer))


class Renamed(nn.Module):
    """A wrapper that puts a prefix before every name, as DDP and torch.compile do."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, x):
        return self.module(x)


@FORM
def test_a_wrapper_with_a_prefix_round_trips(options):
    runs = []
    for _ in range(2):
        torch.manual_seed(0)
        model, config = chain(), config_of()
        convert(model, config)
        wrapped = Renamed(model)
        runs.append((wrapped, SwitchLora(wrapped, config, total_steps=100, lr=1e-2)))
    (model, optimizer), (other_model, other) = runs
    train(model, optimizer, 5)
    set_model_state_dict(other_model, copy.deepcopy(get_model_state_dict(model)))
    state = copy.deepcopy(get_optimizer_state_dict(model, optimizer, options=options))
    set_optimizer_state_dict(other_model, other, state, options=options)
    assert_same(everything(other_model, other), everything(model, optimizer))
