"""The search for two learning rates: it ends at a best point among its neighbours, and says when it could not."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from switchlora.compare.sweep import Grid, Point, State, search


def run(grid: Grid, loss_of) -> tuple[State, dict[Point, float]]:
    """The search to its end."""
    losses: dict[Point, float] = {}
    while not (state := search(grid, losses)).done:
        assert state.missing
        losses |= {point: loss_of(*grid.rates(point)) for point in state.missing}
    return state, losses


def bowl(best_lr: float, best_other: float):
    return lambda lr, other: math.log(lr / best_lr) ** 2 + math.log(other / best_other) ** 2


@given(st.floats(1e-4, 1e-1), st.floats(1e-4, 1e-1))
def test_it_finds_the_bottom_of_a_bowl_and_confirms_it(best_lr, best_other):
    grid = Grid((0.01,), (0.01,), factor=2.0, max_runs=1000)
    loss = bowl(best_lr, best_other)
    state, losses = run(grid, loss)
    assert state.confirmed
    found = grid.rates(state.best)
    for rate, best in zip(found, (best_lr, best_other), strict=True):
        assert abs(math.log(rate / best)) <= math.log(2) / 2 + 0.02  # three digits of a rate
    assert all(point in losses for point in grid.neighbours(state.best))


def test_points_that_were_asked_for_are_all_tried_first():
    grid = Grid((0.001, 0.003), (0.01, 0.02, 0.05), factor=2.0, max_runs=3)
    assert search(grid, {}).missing == grid.asked_for()
    assert len(grid.asked_for()) == 6  # also beyond max_runs: they were asked for


def test_a_winner_at_the_edge_of_the_lists_is_not_taken_for_a_winner():
    grid = Grid((0.001, 0.003), (0.01,), factor=2.0, max_runs=50)
    state, _ = run(grid, bowl(0.012, 0.01))
    assert grid.rates(state.best) == (0.012, 0.01)


def test_a_search_that_runs_out_of_runs_says_so():
    state, losses = run(Grid((0.01,), (0.01,), factor=2.0, max_runs=7), bowl(1e-4, 0.01))
    assert len(losses) == 7
    assert not state.confirmed


@given(st.permutations(range(4)), st.integers(5, 12))
def test_which_of_several_runs_ends_first_does_not_matter(order, max_runs):
    """The neighbours of a point run side by side and end in any order: the points and the winner are the same."""
    grid, loss = Grid((0.01,), (0.01,), factor=2.0, max_runs=max_runs), bowl(0.05, 0.003)
    _, expected = run(grid, loss)
    losses: dict[Point, float] = {}
    while not (state := search(grid, losses)).done:
        places = [place for place in order if place < len(state.missing)]
        point = state.missing[places[0]]
        losses[point] = loss(*grid.rates(point))
    assert losses == expected
    assert len(losses) <= max_runs


def test_tied_rates_are_one_axis():
    grid = Grid((0.01,), None, factor=2.0, max_runs=50)
    state, losses = run(grid, bowl(0.04, 0.04))
    assert grid.rates(state.best) == (0.04, 0.04)
    assert len(losses) == 5  # 0.01, its neighbours 0.005 and 0.02, then 0.04, then 0.08


def test_runs_that_diverged_are_lost_and_not_tried_again():
    def loss(lr, other):
        return math.inf if lr > 0.01 else bowl(0.05, 0.01)(lr, other)

    grid = Grid((0.01,), (0.01,), factor=2.0, max_runs=50)
    state, losses = run(grid, loss)
    assert grid.rates(state.best) == (0.01, 0.01)
    assert state.confirmed
    assert math.inf in losses.values()


@pytest.mark.parametrize("place", range(-3, 5))
def test_rates_go_on_beyond_the_lists(place):
    rate, _ = Grid((0.01, 0.03), None, factor=2.0, max_runs=1).rates((place, 0))
    assert rate == [0.00125, 0.0025, 0.005, 0.01, 0.03, 0.06, 0.12, 0.24][place + 3]
