"""The optimizer as torch and its users see it: groups, closures, missing gradients, copies, cost."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from switchlora import SwitchLora, SwitchLoraConfig, UserError, convert
from tests.numerics.cases import (
    assert_same,
    backward,
    chain,
    config_of,
    everything,
    layers_of,
    side_state,
    start,
    train,
)


@pytest.mark.parametrize("fused_backward", [False, True])
def test_a_model_without_gradients_is_left_alone(fused_backward):
    """And what the step before it switched counts once."""
    model, optimizer = start(config_of(), fused_backward=fused_backward)
    train(model, optimizer, 3)
    assert optimizer.stats.last.switches_done > 0
    before = everything(model, optimizer)
    optimizer.step()
    after = everything(model, optimizer)
    assert after.pop("group.0.step") == before.pop("group.0.step") + 1
    assert_same(after, before)
    assert optimizer.outcomes == {}


def test_a_layer_without_gradients_is_left_alone_and_the_rest_is_not():
    model, optimizer = start(config_of())
    first, second = layers_of(model)
    frozen = first.weight.clone(), first.lora_A.clone(), second.weight.clone()
    backward(model)
    first.lora_A.grad = None
    optimizer.step()
    assert torch.equal(first.weight, frozen[0])
    assert torch.equal(first.lora_A, frozen[1])
    assert not torch.equal(second.weight, frozen[2])
    assert first.name not in optimizer.outcomes


def test_the_closure_is_evaluated_once_with_gradients_on():
    model, optimizer = start(config_of())
    losses = []

    def closure():
        optimizer.zero_grad()
        losses.append(backward(model))
        return losses[-1]

    assert optimizer.step(closure) == losses[0]
    assert len(losses) == 1
    assert optimizer.param_groups[0]["step"] == 1


def test_every_trainable_parameter_is_in_exactly_one_group():
    model = nn.ModuleDict({"embed": nn.Embedding(11, 8), "body": chain((8, 12, 8)), "lm_head": nn.Linear(8, 11)})
    model["body"][0].bias.requires_grad_(False)
    config = config_of()
    convert(model, config)
    optimizer = SwitchLora(model, config, total_steps=10, lr=0.1, other_lr=0.01)
    grouped = [p for group in optimizer.param_groups for p in group["params"]]
    trainable = [p for p in model.parameters() if p.requires_grad]
    assert len(grouped) == len(trainable)
    assert {id(p) for p in grouped} == {id(p) for p in trainable}
    factors, others = optimizer.param_groups
    assert [p.shape for p in factors["params"]] == [(3, 8), (12, 3), (3, 12), (8, 3)]
    assert (factors["lr"], others["lr"]) == (0.1, 0.01)
    assert set(optimizer.state) == set(trainable)  # and the state is there already


def test_other_lr_is_lr_unless_given():
    assert [group["lr"] for group in start(config_of(), lr=0.5)[1].param_groups] == [0.5, 0.5]


def test_a_tied_parameter_and_a_shared_layer_are_stepped_once():
    linear = nn.Linear(6, 6)
    model = nn.Sequential(linear, nn.Tanh(), linear)
    config = config_of()
    convert(model, config)
    optimizer = SwitchLora(model, config, total_steps=10, lr=0.1)
    assert model[0] is model[2]
    train(model, optimizer, 3)
    assert int(side_state(optimizer, model[0], "A")["step"].max()) == 3
    assert len(optimizer.param_groups[0]["params"]) == 2


def test_a_copy_of_model_and_optimizer_goes_on_bitwise_and_apart():
    model, optimizer = start(config_of())
    train(model, optimizer, 5)
    twins = [copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))]
    for twin in twins:
        assert_same(everything(*twin), everything(model, optimizer))
    train(model, optimizer, range(5, 15))
    for twin, twin_optimizer in twins:
        train(twin, twin_optimizer, range(5, 15))
        assert_same(everything(twin, twin_optimizer), everything(model, optimizer))
        assert twin_optimizer.stats == optimizer.stats
        assert twin_optimizer.outcomes.keys() == optimizer.outcomes.keys()


def test_two_runs_of_one_seed_are_bitwise_the_same_and_other_seeds_differ():
    runs = []
    for seed in (0, 0, 1):
        torch.manual_seed(1)
        model, optimizer = start(config_of(seed=seed))
        torch.manual_seed(len(runs))  # torch's global generator plays no part
        train(model, optimizer, 20)
        runs.append(everything(model, optimizer))
    assert_same(runs[0], runs[1])
    assert not torch.equal(runs[0]["model.0.weight"], runs[2]["model.0.weight"])


class CountingMode(TorchDispatchMode):
    """Counts tensor operations."""

    def __init__(self) -> None:
        super().__init__()
        self.num = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.num += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("candidates", ["pool", "fresh"])
@pytest.mark.parametrize("order", ["cyclic", "random"])
def test_a_step_takes_as_many_operations_for_many_vectors_as_for_two(candidates, order):
    nums = []
    for r in (8, 64):
        config = config_of(r=r, interval=4.0, freeze_steps=0, candidates=candidates, order=order)
        model, optimizer = start(config, (200, 150))
        train(model, optimizer, 2)
        backward(model, 2)
        with CountingMode() as mode:
            optimizer.step()
        assert optimizer.stats.last.switches_done == 2 * r // 4
        nums.append(mode.num)
    assert nums[0] == nums[1]


def test_a_group_added_later_trains_as_under_adamw():
    model = nn.Sequential(nn.Linear(8, 8))
    config = SwitchLoraConfig(r=2)
    convert(model, config)
    optimizer = SwitchLora(model, config, total_steps=10, lr=0.1)
    late = nn.Parameter(torch.ones(3))
    twin = nn.Parameter(torch.ones(3))
    optimizer.add_param_group({"params": [late], "lr": 0.01})
    reference = torch.optim.AdamW([twin], lr=0.01, weight_decay=0.0)
    for _ in range(3):
        late.grad = twin.grad = torch.tensor([1.0, -2.0, 0.5])
        optimizer.step()
        reference.step()
    torch.testing.assert_close(late, twin)


def test_a_group_added_later_has_the_other_rate_unless_it_has_its_own():
    _, optimizer = start(config_of(), lr=0.5, other_lr=0.25)
    for number, own in ((2, {}), (3, {"lr": 0.125})):
        optimizer.add_param_group({"params": iter([nn.Parameter(torch.ones(3))]), **own})
        assert optimizer.param_groups[number]["lr"] == own.get("lr", 0.25)


def test_sparse_gradients_are_refused_by_name():
    model = nn.ModuleDict({"embed": nn.Embedding(5, 8, sparse=True), "fc": nn.Linear(8, 8)})
    config = SwitchLoraConfig(r=2)
    convert(model, config)
    optimizer = SwitchLora(model, config, total_steps=10, lr=0.1)
    model["fc"](model["embed"](torch.tensor([1, 2]))).sum().backward()
    with pytest.raises(UserError, match=r"embed\.weight has a sparse gradient"):
        optimizer.step()
