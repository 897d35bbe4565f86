"""FLOPs against the formulas of docs/flops.md, bytes against what is known of small models."""

import pytest
import torch

from switchlora.bench.contestants import Contestant
from switchlora.bench.counts import count, needed_flops
from switchlora.bench.options import SHAPES, BenchOptions
from switchlora.bench.rounds import batch
from switchlora.bench.trainee import base_model, build
from switchlora.conversion import hidden_linears

R, SEQUENCES, CPU = 16, 2, torch.device("cpu")
OPTIONS = BenchOptions(model="tiny", ranks=R, seq_len=16)
T = SEQUENCES * OPTIONS.seq_len


@pytest.fixture(scope="module")
def counted():
    """Counts by method, and the shapes of the hidden matrices."""
    base, tokens, found = base_model(OPTIONS, CPU), batch(OPTIONS, SEQUENCES, 0), {}
    for method in ("full", "switchlora", "switchlora-thin", "switchlora-dense", "lora-adapter"):
        trainee = build(Contestant(method, None if method == "full" else R), base, OPTIONS, CPU)
        found[method] = count(trainee, tokens)
    return found, [tuple(linear.weight.shape) for linear in hidden_linears(base)]


@pytest.mark.parametrize(
    ("method", "hidden_flops"),
    [
        ("switchlora-thin", lambda m, n: 4 * m * n * T + 4 * R * (m + n) * T),
        ("switchlora-dense", lambda m, n: 4 * m * n * T + 2 * m * n * T + 4 * m * n * R),
        ("lora-adapter", lambda m, n: 4 * m * n * T + 6 * R * (m + n) * T),
    ],
)
def test_flops_are_those_of_the_formulas(counted, method, hidden_flops) -> None:
    """What differs from full rank is the hidden matrices alone."""
    counts, shapes = counted
    difference = sum(hidden_flops(m, n) - 6 * m * n * T for m, n in shapes)
    assert counts[method].model_flops - counts["full"].model_flops == difference


def test_the_weight_update_is_counted(counted) -> None:
    counts, shapes = counted
    assert counts["switchlora"].optimizer_flops == sum(4 * m * n * R for m, n in shapes)
    assert counts["full"].optimizer_flops == counts["lora-adapter"].optimizer_flops == 0


def test_full_rank_by_the_usual_formula(counted) -> None:
    """Every product is counted, attention's as if it looked ahead."""
    counts, _ = counted
    assert counts["full"].flops == pytest.approx(needed_flops(SHAPES["tiny"], T, OPTIONS.seq_len), rel=0.001)


def test_bytes_of_full_rank(counted) -> None:
    counts, _ = counted
    num_bytes = counts["full"].num_bytes
    weights = sum(p.numel() for p in base_model(OPTIONS, CPU).parameters()) * 4
    assert num_bytes["weight_bytes"] == num_bytes["gradient_bytes"] == weights
    assert 2 * weights <= num_bytes["optimizer_device_bytes"] <= 2 * weights + 1000  # and a step count each
    assert num_bytes["candidate_host_bytes"] == num_bytes["candidate_device_bytes"] == 0


def test_bytes_of_switchlora(counted) -> None:
    counts, shapes = counted
    ours, full = counts["switchlora"].num_bytes, counts["full"].num_bytes
    saved = sum(m * n - R * (m + n) for m, n in shapes) * 4
    assert full["gradient_bytes"] - ours["gradient_bytes"] == saved
    assert ours["candidate_host_bytes"] >= sum((min(m, n)) * (m + n) for m, n in shapes) * 4
