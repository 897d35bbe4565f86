"""Which learning rate wins, and how results of seeds are put together."""

import pytest

from switchlora.errors import NonFiniteError
from switchlora.finetuning.runs import HELD_OUT, best_rate, spread


def tried(lr, value):
    return {"lr": lr, "metrics": None if value is None else {HELD_OUT: {"f1": value, "accuracy": 100 - value}}}


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ({1e-4: 50.0, 1e-3: 70.0, 1e-2: 60.0}, 1e-3),
        ({1e-4: 70.0, 1e-3: 70.0, 1e-2: 60.0}, 1e-4),
        ({1e-4: 0.0, 1e-3: None}, 1e-4),
        ({1e-4: None, 1e-3: -5.0}, 1e-3),
    ],
)
def test_the_best_by_the_first_metric_and_of_equal_ones_the_smallest(values, best):
    assert best_rate([tried(lr, value) for lr, value in values.items()], "f1") == best


def test_no_rate_is_finite():
    with pytest.raises(NonFiniteError, match=r"--lr 0\.001 0\.01: .*give lower ones"):
        best_rate([tried(1e-3, None), tried(1e-2, None)], "f1")


def test_spread_is_of_a_sample():
    assert spread([1.0, 2.0, 4.5]) == {"mean": 2.5, "sd": pytest.approx((6.5 / 2) ** 0.5), "n": 3}
    assert spread([7.0]) == {"mean": 7.0, "sd": None, "n": 1}
