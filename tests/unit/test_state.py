"""The optimizer's state."""

import copy
import itertools

import pytest
import torch
from torch import Tensor

from switchlora import SwitchLora, UserError
from switchlora.state import _in_turn
from tests.numerics.cases import assert_same, backward, config_of, everything, layers_of, side_state, start, train

KINDS = [
    {"order": order, "candidates": candidates, "init_lora_weights": init}
    for order, candidates, init in itertools.product(("cyclic", "random"), ("pool", "fresh"), ("switchlora", "lora"))
] + [{"candidate_device": "model"}, {"interval": float("inf")}]
DTYPES = {"fp32": (torch.float32, None), "bf16": (torch.bfloat16, None), "all bf16": (torch.bfloat16, torch.bfloat16),
          "fp64": (torch.float64, None)}  # fmt: skip


def test_entries_sit_under_their_parameter_and_are_there_from_the_start():
    model, optimizer = start(config_of(r=3), (7, 13))
    (layer,) = layers_of(model)
    A, B = side_state(optimizer, layer, "A"), side_state(optimizer, layer, "B")
    shapes = {name: tuple(tensor.shape) for name, tensor in A.items()}
    assert shapes == {
        "exp_avg": (3, 7), "exp_avg_sq": (3, 7), "step": (3, 1), "frozen": (3,), "slots": (3,), "cursor": (),
        "candidates": (7, 7),
    }  # fmt: skip
    shapes = {name: tuple(tensor.shape) for name, tensor in B.items()}
    assert shapes == {
        "exp_avg": (13, 3), "exp_avg_sq": (13, 3), "step": (1, 3), "frozen": (3,), "slots": (3,), "cursor": (),
        "candidates": (7, 13),
    }  # fmt: skip
    assert set(optimizer.state[layer.bias]) == {"exp_avg", "exp_avg_sq", "step"}
    assert (A["cursor"].item(), B["cursor"].item()) == (0, 1)
    assert set(optimizer.state) == {layer.lora_A, layer.lora_B, layer.bias}
    assert layer.weight not in optimizer.state
    assert not list(layer.buffers())


@pytest.mark.parametrize(
    ("settings", "missing_A", "missing_B"),
    [
        ({"candidates": "fresh"}, {"candidates"}, {"candidates"}),
        ({"init_lora_weights": "lora"}, set(), {"candidates", "slots", "cursor"}),
        ({"interval": float("inf")}, {"candidates", "slots", "cursor"}, {"candidates", "slots", "cursor"}),
    ],
)
def test_nothing_is_kept_that_is_not_needed(settings, missing_A, missing_B):
    model, optimizer = start(config_of(**settings))
    every = {"exp_avg", "exp_avg_sq", "step", "frozen", "slots", "cursor", "candidates"}
    assert set(side_state(optimizer, layers_of(model)[0], "A")) == every - missing_A
    assert set(side_state(optimizer, layers_of(model)[0], "B")) == every - missing_B


@pytest.mark.parametrize("kind", DTYPES)
def test_moments_are_wide_counters_are_integers_and_candidates_are_as_the_factors(kind):
    dtype, factor_dtype = DTYPES[kind]
    model, optimizer = start(config_of(), dtype=dtype, factor_dtype=factor_dtype)
    wide = torch.float64 if kind == "fp64" else torch.float32
    for layer in layers_of(model):
        for side in ("A", "B"):
            state = side_state(optimizer, layer, side)
            assert {state[name].dtype for name in ("exp_avg", "exp_avg_sq")} == {wide}
            assert state["candidates"].dtype == layer.lora_A.dtype
            assert {state[name].dtype for name in ("step", "frozen")} == {torch.int32}
            assert {state[name].dtype for name in ("slots", "cursor")} == {torch.int64}
            assert not any(tensor.requires_grad for tensor in state.values())
        assert optimizer.state[layer.bias]["exp_avg"].dtype == wide


@pytest.mark.parametrize("kind", ["fp32", "bf16", "all bf16"])
def test_moments_are_in_bfloat16_where_asked(kind):
    dtype, factor_dtype = DTYPES[kind]
    model, optimizer = start(config_of(), dtype=dtype, factor_dtype=factor_dtype, moment_dtype=torch.bfloat16)
    train(model, optimizer, 3)
    for state in optimizer.state.values():
        assert {state[name].dtype for name in ("exp_avg", "exp_avg_sq")} == {torch.bfloat16}
        assert state["exp_avg"].any()
    assert side_state(optimizer, layers_of(model)[0], "A")["step"].dtype == torch.int32


def test_groups_hold_plain_numbers_and_one_step():
    model, optimizer = start(config_of())
    train(model, optimizer, 4)
    first, second = optimizer.state_dict()["param_groups"]
    assert first["step"] == 4
    assert "step" not in second
    for group in (first, second):
        for name, value in group.items():
            values = value if isinstance(value, list | tuple) else [value]
            assert all(type(v) in (int, float) for v in values), name
    for state in optimizer.state_dict()["state"].values():
        assert {type(tensor) for tensor in state.values()} == {Tensor}


@pytest.mark.parametrize("settings", KINDS, ids=str)
@pytest.mark.parametrize("kind", [*DTYPES, "bf16 moments"])
def test_a_saved_run_goes_on_bitwise(tmp_path, kind, settings):
    """torch.save, torch.load(weights_only=True), another process' optimizer: 10 + 10 steps are 20 steps."""
    dtype, factor_dtype = DTYPES.get(kind, DTYPES["bf16"])
    moment_dtype = torch.bfloat16 if kind == "bf16 moments" else None

    def fresh():
        torch.manual_seed(0)
        stored = {"factor_dtype": factor_dtype, "moment_dtype": moment_dtype}
        return start(config_of(**settings), dtype=dtype, weight_decay=0.1, **stored)

    model, optimizer = fresh()
    train(model, optimizer, 10)
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, tmp_path / "checkpoint.pt")
    train(model, optimizer, range(10, 20))
    other_model, other = fresh()
    train(other_model, other, 3)  # a state to be overwritten
    saved = torch.load(tmp_path / "checkpoint.pt", weights_only=True)
    other_model.load_state_dict(saved["model"])
    other.load_state_dict(saved["optimizer"])
    train(other_model, other, range(10, 20))
    assert_same(everything(other_model, other), everything(model, optimizer))
    assert other.stats == optimizer.stats


@pytest.mark.parametrize("missing", ["step", "switches_done"])
def test_groups_of_something_else_are_refused(missing):
    _, optimizer = start(config_of())
    saved = copy.deepcopy(optimizer.state_dict())
    del saved["param_groups"][0][missing]
    with pytest.raises(UserError, match=rf"has no {missing} in its first group.*optimizer.state_dict\(\)"):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize(
    "saved", [{}, None, 5, {"state": {}}, {"state": 5, "param_groups": []}, {"state": {}, "param_groups": {"a": 1}}],
    ids=repr,
)  # fmt: skip
def test_what_is_no_state_is_refused(saved):
    _, optimizer = start(config_of())
    with pytest.raises(UserError, match=r"is no state of an optimizer, .*; load what optimizer.state_dict\(\) gave"):
        optimizer.load_state_dict(saved)


@pytest.mark.parametrize("cast", [lambda model: model.double(), lambda model: model.half()], ids=["double", "half"])
def test_a_model_that_was_cast_since_is_refused(cast):
    model, optimizer = start(config_of())
    train(model, optimizer, 3)
    cast(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    with pytest.raises(
        UserError, match=r"layer 0 was cpu torch.float32 .* is cpu torch.float(64|16).* now; move and cast"
    ):
        optimizer.step()


@pytest.mark.parametrize("name", ["orthogonal", "weight_norm", "lora_A"])
def test_a_layer_that_was_parametrized_since_is_refused(name):
    model, optimizer = start(config_of())
    train(model, optimizer, 2)
    parametrized = layers_of(model)[0]
    if name == "lora_A":
        torch.nn.utils.parametrize.register_parametrization(parametrized, name, torch.nn.Identity())
    else:
        getattr(torch.nn.utils.parametrizations, name)(parametrized)
    backward(model)
    message = f"layer 0: its {'lora_A' if name == 'lora_A' else 'weight'} is no parameter of its own any more"
    with pytest.raises(UserError, match=message):
        optimizer.step()
    with pytest.raises(UserError, match=message):
        SwitchLora(model, config_of(), total_steps=100, lr=1e-2)


def test_loading_keeps_dtypes_and_leaves_the_saved_state_apart():
    """torch's own load_state_dict would cast moments and counters to the parameter's dtype, and share tensors."""
    config = config_of()
    model, optimizer = start(config, dtype=torch.bfloat16, factor_dtype=torch.bfloat16)
    train(model, optimizer, 5)
    saved = copy.deepcopy(optimizer.state_dict())
    kept = copy.deepcopy(saved)
    twin, other = start(config, dtype=torch.bfloat16, factor_dtype=torch.bfloat16)
    pointers = {id(p): {name: t.data_ptr() for name, t in state.items()} for p, state in other.state.items()}
    other.load_state_dict(saved)
    for p, state in other.state.items():  # in place: the pools of the switch are these very tensors
        assert {name: t.data_ptr() for name, t in state.items()} == pointers[id(p)]
    train(twin, other, 5)
    for index, entries in saved["state"].items():
        for name, tensor in entries.items():
            assert torch.equal(tensor, kept["state"][index][name])
            assert other.state_dict()["state"][index][name].dtype == tensor.dtype


def test_asking_for_the_state_changes_nothing():
    model, optimizer = start(config_of())
    before = everything(model, optimizer)
    optimizer.state_dict()
    copy.deepcopy(optimizer.state_dict())
    assert_same(everything(model, optimizer), before)


def test_learning_rates_of_a_saved_run_are_taken_over():
    _, optimizer = start(config_of(), lr=0.1, other_lr=0.2)
    _, other = start(config_of(), lr=0.3)
    other.load_state_dict(optimizer.state_dict())
    assert [group["lr"] for group in other.param_groups] == [0.1, 0.2]


@pytest.mark.parametrize(
    ("settings", "dims", "message"),
    [
        ({"candidates": "fresh"}, (7, 13, 9), "optimizer state holds .*candidates.* where this optimizer has"),
        ({"init_lora_weights": "lora"}, (7, 13, 9), "where this optimizer has"),
        ({"r": 2}, (7, 13, 9), r"exp_avg has shape \(3, 7\) where this optimizer has \(2, 7\)"),
        ({}, (7, 14, 9), "has shape"),
        ({}, (7, 13, 13, 9), "load it with|parameter group"),
    ],
)
def test_another_model_or_configuration_is_refused_and_nothing_is_changed(settings, dims, message):
    _, saved = start(config_of())
    model, optimizer = start(config_of(**settings), dims)
    before = everything(model, optimizer)
    with pytest.raises(ValueError, match=message) as error:
        optimizer.load_state_dict(saved.state_dict())
    assert "\n" not in str(error.value)
    assert_same(everything(model, optimizer), before)


def test_candidates_drawn_at_random_are_not_taken_in_turn_afterwards():
    """Some would be active twice, and one of the two be lost. The other way round goes on."""
    saved = {}
    for order in ("random", "cyclic"):
        model, optimizer = start(config_of(order=order))
        train(model, optimizer, 12)
        saved[order] = optimizer.state_dict()
    model, optimizer = start(config_of())
    before = everything(model, optimizer)
    with pytest.raises(UserError, match=r"do not follow each other.*saved with order='random'; load it with"):
        optimizer.load_state_dict(saved["random"])
    assert_same(everything(model, optimizer), before)
    model, optimizer = start(config_of(order="random"))
    optimizer.load_state_dict(saved["cyclic"])
    train(model, optimizer, 5)


@pytest.mark.parametrize(("slots", "cursor", "num", "in_turn"), [
    ([4, 5, 6], 0, 7, True), ([6, 0, 5], 2, 7, True), ([6, 0, 5], 2, None, True),
    ([5, 6, 4], 0, 7, False), ([5, 0, 1], 0, 7, False), ([5, 0, 1], 0, None, True), ([2, 4, 5], 0, None, False),
])  # fmt: skip
def test_whether_candidates_follow_each_other(slots, cursor, num, in_turn):
    assert _in_turn(torch.tensor(slots), cursor, num) == in_turn


def test_a_state_of_polar_may_leave_out_what_is_empty():
    model, optimizer = start(config_of(polar=0.5))
    train(model, optimizer, 2)
    state = optimizer.state_dict()
    kept = {index: entries for index, entries in state["state"].items() if entries}
    assert len(kept) < len(state["state"])
    other = start(config_of(polar=0.5))[1]
    other.load_state_dict({**state, "state": kept})
    for index, entries in other.state_dict()["state"].items():
        assert_same(entries, state["state"][index])


def test_a_state_of_torch_s_adamw_is_refused():
    model, optimizer = start(config_of())
    theirs = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad])
    with pytest.raises(UserError, match=r"no .*step.* in its first group, so it is not of a SwitchLora"):
        optimizer.load_state_dict(theirs.state_dict())
