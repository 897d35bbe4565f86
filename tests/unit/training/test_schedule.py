"""The learning rate as a function of the step."""

import math
from itertools import pairwise

import pytest

from switchlora.training.schedule import learning_rate_factor


def factors(schedule: str, *, steps: int = 100, warmup: int = 10, min_lr_ratio: float = 0.1) -> list[float]:
    return [
        learning_rate_factor(t, steps=steps, warmup=warmup, schedule=schedule, min_lr_ratio=min_lr_ratio)
        for t in range(steps)
    ]


@pytest.mark.parametrize("schedule", ["cosine", "linear", "constant"])
def test_warms_up_linearly_from_a_first_step_that_moves(schedule: str) -> None:
    assert factors(schedule)[:10] == pytest.approx([(t + 1) / 10 for t in range(10)])


@pytest.mark.parametrize("schedule", ["cosine", "linear"])
def test_falls_to_just_above_the_minimum(schedule: str) -> None:
    values = factors(schedule)[10:]
    assert values[0] == pytest.approx(1.0)
    assert all(later < earlier for earlier, later in pairwise(values))
    assert 0.1 < values[-1] < 0.1 + 0.02


def test_cosine_is_a_cosine() -> None:
    assert factors("cosine", min_lr_ratio=0.0)[55] == pytest.approx((1 + math.cos(math.pi * 0.5)) / 2)


def test_constant_stays() -> None:
    assert set(factors("constant")[10:]) == {1.0}


def test_a_run_that_is_all_warm_up() -> None:
    assert factors("cosine", steps=3, warmup=3) == pytest.approx([1 / 3, 2 / 3, 1])
