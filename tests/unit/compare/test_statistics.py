"""Figures of the table, against values worked out by hand."""

import pytest

from switchlora.compare.statistics import dominated, interpolated, paired_difference, spread


def test_spread_is_that_of_a_sample():
    assert spread([1.0, 2.0, 3.0]) == {"mean": 2.0, "sd": 1.0, "n": 3}
    assert spread([1.0]) == {"mean": 1.0, "sd": None, "n": 1}
    assert spread([]) == {"mean": None, "sd": None, "n": 0}


def test_differences_are_of_the_same_seed():
    """Seed by seed 1, 2, 3; the order of the seeds and a seed that only one has do not matter."""
    found = paired_difference({2: 13.0, 0: 1.0, 1: 7.0, 9: 100.0}, {0: 0.0, 1: 5.0, 2: 10.0})
    assert (found["mean"], found["n"]) == (2.0, 3)
    half = 4.302652729911275 * 1.0 / 3**0.5  # Student's t for 2 degrees of freedom, 97.5 %
    assert (found["low"], found["high"]) == pytest.approx((2.0 - half, 2.0 + half))


def test_one_pair_has_no_interval():
    found = paired_difference({0: 1.0}, {0: 0.5})
    assert (found["mean"], found["low"], found["high"]) == (0.5, None, None)


def test_dominated_means_nowhere_better_and_somewhere_worse():
    assert dominated([(1, 5, 1), (2, 5, 1), (2, 4, 1), (0, 9, 1)]) == [None, 0, None, None]
    assert dominated([(1, 1, 1), (1, 1, 1)]) == [None, None]  # equals do not beat each other


def test_a_hundredth_of_a_second_saves_nobody():
    """Times within 5 % are alike; those beyond count for themselves."""
    assert dominated([(1, 5, 1.0), (2, 5, 0.99)]) == [None, 0]
    assert dominated([(1, 5, 1.0), (2, 5, 0.9)]) == [None, None]
    assert dominated([(1, 5, 1.0), (1, 5, 0.99)]) == [None, None]
    assert dominated([(1, 5, 1.0), (1, 5, 0.9)]) == [1, None]


def test_interpolation_does_not_go_beyond_the_ends():
    assert interpolated([1.0, 3.0], [10.0, 20.0], 2.0) == 15.0
    assert interpolated([1.0, 3.0], [10.0, 20.0], 3.0) == 20.0
    assert interpolated([1.0, 3.0], [10.0, 20.0], 3.1) is None
    assert interpolated([], [], 1.0) is None


def test_what_does_not_scatter_has_no_interval():
    """The differences are the same but for their last bits."""
    found = paired_difference({0: 0.1, 1: 0.7, 2: 5.3}, {0: 0.0, 1: 0.6, 2: 5.2})
    assert found["sd"] > 0
    assert (found["mean"], found["low"], found["high"]) == (pytest.approx(0.1), None, None)
