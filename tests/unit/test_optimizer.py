"""The optimizer as torch and its users see it: groups, closures, missing gradients, copies, refusals, cost."""

import copy
import math
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


def test_a_model_without_gradients_is_left_alone():
    model, optimizer = start(config_of())
    before = everything(model, optimizer)
    optimizer.step()
    after = everything(model, optimizer)
    assert after.pop("group.0.step") == before.pop("group.0.step") + 1
    assert_same(after, before)


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
    for twin, twin_optimizer in (copy.deepcopy((model, optimizer)), pickle.loads(pickle.dumps((model, optimizer)))):
        assert_same(everything(twin, twin_optimizer), everything(model, optimizer))
    twin, twin_optimizer = copy.deepcopy((model, optimizer))
    train(model, optimizer, range(5, 15))
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


class FakeMps(torch.Tensor):
    """A tensor that says that it is on Apple's GPU, of which there is none here."""

    @staticmethod
    def __new__(cls, tensor):
        return torch.Tensor._make_wrapper_subclass(cls, tensor.shape, dtype=tensor.dtype, device="mps")

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        if func is torch.ops.aten.detach.default:
            return cls(args[0])
        raise NotImplementedError(func)


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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"total_steps": 0}, "total_steps=0: must be an integer, at least 1"),
        ({"total_steps": 1.5}, "total_steps=1.5"),
        ({"lr": "0.1"}, "lr='0.1'"), ({"betas": (0.9,)}, r"betas=\(0.9,\)"), ({"eps": math.inf}, "eps=inf"),
        ({"lr": -1.0}, "lr=-1.0"), ({"lr": math.nan}, "lr=nan"), ({"lr": math.inf}, "lr=inf"),
        ({"other_lr": -1.0}, "other_lr=-1.0"), ({"betas": (0.9, 1.0)}, r"betas=\(0.9, 1.0\)"),
        ({"eps": 0.0}, "eps=0.0"), ({"weight_decay": -0.1}, "weight_decay=-0.1"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_refused(settings, message):
    with pytest.raises(UserError, match=message):
        start(config_of(), **settings)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float16, torch.float8_e4m3fn, "8bit", 8])
def test_narrower_moments_are_refused_by_name_with_the_alternative(dtype):
    with pytest.raises(UserError, match=r"moment_dtype=.*8.*torch\.bfloat16"):
        start(config_of(), moment_dtype=dtype)


def test_devices_that_were_never_tested_are_refused():
    model = chain()
    config = config_of()
    convert(model, config)
    for layer in layers_of(model):
        layer.weight = nn.Parameter(FakeMps(layer.weight), requires_grad=False)
    with pytest.raises(UserError, match="layer 0 is on mps, where this was never tested; use cpu or cuda"):
        SwitchLora(model, config, total_steps=1, lr=0.1)


@pytest.mark.parametrize("change", [{"r": 2}, {"seed": 1}, {"lora_alpha": 2.0}, {"init_lora_weights": "lora"}])
def test_another_configuration_than_the_layers_is_refused(change):
    model, _ = start(config_of())
    with pytest.raises(UserError, match="layer 0 was converted with another configuration"):
        SwitchLora(model, config_of(**change), total_steps=1, lr=0.1)


def test_models_that_cannot_be_stepped_are_refused_with_the_way_out():
    config = SwitchLoraConfig(r=3)
    with pytest.raises(UserError, match="convert"):
        SwitchLora(chain(), config, total_steps=1, lr=0.1)
    with torch.device("meta"):
        meta = chain()
    convert(meta, config)
    with pytest.raises(UserError, match="to_empty"):
        SwitchLora(meta, config, total_steps=1, lr=0.1)
    model = chain()
    convert(model, config)
    model.requires_grad_(True)
    with pytest.raises(UserError, match="requires_grad_"):
        SwitchLora(model, config, total_steps=1, lr=0.1)


def test_two_layers_of_one_name_are_refused():
    """Converted apart, they would draw alike, and one would write into the other's pool."""
    config = config_of()
    halves = nn.Sequential(chain((8, 8)), chain((8, 8)))
    for half in halves:
        convert(half, config)
    with pytest.raises(UserError, match="name '0'"):
        SwitchLora(halves, config, total_steps=1, lr=0.1)


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


def test_sparse_gradients_are_refused_by_name():
    model = nn.ModuleDict({"embed": nn.Embedding(5, 8, sparse=True), "fc": nn.Linear(8, 8)})
    config = SwitchLoraConfig(r=2)
    convert(model, config)
    optimizer = SwitchLora(model, config, total_steps=10, lr=0.1)
    model["fc"](model["embed"](torch.tensor([1, 2]))).sum().backward()
    with pytest.raises(UserError, match=r"embed\.weight has a sparse gradient"):
        optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8, torch.float8_e4m3fn, torch.complex64, "bf16"], ids=str)
def test_formats_that_cannot_train_are_refused_by_name(dtype):
    with pytest.raises(UserError, match=r"factor_dtype=.*: must be torch.float32 or torch.bfloat16"):
        convert(nn.Sequential(nn.Linear(20, 24)), SwitchLoraConfig(r=4), factor_dtype=dtype)
    if dtype == torch.float16:
        model, config = nn.Sequential(nn.Linear(20, 24)), SwitchLoraConfig(r=4)
        convert(model, config)
        with pytest.raises(UserError, match=r"layer 0: weight is torch\.float16"):
            SwitchLora(model.half(), config, total_steps=10, lr=1e-2)
