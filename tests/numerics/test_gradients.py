"""Both ways to compute the factors' gradients, and the layer, against autograd of the plain formula in float64."""

import hypothesis
import hypothesis.strategies as st
import pytest
import torch
import torch.nn.functional as F
from torch.utils.flop_counter import FlopCounterMode

from switchlora import SwitchLoraLinear, effective_linear, token_blocks
from switchlora.errors import UserError
from tests.numerics.cases import backward, config_of, start

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 4e-2}
WAYS = {"thin": effective_linear.factor_gradients_thin, "dense": effective_linear.factor_gradients_dense}


def layer_of(m=13, n=7, r=3, dtype=torch.float64, bias=True, **settings) -> SwitchLoraLinear:
    return SwitchLoraLinear(n, m, bias, dtype=dtype, r=r, lora_alpha=2.0, name="layer", **settings)


def plain(x, linear):
    """y = x (W + (s B A - its value))^T + bias: the value is W's, the derivative that of LoRA."""
    adapter = linear.scaling * linear.lora_B @ linear.lora_A
    return F.linear(x, linear.weight + (adapter - adapter.detach()), linear.bias)


def gradients(function, x, linear, weights) -> list[torch.Tensor]:
    parameters = [x, linear.lora_A, linear.lora_B] + ([linear.bias] if linear.bias is not None else [])
    return list(torch.autograd.grad((function(x) * weights).sum(), parameters))


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize(("m", "n", "r", "T"), [(8, 16, 4, 32), (13, 7, 3, 11), (5, 123, 2, 1), (64, 64, 63, 64)])
def test_both_ways_equal_the_formula(way, dtype, m, n, r, T):
    dY, X, A, B = (torch.randn(*shape, dtype=dtype) for shape in ((T, m), (T, n), (r, n), (m, r)))
    grad_A, grad_B = WAYS[way](dY, X, A, B, 0.5)
    G = dY.double().T @ X.double()
    for ours, exact in ((grad_A, 0.5 * B.double().T @ G), (grad_B, 0.5 * G @ A.double().T)):
        assert (ours.double() - exact).norm() <= TOLERANCE[dtype] * exact.norm()


@pytest.mark.parametrize("threads", [1, 2, 3])
@pytest.mark.parametrize("block_tokens", [1024, 1, 2, 4])
@pytest.mark.parametrize("dense", [True, False])
@pytest.mark.parametrize("leading", [(6,), (2, 3), (2, 1, 3, 2), (), (0,), (2, 0)], ids=str)
@pytest.mark.parametrize("bias", [True, False])
def test_the_layer_equals_autograd_of_the_plain_formula(monkeypatch, threads, block_tokens, dense, leading, bias):
    monkeypatch.setattr(token_blocks, "BLOCK_TOKENS", block_tokens)
    monkeypatch.setattr(token_blocks, "SHARE_TOKENS", 1)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(effective_linear, "dense_is_cheaper", lambda m, n, r, T: dense)
    linear = layer_of(bias=bias)
    x = torch.randn(*leading, 7, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(*leading, 13, dtype=torch.float64)
    assert torch.equal(linear(x), F.linear(x, linear.weight, linear.bias))
    ours = gradients(linear, x, linear, weights)
    theirs = gradients(lambda x: plain(x, linear), x, linear, weights)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize(
    ("T", "threads", "shares"), [(2048, 2, 2), (2047, 2, 1), (2046, 2, 1), (4096, 3, 1), (4096, 1, 1)]
)
def test_tokens_are_shared_out_where_there_are_enough_and_they_divide(monkeypatch, T, threads, shares):
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    assert token_blocks.num_token_shares(torch.empty(T, 3)) == shares
    assert token_blocks.num_token_shares(torch.empty(T, 3, dtype=torch.bfloat16)) == 1
    assert token_blocks.num_token_shares(torch.empty(T, 3, device="meta")) == 1


@hypothesis.given(
    m=st.integers(1, 20), n=st.integers(1, 20), r=st.integers(1, 9), T=st.integers(0, 40), seed=st.integers(0, 2**31)
)
@hypothesis.settings(max_examples=80)
def test_any_shape_the_cost_model_decides(m, n, r, T, seed):
    hypothesis.assume(r < min(m, n))
    torch.manual_seed(seed)
    linear = layer_of(m, n, r)
    x, weights = torch.randn(T, n, dtype=torch.float64, requires_grad=True), torch.randn(T, m, dtype=torch.float64)
    ours = gradients(linear, x, linear, weights)
    for one, other in zip(ours, gradients(lambda x: plain(x, linear), x, linear, weights), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-11, atol=1e-12)


@pytest.mark.parametrize("dense", [True, False])
def test_gradients_are_those_of_finite_differences(monkeypatch, dense):
    """Not of W as stored, which is a constant to autograd, but of W_base + s B A: the whole point of the form."""
    monkeypatch.setattr(effective_linear, "dense_is_cheaper", lambda m, n, r, T: dense)
    linear, x = layer_of(), torch.randn(4, 7, dtype=torch.float64)
    base = (linear.weight - linear.scaling * linear.lora_B @ linear.lora_A).detach()

    def loss() -> torch.Tensor:
        with torch.no_grad():
            linear.weight.copy_(base + linear.scaling * linear.lora_B @ linear.lora_A)
        return linear(x).sin().sum()

    loss().backward()
    for factor in (linear.lora_A, linear.lora_B):
        numeric = torch.zeros_like(factor)
        for i in range(factor.numel()):
            values = []
            for h in (1e-6, -1e-6):
                factor.data.view(-1)[i] += h
                values.append(float(loss().detach()))
                factor.data.view(-1)[i] -= h
            numeric.view(-1)[i] = (values[0] - values[1]) / 2e-6
        torch.testing.assert_close(factor.grad, numeric, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("m", "n", "r", "T"), [(16, 8, 2, 32), (16, 8, 7, 32), (13, 7, 3, 11), (32, 32, 16, 4096)])
def test_the_cost_model_counts_what_torch_counts(m, n, r, T):
    dY, X, A, B = torch.randn(T, m), torch.randn(T, n), torch.randn(r, n), torch.randn(m, r)
    num_flops = {}
    for way, function in WAYS.items():
        with FlopCounterMode(display=False) as counter:
            function(dY, X, A, B, 1.0)
        num_flops[way] = counter.get_total_flops()
    assert num_flops == {"thin": 4 * r * (m + n) * T, "dense": 2 * m * n * T + 4 * m * n * r}
    assert effective_linear.dense_is_cheaper(m, n, r, T) == (num_flops["dense"] < num_flops["thin"])


@pytest.mark.parametrize(("r", "dense"), [(8, False), (60, True)])
def test_the_backward_takes_the_cheaper_way(r, dense):
    m = n = 64
    linear, T = layer_of(m, n, r, torch.float32, bias=False), 256
    y = linear(torch.randn(T, n))
    with FlopCounterMode(display=False) as counter:
        y.sum().backward()
    assert counter.get_total_flops() == (2 * m * n * T + 4 * m * n * r if dense else 4 * r * (m + n) * T)
    assert linear.weight.grad is None


def test_a_layer_that_is_used_twice_gets_the_sum():
    linear = layer_of(m=7)
    x, weights = torch.randn(5, 7, dtype=torch.float64, requires_grad=True), torch.randn(5, 7, dtype=torch.float64)
    ours = gradients(lambda x: linear(torch.tanh(linear(x))), x, linear, weights)
    theirs = gradients(lambda x: plain(torch.tanh(plain(x, linear)), linear), x, linear, weights)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-13)


def test_accumulated_gradients_are_the_sum_of_the_gradients():
    model, _ = start(config_of(), dtype=torch.float64)
    single = []
    for step in range(3):
        backward(model, step)
        single.append([p.grad.clone() for p in model.parameters() if p.requires_grad])
        model.zero_grad()
    for step in range(3):
        backward(model, step)
    accumulated = [p.grad for p in model.parameters() if p.requires_grad]
    for total, *parts in zip(accumulated, *single, strict=True):
        torch.testing.assert_close(total, sum(parts), rtol=1e-13, atol=1e-14)


def test_frozen_biases_and_factors_get_no_gradient():
    linear = layer_of()
    linear.bias.requires_grad_(False)
    linear.lora_B.requires_grad_(False)
    linear(torch.randn(4, 7, dtype=torch.float64)).sum().backward()
    assert (linear.bias.grad, linear.lora_B.grad) == (None, None)
    assert linear.lora_A.grad is not None


def test_strided_inputs_and_expanded_gradients():
    linear, x = layer_of(), torch.randn(7, 6, dtype=torch.float64).T.requires_grad_()
    linear(x).sum().backward()  # the gradient of a sum is an expanded 1
    A, X = linear.lora_A.grad.clone(), x.detach()
    ones = torch.ones(6, 13, dtype=torch.float64)
    torch.testing.assert_close(A, linear.scaling * linear.lora_B.detach().T @ ones.T @ X)


@pytest.mark.parametrize(
    "ask",
    [
        lambda f, x: torch.autograd.grad(f(x), x, create_graph=True)[0].square().sum().backward(),
        lambda f, x: torch.autograd.grad(torch.autograd.grad(f(x), x, create_graph=True)[0].sum(), x),
        lambda f, x: torch.autograd.functional.hessian(f, x),
        lambda f, x: torch.func.grad(lambda x: torch.func.grad(f)(x).sum())(x),
    ],
    ids=["backward", "grad", "hessian", "func"],
)
@pytest.mark.parametrize("chained", [False, True])
def test_second_derivatives_are_refused_and_not_silently_wrong(ask, chained):
    """W is a constant to autograd here, so d2/dA dx would miss its dependence on A."""
    first, second = layer_of(), layer_of()

    def f(x):
        x = x * 1.0  # no leaf
        return (first(x).tanh() + (second(x) if chained else 0)).square().sum()

    with pytest.raises(UserError, match=r"differentiated once only.*to_dense\(model\)"):
        ask(f, torch.randn(3, 7, dtype=torch.float64, requires_grad=True))


def test_first_derivatives_with_a_graph_are_those_without():
    """create_graph=True by itself is no second derivative."""
    layers, x = [layer_of(), layer_of()], torch.randn(3, 7, dtype=torch.float64, requires_grad=True)
    inputs = [x, *(p for layer in layers for p in layer.parameters() if p.requires_grad)]
    found = []
    for create_graph in (False, True):
        read = x * 1.0
        loss = sum(layer(read).sin().sum() for layer in layers)
        found.append(torch.autograd.grad(loss, inputs, create_graph=create_graph))
    assert all(map(torch.equal, *found))


def test_torch_func_gives_the_same_gradients():
    linear, x = layer_of(), torch.randn(4, 7, dtype=torch.float64)
    parameters = dict(linear.named_parameters())
    ours = torch.func.grad(lambda p: torch.func.functional_call(linear, p, (x,)).sin().sum())(parameters)
    linear(x).sin().sum().backward()
    assert torch.equal(ours["lora_A"], linear.lora_A.grad)
    assert torch.equal(ours["lora_B"], linear.lora_B.grad)
    assert not ours["weight"].any()
