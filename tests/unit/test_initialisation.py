"""The initial distribution of the vectors."""

import math

import pytest
import torch

from switchlora import SwitchLoraLinear
from switchlora.candidates import new_pool
from switchlora.initialisation import draw_candidates, initial_slots, num_candidates, vector_bounds

SHAPES = [(64, 64, 8), (48, 200, 12), (300, 37, 5)]


def formula(m, n, r):
    gain = 1 / math.sqrt(3)
    return {
        "A": (math.sqrt(m) * r / (n * math.sqrt(n))) ** 0.25 * gain**0.5,
        "B": (r / math.sqrt(m * n)) ** 0.25 * gain**0.5,
    }


@pytest.mark.parametrize(("m", "n", "r"), SHAPES)
@pytest.mark.parametrize("side", ["A", "B"])
def test_active_vectors_and_candidates_have_the_paper_s_spread_and_mean_zero(m, n, r, side):
    std, samples = formula(m, n, r)[side], {"active": [], "pool": []}
    for seed in range(20):
        layer = SwitchLoraLinear(n, m, r=r, name="layer", seed=seed)
        active = (layer.lora_A if side == "A" else layer.lora_B.T).detach()
        samples["active"].append(active.flatten())
        slots = initial_slots(m, n, r)[side]
        pool = new_pool(layer, side, num_candidates(m, n), slots, torch.device("cpu"))
        idle = torch.ones(num_candidates(m, n), dtype=torch.bool)
        idle[slots] = False
        samples["pool"].append(pool[idle].flatten())
        assert torch.equal(pool[slots], active)
    for values in (torch.cat(parts).double() for parts in samples.values()):
        assert values.std().item() == pytest.approx(std, rel=0.03)
        assert abs(values.mean().item()) < 5 * std / len(values) ** 0.5
        assert values.abs().max() <= std * math.sqrt(3) * (1 + 1e-6)
        assert values.abs().max() > std * math.sqrt(3) * 0.99  # uniform, not normal


@pytest.mark.parametrize(("m", "n", "r"), [(256, 256, 32), (512, 128, 32), (128, 512, 32)])
def test_the_two_halves_of_an_update_are_equally_large(m, n, r):
    """What the formula is for: |B dA| and |dB A| of one size, for dA and dB along the gradients of a random G."""
    bounds = vector_bounds(m, n, r, "switchlora")
    A = draw_candidates(0, "l", "A", torch.arange(r), slice(0, n), bounds["A"], torch.float32)
    B = draw_candidates(0, "l", "B", torch.arange(r), slice(0, m), bounds["B"], torch.float32).T
    g = torch.randn(m, n)
    dA, dB = B.T @ g, g @ A.T
    assert ((B @ dA).norm() / (dB @ A).norm()).item() == pytest.approx(1, rel=0.15)


@pytest.mark.parametrize(("m", "n", "r"), SHAPES)
def test_lora_s_choice_is_zero_for_b_and_uniform_for_a(m, n, r):
    layer = SwitchLoraLinear(n, m, r=r, init_lora_weights="lora", name="layer")
    assert not layer.lora_B.any()
    assert layer.lora_A.abs().max().item() == pytest.approx(1 / math.sqrt(n), rel=0.05)
    assert vector_bounds(m, n, r, "lora") == {"A": 1 / math.sqrt(n), "B": 0.0}


@pytest.mark.parametrize(("m", "n", "r"), [(10, 12, 4), (12, 10, 5), (7, 7, 1)])
def test_active_vectors_are_the_last_candidates_and_b_is_rotated(m, n, r):
    c = min(m, n)
    slots = initial_slots(m, n, r)
    assert num_candidates(m, n) == c
    assert slots["A"].tolist() == list(range(c - r, c))
    assert slots["B"].tolist() == [slots["A"].tolist()[i - r // 2] for i in range(r)]
    assert slots["B"][r // 2] == slots["A"][0]  # the last one before B's cursor is candidate c - 1


def test_any_row_of_the_table_can_be_drawn_alone():
    whole = draw_candidates(1, "layer", "A", torch.arange(20), slice(0, 6), 0.5, torch.float32)
    assert torch.equal(
        draw_candidates(1, "layer", "A", torch.tensor([17, 3]), slice(0, 6), 0.5, torch.float32), whole[[17, 3]]
    )
    assert not torch.equal(draw_candidates(1, "layer", "B", torch.arange(20), slice(0, 6), 0.5, torch.float32), whole)


def test_s_b_a_has_the_size_of_a_default_linear_weight():
    """sqrt(1/3) / sqrt(n), as the format page of the golden files says."""
    n = m = 256
    layer = SwitchLoraLinear(n, m, r=32, name="layer")
    adapter = layer.scaling * layer.lora_B.detach() @ layer.lora_A.detach()
    assert adapter.std().item() == pytest.approx(math.sqrt(1 / 3 / n), rel=0.1)
