"""The formulas are what torch counts when the thing itself runs, layer by layer and for a whole model."""

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from switchlora import SwitchLoraConfig, SwitchLoraLinear, convert
from switchlora.effective_linear import dense_is_cheaper, factor_gradients_dense, factor_gradients_thin
from switchlora.flops import (
    adapter_branch_flops,
    count_flops,
    count_forward_backward,
    dense_flops,
    factor_gradient_flops,
    forward_flops,
    full_rank_flops,
    input_gradient_flops,
    layer_flops,
    model_weight_update_flops,
    orthogonalise_flops,
    thin_flops,
    tokens_for_share,
    weight_update_flops,
)
from tests.numerics.cases import backward, config_of, start

# (m, n, r, T): square and not, odd, thin cheaper and dense cheaper, and more rank than tokens.
CASES = [(64, 64, 8, 128), (33, 65, 7, 51), (65, 33, 32, 51), (47, 48, 46, 1000), (128, 32, 16, 5), (5, 9, 2, 1)]


def one_step(layer: Callable[[Tensor], Tensor], n: int, T: int) -> int:
    """FLOPs of a forward and a backward that goes on to the input."""
    x = torch.randn(T, n, requires_grad=True)
    return count_flops(lambda: layer(x).sum().backward())


def test_the_cases_go_both_ways():
    ways = {thin_flops(*case) < dense_flops(*case) for case in CASES}
    assert ways == {True, False}


@pytest.mark.parametrize(("m", "n", "r", "T"), CASES)
def test_a_layer_costs_what_the_formula_says(m, n, r, T):
    layer = SwitchLoraLinear(n, m, r=r)
    assert one_step(layer, n, T) == layer_flops(m, n, r, T)
    assert layer_flops(m, n, r, T) == 4 * m * n * T + min(4 * r * (m + n) * T, 2 * m * n * T + 4 * m * n * r)
    assert one_step(nn.Linear(n, m), n, T) == full_rank_flops(m, n, T)


@pytest.mark.parametrize(("m", "n", "r", "T"), CASES)
def test_each_way_to_the_factor_gradients_costs_what_its_formula_says(m, n, r, T):
    arguments = torch.randn(T, m), torch.randn(T, n), torch.randn(r, n), torch.randn(m, r)
    thin, dense = (
        count_flops(lambda way=way: way(*arguments, 1.0)) for way in (factor_gradients_thin, factor_gradients_dense)
    )
    assert (thin, dense) == (thin_flops(m, n, r, T), dense_flops(m, n, r, T))
    assert factor_gradient_flops(m, n, r, T) == min(thin, dense)


@pytest.mark.parametrize(("m", "n", "r", "T"), CASES)
def test_an_adapter_branch_costs_what_the_formula_says(m, n, r, T):
    W, A, B = torch.randn(m, n), torch.randn(r, n, requires_grad=True), torch.randn(m, r, requires_grad=True)
    counted = one_step(lambda x: F.linear(x, W) + F.linear(F.linear(x, A), B), n, T)
    assert counted == adapter_branch_flops(m, n, r, T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("settings", [{}, {"init_lora_weights": "lora"}, {"candidates": "fresh"}])
def test_an_optimizer_step_multiplies_matrices_for_the_weight_update_alone(dtype, settings):
    dims, r = (33, 20, 65, 20), 7
    model, optimizer = start(config_of(r=r, **settings), dims, dtype)
    backward(model)
    expected = sum(weight_update_flops(m, n, r) for n, m in itertools.pairwise(dims))
    assert count_flops(optimizer.step) == model_weight_update_flops(model) == expected == 4 * r * 20 * (33 + 65 + 65)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_polar_step_costs_what_the_formulas_say(dtype):
    """G in every backward pass, whatever is cheaper; Newton-Schulz in every step."""
    dims, r, T = (33, 20, 65, 20), 3, 200
    layers = list(itertools.pairwise(dims))
    model, optimizer = start(config_of(r=r, polar=0.5), dims, dtype)
    assert not any(dense_is_cheaper(m, n, r, T) for n, m in layers)
    forward_and_dense = sum(forward_flops(m, n, T) + dense_flops(m, n, r, T) for n, m in layers)
    input_gradients = sum(input_gradient_flops(m, n, T) for n, m in layers[1:])
    assert count_flops(lambda: backward(model, batch=T)) == forward_and_dense + input_gradients
    expected = sum(weight_update_flops(m, n, r) + orthogonalise_flops(m, n) for n, m in layers)
    assert count_flops(optimizer.step) == model_weight_update_flops(model) == expected


def test_a_dense_model_has_no_weight_update():
    assert model_weight_update_flops(nn.Sequential(nn.Linear(3, 3))) == 0


def test_torch_alone_counts_products_in_place_and_attention_on_the_cpu_as_nothing():
    """Why `count_flops` is needed. When torch counts them itself, its formulas can go."""
    x = torch.randn(2, 2, 8, 4)
    with FlopCounterMode(display=False) as counter:
        F.scaled_dot_product_attention(x, x, x)
        torch.zeros(3, 5).addmm_(torch.ones(3, 4), torch.ones(4, 5))
    assert counter.get_total_flops() == 0
    assert count_flops(lambda: torch.zeros(3, 5).addmm_(torch.ones(3, 4), torch.ones(4, 5))) == 2 * 3 * 4 * 5
    assert count_flops(lambda: torch.zeros(6, 3, 5).baddbmm_(torch.ones(6, 3, 4), torch.ones(6, 4, 5))) == 6 * 120


@pytest.mark.parametrize("causal", [True, False])
def test_attention_counts_alike_in_every_kernel(causal):
    batch, heads, tokens, features = 3, 2, 11, 8
    counts = []
    for backend in (SDPBackend.MATH, SDPBackend.FLASH_ATTENTION):
        x = torch.randn(batch, heads, tokens, features, requires_grad=True)
        with sdpa_kernel(backend):
            counts.append(
                count_flops(lambda x=x: F.scaled_dot_product_attention(x, x, x, is_causal=causal).sum().backward())
            )
    assert counts == [6 * 2 * batch * heads * tokens**2 * features] * 2


def small_llama(tied: bool = False) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    return LlamaForCausalLM(LlamaConfig(
        vocab_size=61, hidden_size=24, intermediate_size=40, num_hidden_layers=2, num_attention_heads=2,
        tie_word_embeddings=tied,
    ))  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("r", [None, 3, 11])
def test_counting_without_storage_is_counting_the_real_run_and_leaves_the_model_alone(r, tied):
    model = small_llama(tied)
    if r is not None:
        convert(model, SwitchLoraConfig(r=r))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    counted = count_forward_backward(model, 2, 16)
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    tokens = torch.zeros(2, 16, dtype=torch.int64)
    assert counted == count_flops(lambda: model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward())
    head_and_attention = 6 * 61 * 24 * 32 + 2 * 6 * 2 * 32 * 16 * 24
    dims = 2 * (4 * [(24, 24)] + 2 * [(40, 24)] + [(24, 40)])
    linears = sum(layer_flops(m, n, r, 32) if r else full_rank_flops(m, n, 32) for m, n in dims)
    assert counted == linears + head_and_attention


@pytest.mark.parametrize(("update", "per_token", "share"), [(4000, 60.0, 0.01), (12345, 7.5, 0.2), (10**14, 6e9, 0.01)])
def test_from_that_number_of_tokens_on_the_update_is_under_its_share(update, per_token, share):
    tokens = tokens_for_share(update, per_token, share)
    shares = [update / (update + per_token * T) for T in (tokens - 1, tokens)]
    assert shares[1] < share <= shares[0]


def test_a_square_layer_at_a_quarter_of_its_width_needs_about_16_times_its_width_of_tokens():
    h, T = 1024, 8192
    tokens = tokens_for_share(weight_update_flops(h, h, h // 4), layer_flops(h, h, h // 4, T) / T)
    assert tokens == pytest.approx(99 * h / 6, rel=1e-3)


def test_what_is_frozen_is_counted_as_frozen():
    model = small_llama()
    trained = count_forward_backward(model, 2, 16)
    model.get_submodule("model.layers.0.mlp").up_proj.weight.requires_grad_(False)
    assert trained - count_forward_backward(model, 2, 16) == 2 * 40 * 24 * 32
