"""Some layers of one shape, moved by kernels, against the eager code: factors, moments, and the weights that follow."""

import copy
import itertools
import math

import pytest
import torch
from torch import Tensor

from switchlora import SwitchLoraLinear, moving_layers
from switchlora.draws import key
from switchlora.kernels import moving_layers as kernels
from switchlora.kernels import weight_update
from switchlora.moving_layers import Coefficients, numbers_of
from switchlora.rules import AdamW
from tests.unit.products import asked_of

WIDE, NARROW = torch.float32, torch.bfloat16
RULE = AdamW((0.9, 0.99), 1e-8)
SHAPES = [(16, 32, 8), (5, 13, 3), (24, 301, 7)]  # round; odd; more than one block


def layers_of(num: int, shape: tuple[int, int, int], weight: torch.dtype, factor: torch.dtype, device) -> list:
    m, n, r = shape
    layers = []
    for i in range(num):
        layer = SwitchLoraLinear(
            n, m, False, device, weight, r=r, lora_alpha=0.5 * r, factor_dtype=factor, name=f"layer{i}"
        )
        for tensor in (layer.lora_A, layer.lora_B):
            tensor.grad = torch.randn_like(tensor)
        layers.append(layer)
    return layers


def states_of(layers: list, moment: torch.dtype) -> dict[str, list[dict[str, Tensor]]]:
    def state(factor: Tensor) -> dict[str, Tensor]:
        return {"exp_avg": torch.randn_like(factor).to(moment), "exp_avg_sq": torch.rand_like(factor).to(moment)}

    return {letter: [state(getattr(layer, f"lora_{letter}").detach()) for layer in layers] for letter in ("A", "B")}


def coefficients_of(num: int, r: int, device) -> dict[str, Coefficients]:
    """Each vector has its own; the first of each layer but one rests, the last but one of each but two was reset."""
    found = {}
    for letter in ("A", "B"):
        live, kept = torch.ones(num, r), torch.ones(num, r)
        live[1:, 0] = 0
        kept[2:, -2] = 0
        size = -0.1 * torch.rand(num, r) * live
        table = torch.stack((size, 1e-3 + torch.rand(num, r), live, kept), dim=1)
        resting, reset = (numbers_of((flags == 0).numpy(), device) for flags in (live, kept))
        found[letter] = Coefficients(table.to(device), resting, reset, [None] * num)
    return found


def key_of(name: str, suffix: str):
    return lambda purpose: key(0, name, purpose + suffix, 5)


def everything(layers: list, states: dict[str, list[dict[str, Tensor]]]) -> dict[str, Tensor]:
    found = {f"{i}.{name}": p.detach() for i, layer in enumerate(layers) for name, p in layer.named_parameters()}
    for letter, of_side in states.items():
        found |= {f"{i}.{letter}.{name}": t for i, state in enumerate(of_side) for name, t in state.items()}
    return found


def close(ours: Tensor, expected: Tensor) -> None:
    """To the last bits in float32; in bfloat16 these tip the rounding of very few numbers."""
    if ours.dtype == NARROW:
        torch.testing.assert_close(ours, expected, rtol=2**-7, atol=1e-6)
        assert (ours != expected).sum() <= 0.01 * ours.numel() + 1
    else:
        torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize(("weight", "factor", "moment"), list(itertools.product((WIDE, NARROW), repeat=3)), ids=str)
def test_kernels_do_what_the_eager_code_does(device, monkeypatch, shape, weight, factor, moment):
    layers = layers_of(3, shape, weight, factor, device)
    states, coefficients = states_of(layers, moment), coefficients_of(3, shape[2], device)
    layers[1].lora_A.grad[0] = layers[2].lora_B.grad[:, 0] = math.inf  # these rest, so it counts as zero
    m, n, r = shape
    monkeypatch.setattr(kernels, "CHUNK_BYTES", 2 * 4 * (2 * r * (m + n) + m * n))  # two layers a chunk, or three
    before = copy.deepcopy(everything(layers, states))
    reference = copy.deepcopy((layers, states))
    for copied, layer in zip(reference[0], layers, strict=True):
        copied.lora_A.grad, copied.lora_B.grad = layer.lora_A.grad.clone(), layer.lora_B.grad.clone()
    with torch.no_grad():
        moving_layers.move_layers_(*reference, coefficients, RULE, 0.97, key_of)
        kernels.move_layers_(layers, states, coefficients, RULE, 0.97, key_of)
    ours, expected = everything(layers, states), everything(*reference)
    for name, tensor in ours.items():
        close(tensor, expected[name])
        assert not torch.equal(tensor, before[name]), name
    assert torch.equal(ours["1.lora_A"][0], before["1.lora_A"][0])  # it rests
    assert torch.equal(ours["2.lora_B"][:, 0], before["2.lora_B"][:, 0])


@pytest.mark.parametrize(("weight", "asked"), [(NARROW, [NARROW]), (WIDE, [])], ids=str)
def test_products_for_a_weight_that_is_rounded_ask_for_tensor_cores(device, monkeypatch, weight, asked):
    found = asked_of(monkeypatch, weight_update)
    layers = layers_of(2, SHAPES[0], weight, WIDE, device)
    with torch.no_grad():
        kernels.move_layers_(
            layers, states_of(layers, WIDE), coefficients_of(2, SHAPES[0][2], device), RULE, 1.0, key_of
        )
    assert found == asked


def test_a_gradient_in_another_order_of_memory_is_read_right(device):
    layers = layers_of(1, (5, 13, 3), WIDE, WIDE, device)
    states, coefficients = states_of(layers, WIDE), coefficients_of(1, 3, device)
    reference = copy.deepcopy((layers, states))
    reference[0][0].lora_A.grad, reference[0][0].lora_B.grad = layers[0].lora_A.grad, layers[0].lora_B.grad
    layers[0].lora_A.grad = layers[0].lora_A.grad.T.contiguous().T
    with torch.no_grad():
        moving_layers.move_layers_(*reference, coefficients, RULE, 1.0, key_of)
        kernels.move_layers_(layers, states, coefficients, RULE, 1.0, key_of)
    for name, tensor in everything(layers, states).items():
        close(tensor, everything(*reference)[name])


def test_operands_of_the_weight_update_are_bounded():
    assert kernels.layers_per_chunk(64, 64, 16, False) == 64 * 2**20 // (4 * 32 * 128)
    m, n, r = 2048, 2048, 512  # 16 MiB of operands a layer at 1.3B, and 16 MiB of product where W is bfloat16
    assert kernels.layers_per_chunk(m, n, r, False) == 4
    assert kernels.layers_per_chunk(m, n, r, True) == 2
    assert kernels.layers_per_chunk(5461, 2048, r, True) == 1  # 72 MiB: more than the bound, so one
