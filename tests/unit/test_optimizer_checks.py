"""What the optimizer refuses when it is made, each in one line with the way out."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from switchlora import SwitchLora, SwitchLoraConfig, UserError, convert, optimizer_checks
from tests.numerics.cases import chain, config_of, layers_of, start, train


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


@pytest.mark.parametrize(
    ("dtype", "reason"),
    [
        *[(dtype, "8-bit state") for dtype in (torch.int8, torch.uint8, torch.float8_e4m3fn)],
        (torch.float16, "underflow in float16"), (torch.float64, "only beside float64 parameters"),
        (torch.complex64, "no format for moments"),
        *[(value, "must be a torch.dtype") for value in ("bf16", "8bit", 8)],
    ],
    ids=str,
)  # fmt: skip
def test_other_formats_of_moments_are_refused_with_the_reason_and_the_alternative(dtype, reason):
    with pytest.raises(UserError, match=rf"moment_dtype={dtype!r}: .*{reason}.*; use torch\.bfloat16, or None"):
        start(config_of(), moment_dtype=dtype)


def test_devices_that_were_never_tested_are_refused():
    model = chain()
    config = config_of()
    convert(model, config)
    for layer in layers_of(model):
        layer.weight = nn.Parameter(FakeMps(layer.weight), requires_grad=False)
    with pytest.raises(UserError, match="layer 0: weight is on mps, where this was never tested; use cpu or cuda"):
        SwitchLora(model, config, total_steps=1, lr=0.1)


def replaced(name: str, change) -> nn.Module:
    """A converted model in which one parameter was replaced."""
    model = nn.ModuleDict({"embed": nn.Embedding(5, 8), "fc": nn.Linear(8, 8)})
    convert(model, SwitchLoraConfig(r=2))
    module, _, own = name.partition(".")
    setattr(model[module], own, nn.Parameter(change(getattr(model[module], own).detach())))
    return model


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (Tensor.half, "is torch.float16, .*use bfloat16 or float32: model.bfloat16"),
        (lambda t: t.to(torch.complex64), "is torch.complex64"),
        (lambda t: t.to("meta"), r"is on the meta device; call model.to_empty\(device=...\)"),
        (FakeMps, "is on mps, where this was never tested; use cpu or cuda"),
    ],
    ids=["float16", "complex", "meta", "mps"],
)
@pytest.mark.parametrize("name", ["embed.weight", "fc.bias", "fc.lora_A", "fc.lora_B"])
def test_no_parameter_is_of_a_kind_that_cannot_be_stepped(name, change, message):
    shown = name.replace("fc.lora", "layer fc: lora")
    with pytest.raises(UserError, match=f"^{shown} {message}"):
        SwitchLora(replaced(name, change), SwitchLoraConfig(r=2), total_steps=10, lr=0.1)


@pytest.mark.parametrize("name", ["embed.weight", "fc.lora_A"])
def test_a_model_on_several_devices_is_refused(monkeypatch, name):
    monkeypatch.setattr(optimizer_checks, "DEVICES", ("cpu", "mps"))  # there is no second one here
    with pytest.raises(UserError, match=r'is on mps, the first .* layer on cpu, .*put it on one: model.to\("cpu"\)'):
        SwitchLora(replaced(name, FakeMps), SwitchLoraConfig(r=2), total_steps=10, lr=0.1)


@pytest.mark.parametrize("name", ["weight", "lora_A", "lora_B"])
def test_layers_that_share_a_parameter_are_refused(name):
    model = chain((8, 8, 8))
    convert(model, config_of())
    setattr(model[2], name, getattr(model[0], name))
    with pytest.raises(UserError, match=f"layers 0 and 2 share their {name}"):
        SwitchLora(model, config_of(), total_steps=10, lr=0.1)


@pytest.mark.parametrize(("change", "message"), [
    ({"params": [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3).half())]},
     r"parameter 1 of the group is torch\.float16"),
    ({"lr": -1.0}, "lr=-1.0: must be a finite number, 0 or more"),
    ({"weight_decay": float("nan")}, "weight_decay=nan: must be"),
    ({"betas": (2, 3)}, r"betas=\(2, 3\): must be two numbers in \[0, 1\)"),
    ({"maximize": True}, "maximize=True: is not supported; negate the loss"),
])  # fmt: skip
def test_a_group_added_later_is_checked_too_and_one_that_is_refused_leaves_no_trace(change, message):
    model, optimizer = start(config_of())
    with pytest.raises(UserError, match=message):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], **change})
    train(model, optimizer, 2)
    assert len(optimizer.param_groups) == 2
    later = [nn.Parameter(torch.ones(3)) for _ in range(2)]
    group = {"params": iter(later)}
    optimizer.add_param_group(group)
    assert optimizer.param_groups[-1] is group
    names = [optimizer._names[parameter] for parameter in later]
    assert names == ["parameter 0 of group 2", "parameter 1 of group 2"]
    assert len({*optimizer._names.values()}) == len(optimizer._names)


@pytest.mark.parametrize(("group", "message"), [
    ({"params": {nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))}}, "ordered collection"),
    ([nn.Parameter(torch.ones(3))], "param_group must be a dict"),
])  # fmt: skip
def test_what_torch_refuses_is_left_to_it(group, message):
    _, optimizer = start(config_of())
    with pytest.raises(TypeError, match=message):
        optimizer.add_param_group(group)


@pytest.mark.parametrize("kind", [np.float32, np.float64, torch.tensor], ids=["float32", "float64", "tensor"])
@pytest.mark.parametrize("rule", ["adamw", "muon"])
def test_numbers_may_be_those_of_numpy_and_torch_and_are_python_s_own_afterwards(kind, rule):
    """So that a saved state can be loaded with weights_only, and no two groups share a tensor that schedulers fill."""
    names = ("lr", "other_lr", "eps", "weight_decay", "momentum")
    values = {name: kind(0.5) for name in names}
    model, optimizer = start(config_of(), total_steps=np.int64(20), betas=(kind(0.5), kind(0.25)), rule=rule, **values)
    optimizer.add_param_group({"params": [nn.Parameter(torch.ones(3))], "lr": kind(0.5), "betas": [kind(0.5)] * 2})
    train(model, optimizer, 2)
    assert type(optimizer.total_steps) is int
    for group in optimizer.param_groups:
        numbers = [value for name, value in group.items() if name in names]
        assert all(type(number) is float for number in (*numbers, *group["betas"]))


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.int8, torch.float8_e4m3fn, torch.complex64, "bf16"], ids=str)
def test_formats_that_cannot_train_are_refused_by_name(dtype):
    with pytest.raises(UserError, match=r"factor_dtype=.*: must be torch.float32 or torch.bfloat16"):
        convert(nn.Sequential(nn.Linear(20, 24)), SwitchLoraConfig(r=4), factor_dtype=dtype)
    if dtype == torch.float16:
        model, config = nn.Sequential(nn.Linear(20, 24)), SwitchLoraConfig(r=4)
        convert(model, config)
        with pytest.raises(UserError, match=r"layer 0: weight is torch\.float16"):
            SwitchLora(model.half(), config, total_steps=10, lr=1e-2)


@pytest.mark.parametrize(
    ("model", "config", "message"),
    [
        (None, SwitchLoraConfig(), "model is of type NoneType: give the torch.nn.Module itself"),
        (list(nn.Linear(2, 2).parameters()), SwitchLoraConfig(), "model is of type list: .* not its parameters"),
        (nn.Linear(2, 2), {"r": 4}, "config is of type dict: give a SwitchLoraConfig, .*from_dict"),
        (nn.Linear(2, 2), None, "config is of type NoneType"),
    ],
    ids=["no model", "parameters", "dict", "no config"],
)
def test_what_is_no_model_and_what_is_no_configuration(model, config, message):
    with pytest.raises(UserError, match=message):
        SwitchLora(model, config, total_steps=1, lr=0.1)
    with pytest.raises(UserError, match=message):
        convert(model, config)
