"""The statements of docs/theory.md, each as a test: first order, the sketch and its averages, the initialisation."""

import math

import pytest
import torch

from switchlora.initialisation import GAIN, vector_bounds
from switchlora.layer import factor_gradients_thin
from switchlora.weight_update import update_weight_

SHAPES = [(48, 48), (40, 96), (96, 40)]


def uniform(*shape: int, std: float = 1.0) -> torch.Tensor:
    return (torch.rand(*shape, dtype=torch.float64) * 2 - 1) * math.sqrt(3) * std


def cosine(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a * b).sum() / (a.norm() * b.norm()))


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


@pytest.mark.parametrize("r", [4, 16, 64])
@pytest.mark.parametrize("num_draws", [1, 4])
def test_how_near_to_the_gradient_a_sketch_points(r, num_draws):
    """Statement 4: cosine sqrt(2rK / (2rK + n + 1)) for a square matrix and K independent draws of the factors."""
    n, found = 128, []
    for _ in range(8):
        G, update = uniform(n, n), torch.zeros(n, n, dtype=torch.float64)
        for _ in range(num_draws):
            A, B = uniform(r, n), uniform(n, r)
            update += B @ (B.T @ G) + (G @ A.T) @ A
        found.append(cosine(update, G))
    expected = math.sqrt(2 * r * num_draws / (2 * r * num_draws + n + 1))
    assert sum(found) / len(found) == pytest.approx(expected, rel=0.03)


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
    halves = math.sqrt((r + m + 1) / (r + n + 1) * n / m)  # 1 for r = 0 or m = n: see the page
    assert sum(ratios) / len(ratios) == pytest.approx(halves, rel=0.05)
