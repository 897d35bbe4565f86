"""The statements of docs/theory.md, each as a test: first order, the sketch and its averages, the initialisation."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch

from switchlora import SwitchLoraConfig
from switchlora.effective_linear import factor_gradients_thin
from switchlora.initialisation import GAIN, vector_bounds
from switchlora.switching import interval_at
from switchlora.training.schedule import learning_rate_factor
from switchlora.weight_update import update_weight_

SHAPES = [(48, 48), (40, 96), (96, 40)]


def uniform(*shape: int, std: float = 1.0) -> torch.Tensor:
    return (torch.rand(*shape, dtype=torch.float64) * 2 - 1) * math.sqrt(3) * std


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_an_update_by_gradient_descent_is_a_two_sided_sketch_of_the_gradient(m, n):
    """Statement 2, with its remainder."""
    r, s, eta, T = 6, 0.3, 0.1, 64
    A, B, W = uniform(r, n), uniform(m, r), uniform(m, n)
    X, dY = uniform(T, n), uniform(T, m)
    G = dY.T @ X
    dA, dB = factor_gradients_thin(dY, X, A, B, s)
    moved = W.clone()
    left, right = torch.cat([-eta * dB, B], dim=1), torch.cat([A - eta * dA, -eta * dA])
    update_weight_(moved, left, right, s, decay=1.0, key=lambda _: 0)
    sketch = -eta * s**2 * (B @ B.T @ G + G @ A.T @ A)
    remainder = eta**2 * s**3 * (G @ A.T @ B.T @ G)
    torch.testing.assert_close(moved - W, sketch + remainder, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize(("m", "n"), SHAPES)
def test_the_mean_sketch_is_the_gradient(m, n):
    """Statement 3: over draws of A and B, the mean of B B^T G + G A^T A is r (var B + var A) G."""
    r, var_A, var_B, draws = 8, 0.5, 0.2, 4000
    G, total = uniform(m, n), torch.zeros(m, n, dtype=torch.float64)
    for _ in range(draws):
        A, B = uniform(r, n, std=math.sqrt(var_A)), uniform(m, r, std=math.sqrt(var_B))
        total += B @ (B.T @ G) + (G @ A.T) @ A
    mean = total / draws / (r * (var_A + var_B))
    assert float((mean - G).norm() / G.norm()) < 5 * math.sqrt(max(m, n) / (r * draws))
    size = float((mean * G).sum() / G.square().sum())  # noise averages out in it
    assert size == pytest.approx(1, abs=0.01)


def normal(*shape: int) -> torch.Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def about_the_cosine(slots: list[list[float]], draw: Callable[..., torch.Tensor], n: int) -> float:
    """With G, of a sum of sketches whose slots have vectors of these shares: mean inner product by root mean square."""
    shares = torch.tensor([share for slot in slots for share in slot], dtype=torch.float64)
    inner, square, num = 0.0, 0.0, 4000
    G = uniform(n, n)
    for _ in range(num):
        A, B = draw(len(shares), n), draw(n, len(shares))
        update = (B * shares) @ (B.T @ G) + (G @ A.T * shares) @ A
        inner += float((update * G).sum()) / num
        square += float(update.square().sum()) / num
    return inner / math.sqrt(square) / float(G.norm())


@pytest.mark.parametrize("r", [2, 4])
@pytest.mark.parametrize("shares", [[1.0], [0.25] * 4, [0.1, 0.2, 0.7]])
@pytest.mark.parametrize(("draw", "kurtosis"), [(normal, 3), (uniform, 9 / 5)])
def test_how_near_to_the_gradient_a_sketch_points(r, shares, draw, kurtosis):
    """Statement 4: sqrt(2rK / (2rK + n + kurtosis - 2)), where K = 1 / the sum of the squared shares of the draws."""
    K = 1 / sum(share**2 for share in shares)
    expected = math.sqrt(2 * r * K / (2 * r * K + 16 + kurtosis - 2))
    assert about_the_cosine([shares] * r, draw, 16) == pytest.approx(expected, rel=0.01)


def test_slots_that_are_switched_at_different_times_count_by_their_mean_square():
    """Statement 4 with vectors that come and go one by one: 1/K is the mean over slots of their squared shares."""
    slots = [[1.0], [0.5, 0.5], [0.2, 0.8], [0.1, 0.3, 0.6]]  # of slot 0, 1, 2, 3, on either side
    r, K = len(slots), len(slots) / sum(share**2 for slot in slots for share in slot)
    expected = math.sqrt(2 * r * K / (2 * r * K + 16 - 1 / 5))
    assert about_the_cosine(slots, uniform, 16) == pytest.approx(expected, rel=0.01)


def draws_of_a_slot(steps: int, interval: float, decay_ratio: float | None, warmup: int) -> tuple[float, float]:
    """How many vectors a slot has in a run, and K: shares by the learning rate, means over where a cursor begins."""
    config = SwitchLoraConfig(r=8, interval=interval, decay_ratio=decay_ratio)
    every = np.arange(steps + 1)
    switches = np.cumsum([0.0, *(1 / interval_at(step, config, steps) for step in every[:-1])])
    schedule: dict[str, Any] = {"steps": steps, "warmup": warmup, "schedule": "cosine", "min_lr_ratio": 0.1}
    moved = np.cumsum([0.0, *(learning_rate_factor(step, **schedule) for step in every[1:].tolist())])
    squares = []
    for phase in (np.arange(100) + 0.5) / 100:
        times = np.interp(np.arange(phase, switches[-1]), switches, every)
        shares = np.diff([0, *np.interp(times, every, moved), moved[-1]]) / moved[-1]
        squares.append(float(np.square(shares).sum()))
    return 1 + float(switches[-1]), 1 / (sum(squares) / len(squares))


@pytest.mark.parametrize(
    ("steps", "interval", "decay_ratio", "warmup", "num", "effective", "quarter", "sixteenth"),
    [
        (1000, 40, 0.1, 100, 3.1, 1.3, 0.63, 0.38),
        (4000, 40, 0.1, 400, 9.3, 2.1, 0.72, 0.46),
        (40000, 40, 0.1, 100, 84, 7.6, 0.89, 0.70),
        (1000, 10, 0.1, 100, 9.3, 2.1, 0.72, 0.46),
        (1000, 40, 0.5, 100, 10.4, 8.3, 0.90, 0.71),
        (1000, 40, None, 100, 26, 18.8, 0.95, 0.84),
    ],
)
def test_as_how_many_independent_sketches_a_schedule_counts(
    steps, interval, decay_ratio, warmup, num, effective, quarter, sixteenth
):
    """The table of statement 4, with h = 128."""
    found, K = draws_of_a_slot(steps, interval, decay_ratio, warmup)
    assert (found, K) == pytest.approx((num, effective), rel=0.03)
    cosines = [math.sqrt(2 * r * K / (2 * r * K + 128 - 1 / 5)) for r in (32, 8)]
    assert cosines == pytest.approx([quarter, sixteenth], abs=0.006)


@pytest.mark.parametrize(("m", "n"), [(128, 128), (128, 344), (344, 128)])
@pytest.mark.parametrize("r", [16, 64])
def test_the_initialisation_makes_both_halves_equal_and_the_sum_as_large_as_a_linear_weight(m, n, r):
    """Statement 5: its two conditions, on real draws and a gradient with independent entries."""
    std = {side: bound / math.sqrt(3) for side, bound in vector_bounds(m, n, r, "switchlora").items()}
    s, ratios, sizes = 1 / r, [], []
    for _ in range(8):
        A, B, G = uniform(r, n, std=std["A"]), uniform(m, r, std=std["B"]), uniform(m, n)
        ratios.append(float((B @ B.T @ G).norm() / (G @ A.T @ A).norm()))
        sizes.append(float((s * B @ A).square().mean().sqrt()) * math.sqrt(n))
    assert sum(sizes) / len(sizes) == pytest.approx(GAIN, rel=0.05)
    halves = math.sqrt((r + m - 1 / 5) / (r + n - 1 / 5) * n / m)  # 1 for r = 0 or m = n: see the page
    assert sum(ratios) / len(ratios) == pytest.approx(halves, rel=0.05)


def test_on_which_vectors_a_gradient_depends():
    """Statement 6: dL/db_k on a_k alone of the factors, dL/da_k on b_k alone: a switch of a_k makes dL/db_k stale."""
    m, n, r, T, k = 12, 20, 5, 9, 2
    A, B, X, dY = uniform(r, n), uniform(m, r), uniform(T, n), uniform(T, m)
    dA, dB = factor_gradients_thin(dY, X, A, B, 0.7)
    switched = A.clone()
    switched[k] = uniform(n)
    dA_after, dB_after = factor_gradients_thin(dY, X, switched, B, 0.7)
    torch.testing.assert_close(dA_after, dA, rtol=0, atol=0)
    changed = (dB_after != dB).any(dim=0)
    assert changed.tolist() == [slot == k for slot in range(r)]
