"""The rule: torch.optim.AdamW where nothing is switched, and right to 1e-10 at any step count."""

import copy
import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
import torch
from torch import nn

from switchlora.moving import OfVectors, move_factors_
from switchlora.rules import AdamW, bias_corrections
from switchlora.weight_update import change_in
from tests.numerics.cases import backward, config_of, layers_of, start

TOLERANCE = {torch.float64: 1e-13, torch.float32: 5e-6}


def coefficients(rule, step, lr):
    return (float(c) for c in rule.coefficients(np.array(step), lr))


BETAS = [(0.9, 0.999), (0.8, 0.95), (0.0, 0.999), (0.9, 0.5)]


@pytest.mark.parametrize("dtype", TOLERANCE, ids=str)
@pytest.mark.parametrize("betas", BETAS, ids=str)
@pytest.mark.parametrize("shape", [(4, 8), (5, 123), (7,), (2, 3, 5)], ids=str)
def test_one_tensor_moves_as_torch_moves_it(dtype, betas, shape):
    ours, moments = torch.randn(shape, dtype=dtype), (torch.zeros(shape, dtype=dtype), torch.zeros(shape, dtype=dtype))
    theirs = nn.Parameter(ours.clone())
    rule = AdamW(betas, 1e-6)
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=betas, eps=1e-6, weight_decay=0.0)
    for step in range(1, 51):
        theirs.grad = torch.randn(shape, dtype=dtype) * 10 ** (step % 5 - 2)
        ours += rule.change(theirs.grad, moments, *coefficients(rule, step, 0.01))
        reference.step()
        torch.testing.assert_close(ours, theirs.detach(), rtol=TOLERANCE[dtype], atol=TOLERANCE[dtype])


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize("interval", [math.inf, 1e30])
def test_without_switches_the_optimizer_is_torch_s(weight_decay, interval):
    """A, B and ordinary parameters, float64, 100 steps: 1e-12. The factors are never decayed, the others are."""
    model, ours = start(
        config_of(interval=interval), dtype=torch.float64, lr=0.02, other_lr=0.005, weight_decay=weight_decay
    )
    factors = [p for layer in layers_of(model) for p in (layer.lora_A, layer.lora_B)]
    others = [layer.bias for layer in layers_of(model)]
    copies = [nn.Parameter(p.detach().clone()) for p in factors + others]
    theirs = torch.optim.AdamW(
        [
            {"params": copies[: len(factors)], "lr": 0.02, "weight_decay": 0.0},
            {"params": copies[len(factors) :], "lr": 0.005, "weight_decay": weight_decay},
        ],
    )
    for step in range(100):
        backward(model, step)
        for parameter, clone in zip(factors + others, copies, strict=True):
            clone.grad = parameter.grad.clone()
        ours.step()
        theirs.step()
        ours.zero_grad()
        for parameter, clone in zip(factors + others, copies, strict=True):
            torch.testing.assert_close(parameter, clone, rtol=1e-12, atol=1e-12)
    assert ours.stats.total.switches_done == 0


@pytest.mark.parametrize("beta", [0.9, 0.999, 0.5, 0.99999])
@pytest.mark.parametrize("step", [1, 2, 10, 999, 10**4, 10**6, 10**9])
def test_bias_corrections_are_exact_at_any_step_count(beta, step):
    """Against exact rationals (small counts) and 60 digits: 1 - beta**t loses 13 digits at t = 1, beta = 0.999."""
    with mpmath.workdps(60):
        exact = 1 - mpmath.mpf(beta) ** step
        if step <= 10:
            rational = 1 - Fraction(beta) ** step
            assert abs(exact - mpmath.mpf(rational.numerator) / rational.denominator) < 1e-50
        first, second = bias_corrections(np.array([step], dtype=np.int32), (beta, beta))
        assert first.dtype == np.float64
        assert abs(mpmath.mpf(float(first[0])) / exact - 1) < 1e-13
        assert first == second


def test_no_memory_needs_no_correction():
    first, second = bias_corrections(np.array([0, 1, 10**9]), (0.0, 0.0))
    assert first.tolist() == second.tolist() == [1.0, 1.0, 1.0]


def test_each_vector_has_its_own_step_count_and_stays_right_at_any():
    """Counters set to 1 .. 1e9 side by side in one factor; the change of each in 40 digits, to 1e-10 (at lr 1)."""
    counts = [1, 10, 10**4, 10**6, 10**9]
    betas, eps, n = (0.9, 0.999), 1e-8, 6
    grad, m = torch.randn(len(counts), n, dtype=torch.float64), torch.randn(len(counts), n, dtype=torch.float64)
    v = torch.rand(len(counts), n, dtype=torch.float64)
    rule = AdamW(betas, eps)
    size, small = (torch.from_numpy(c)[:, None] for c in rule.coefficients(np.array(counts, np.int32), 1.0))
    change = rule.change(grad, (m.clone(), v.clone()), size, small)
    with mpmath.workdps(40):
        for i, t in enumerate(counts):
            for j in range(n):
                g = mpmath.mpf(float(grad[i, j]))
                m_hat = (betas[0] * mpmath.mpf(float(m[i, j])) + (1 - betas[0]) * g) / (1 - mpmath.mpf(betas[0]) ** t)
                v_hat = (betas[1] * mpmath.mpf(float(v[i, j])) + (1 - betas[1]) * g * g) / (
                    1 - mpmath.mpf(betas[1]) ** t
                )
                expected = m_hat / (mpmath.sqrt(v_hat) + eps)
                assert abs(-float(change[i, j]) - expected) <= 1e-10 * max(1, abs(expected))


@pytest.mark.parametrize("count", [10**4, 10**6, 10**9, 2**31 - 10])
def test_the_optimizer_goes_on_from_any_step_count_as_torch_does(count):
    model, ours = start(config_of(interval=math.inf), dtype=torch.float64)
    (layer, _) = layers_of(model)
    backward(model)
    clone = nn.Parameter(layer.lora_A.detach().clone())
    theirs = torch.optim.AdamW([clone], lr=1e-2, weight_decay=0.0)
    ours.state[layer.lora_A]["step"].fill_(count)
    clone.grad = layer.lora_A.grad.clone()
    theirs.state[clone] = {
        "step": torch.tensor(float(count), dtype=torch.float64),
        "exp_avg": torch.zeros_like(clone), "exp_avg_sq": torch.zeros_like(clone),
    }  # fmt: skip
    ours.step()
    theirs.step()
    torch.testing.assert_close(layer.lora_A, clone, rtol=1e-10, atol=1e-12)
    assert ours.state[layer.lora_A]["step"].unique().tolist() == [count + 1]


def test_moments_change_in_place_and_the_gradient_does_not():
    grad, m, v = torch.randn(3, 4), torch.zeros(3, 4), torch.zeros(3, 4)
    before = copy.copy(grad), grad.clone()
    RULE.change(grad, (m, v), *coefficients(RULE, 1, 0.1))
    assert torch.equal(grad, before[1])
    torch.testing.assert_close(m, 0.1 * grad)
    torch.testing.assert_close(v, 0.001 * grad * grad)


R, RULE = 4, AdamW((0.9, 0.999), 1e-8)
RESTING, RESET = torch.tensor([0, 3]), torch.tensor([1])


def factors_and_states(dtype):
    factors = {"A": torch.randn(R, 5).to(dtype), "B": torch.randn(6, R).to(dtype)}
    for factor in factors.values():
        factor.grad = torch.randn_like(factor)
    return factors, {
        letter: {name: torch.rand_like(factor) for name in RULE.moments} for letter, factor in factors.items()
    }


def copy_of(factors, states):
    copies = copy.deepcopy((factors, states))
    for letter, factor in copies[0].items():
        factor.grad = factors[letter].grad.clone()
    return copies


def clear_(letter, tensor, numbers):
    (tensor if letter == "A" else tensor.T)[numbers] = 0


def step_both(factors, states, *numbers):
    wide = torch.float64 if factors["A"].dtype == torch.float64 else torch.float32
    size = torch.tensor([0.0, -0.1, -0.1, 0.0], dtype=wide)
    change = change_in(torch.empty(6, 2 * R, dtype=wide), torch.empty(2 * R, 5, dtype=wide))
    coefficients = {
        letter: OfVectors(size.view(shape), torch.full(shape, 1e-8, dtype=wide), *numbers)
        for letter, shape in (("A", (R, 1)), ("B", (1, R)))
    }
    keys = {letter: lambda purpose: 7 for letter in factors}
    move_factors_(factors["A"], factors["B"], states, coefficients, {"A": RULE, "B": RULE}, keys, change)


def assert_equal_bits(ones, others):
    for letter in ("A", "B"):
        assert torch.equal(ones[0][letter], others[0][letter])
        for name in RULE.moments:
            assert torch.equal(ones[1][letter][name], others[1][letter][name])


each_dtype = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=str)


@each_dtype
def test_vectors_that_rest_or_were_reset_and_others_that_do_not_notice(dtype):
    """For rows, as of A, and columns, as of B: bit for bit what cleared gradients and moments give."""
    ours = factors_and_states(dtype)
    before, cleared = copy.deepcopy(ours[0]), copy_of(*ours)
    for letter, factor in cleared[0].items():
        clear_(letter, factor.grad, RESTING)
        for moment in cleared[1][letter].values():
            clear_(letter, moment, RESET)
    step_both(*ours, RESTING, RESET)
    step_both(*cleared)
    assert_equal_bits(ours, cleared)
    for letter, factor in ours[0].items():
        moved = (factor != before[letter]).any(dim=1 if letter == "A" else 0)
        assert moved.tolist() == [False, True, True, False]


@each_dtype
def test_what_rests_since_it_was_reset_may_take_its_gradient_and_be_cleared_again(dtype):
    """The shorter way of an elementwise rule gives the same bits."""
    ours = factors_and_states(dtype)
    for letter, state in ours[1].items():
        for moment in state.values():
            clear_(letter, moment, RESTING)
    others = copy_of(*ours)
    step_both(*ours, RESTING, RESET)
    step_both(*others, None, RESET, RESTING)
    assert_equal_bits(ours, others)
