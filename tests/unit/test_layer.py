"""SwitchLoraLinear as a module: an nn.Linear in all that others may see of it."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from switchlora import SwitchLoraLinear, convert
from tests.numerics.cases import assert_same, chain, config_of

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("leading", [(), (0,), (4,), (2, 3, 5)], ids=str)
def test_forward_is_a_plain_linear_bit_for_bit(dtype, bias, leading):
    layer = SwitchLoraLinear(7, 13, bias, dtype=dtype, r=3)
    x = torch.randn(*leading, 7, dtype=dtype)
    y = layer(x)
    assert y.shape == (*leading, 13)
    assert torch.equal(y, F.linear(x, layer.weight, layer.bias))


def test_it_is_a_linear_with_two_factors():
    layer = SwitchLoraLinear(7, 13, r=3, lora_alpha=6.0)
    assert isinstance(layer, nn.Linear)
    assert [(name, tuple(p.shape), p.requires_grad) for name, p in layer.named_parameters()] == [
        ("weight", (13, 7), False), ("bias", (13,), True), ("lora_A", (3, 7), True), ("lora_B", (13, 3), True),
    ]  # fmt: skip
    assert layer.scaling == 2.0
    assert not list(layer.buffers())
    assert str(layer) == "SwitchLoraLinear(in_features=7, out_features=13, bias=True, r=3, scaling=2)"


@pytest.mark.parametrize(
    ("dtype", "factor_dtype", "expected"),
    [
        (torch.float32, None, torch.float32),
        (torch.bfloat16, None, torch.float32),
        (torch.float64, None, torch.float64),
        (torch.bfloat16, torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.float64, torch.float64),
    ],
)
def test_factors_are_float32_beside_bfloat16_weights_unless_asked_otherwise(dtype, factor_dtype, expected):
    layer = SwitchLoraLinear(7, 13, dtype=dtype, factor_dtype=factor_dtype, r=3)
    assert (layer.weight.dtype, layer.lora_A.dtype, layer.lora_B.dtype) == (dtype, expected, expected)
    layer(torch.randn(2, 7, dtype=dtype)).sum().backward()
    assert layer.lora_A.grad.dtype == expected
    model = nn.Sequential(nn.Linear(7, 13, dtype=dtype))
    convert(model, config_of(), factor_dtype=factor_dtype)
    assert model[0].lora_B.dtype == expected


@pytest.mark.parametrize("init", ["switchlora", "lora"])
def test_factors_are_a_function_of_seed_and_name(init):
    def factors(**changes):
        torch.manual_seed(changes.pop("torch_seed", 0))
        layer = SwitchLoraLinear(7, 13, **{"r": 3, "name": "a", "seed": 5, "init_lora_weights": init, **changes})
        return layer.lora_A

    assert torch.equal(factors(), factors(torch_seed=99))
    assert not torch.equal(factors(), factors(name="b"))
    assert not torch.equal(factors(), factors(seed=6))


def test_building_a_layer_draws_from_torch_s_generator_as_a_linear_does():
    """So that a model built with these layers has the weights of a plain one, and conversion draws nothing."""
    torch.manual_seed(3)
    layer = SwitchLoraLinear(7, 13, r=3)
    torch.manual_seed(3)
    linear = nn.Linear(7, 13)
    assert torch.equal(layer.weight, linear.weight)
    assert torch.equal(layer.bias, linear.bias)
    model, state = nn.Sequential(linear), torch.get_rng_state()
    convert(model, config_of())
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_construction_on_the_meta_device_ends_in_the_same_factors(dtype):
    settings = {"r": 3, "name": "layer", "seed": 4, "dtype": dtype}
    direct = SwitchLoraLinear(7, 13, **settings)
    meta = SwitchLoraLinear(7, 13, device="meta", **settings)
    assert all(p.is_meta for p in meta.parameters())
    meta.to_empty(device="cpu")
    meta.reset_parameters()
    assert torch.equal(meta.lora_A, direct.lora_A)
    assert torch.equal(meta.lora_B, direct.lora_B)
    assert not meta.weight.requires_grad
    bound = 7**-0.5
    assert 0 < meta.weight.abs().max() <= bound


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
@pytest.mark.parametrize("layout", [torch.jagged, torch.strided], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_nested_tensors_are_evaluated_as_by_nn_linear(layout, bias):
    layer = SwitchLoraLinear(7, 13, bias, r=3)
    x = torch.nested.nested_tensor([torch.randn(2, 7), torch.randn(4, 7)], layout=layout)
    with torch.no_grad():
        ours, theirs = layer(x), nn.functional.linear(x, layer.weight, layer.bias)
    assert all(torch.equal(one, other) for one, other in zip(ours.unbind(), theirs.unbind(), strict=True))


@pytest.mark.parametrize("autocast", [False, True])
def test_a_forward_pass_on_the_meta_device_has_the_shape(autocast):
    layer = SwitchLoraLinear(7, 13, device="meta", r=3)
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
        assert layer(torch.empty(2, 5, 7, device="meta")).shape == (2, 5, 13)


def test_a_converted_meta_model_ends_in_the_factors_of_a_converted_one():
    torch.manual_seed(0)
    direct = chain()
    convert(direct, config_of())
    with torch.device("meta"):
        meta = chain()
    convert(meta, config_of())
    meta.to_empty(device="cpu")
    for module in meta.modules():
        if hasattr(module, "reset_parameters"):
            module.reset_parameters()
    for i in (0, 2):
        assert torch.equal(meta[i].lora_A, direct[i].lora_A)
        assert torch.equal(meta[i].lora_B, direct[i].lora_B)


def test_a_copy_is_equal_and_apart():
    layer = SwitchLoraLinear(7, 13, r=3, name="layer", seed=2)
    twin = copy.deepcopy(layer)
    assert_same(dict(twin.state_dict()), dict(layer.state_dict()))
    assert (twin.name, twin.seed, twin.r, twin.scaling) == ("layer", 2, 3, layer.scaling)
    assert not twin.weight.requires_grad
    with torch.no_grad():
        twin.lora_A.zero_()
    assert layer.lora_A.any()


def test_a_state_dict_goes_round_and_a_dense_one_fits_but_for_the_factors(tmp_path):
    model, other = chain(), chain()
    dense = {key: value.clone() for key, value in model.state_dict().items()}
    convert(model, config_of())
    convert(other, config_of(seed=1))
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other.load_state_dict(torch.load(tmp_path / "model.pt", weights_only=True))
    assert_same(dict(other.state_dict()), dict(model.state_dict()))
    missing, unexpected = other.load_state_dict(dense, strict=False)
    assert missing == ["0.lora_A", "0.lora_B", "2.lora_A", "2.lora_B"]
    assert unexpected == []


def test_moving_and_casting_keeps_the_rules_of_a_module():
    layer = SwitchLoraLinear(7, 13, r=3).to(torch.float64)
    assert {p.dtype for p in layer.parameters()} == {torch.float64}
    assert not layer.weight.requires_grad
    layer(torch.randn(2, 7, dtype=torch.float64)).sum().backward()
    assert layer.lora_A.grad.dtype == torch.float64


def test_the_backward_keeps_no_activation_beyond_its_input():
    """Saved for backward: the input, and parameters. No adapter branch, no extra activations."""
    layer, saved = SwitchLoraLinear(7, 13, r=3), []
    x = torch.randn(5, 7)
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.append(t) or t, lambda t: t):
        layer(x)
    owned = {p.data_ptr() for p in layer.parameters()} | {x.data_ptr()}
    assert {t.data_ptr() for t in saved} <= owned


def test_no_gradient_is_computed_for_an_input_that_needs_none():
    layer, x = SwitchLoraLinear(7, 13, r=3), torch.randn(5, 7)
    layer(x).sum().backward()
    assert x.grad is None
    with torch.no_grad():
        assert not layer(x).requires_grad
    with torch.inference_mode():
        assert layer(x).is_inference()
