"""The schedule and the choice, piece by piece; the whole is held against plain loops in tests/numerics."""

import math

import hypothesis
import hypothesis.strategies as st
import pytest
import torch

from switchlora import SwitchLoraConfig
from switchlora.draws import SeededDraws
from switchlora.switching import interval_at, num_requested
from tests.numerics.cases import config_of, layers_of, side_state, start, train


@pytest.mark.parametrize(
    ("step", "expected"),
    [
        (0, 40 / 0.3 ** (1 / 4000)),
        (3999, 40 / 0.3),  # decay_ratio * total_steps = 4000 steps are one factor of 0.3
        (7999, 40 / 0.09),
        (39_999, 40 / 0.3**10),
        (10**6, 40 / 1e-8),  # never below 1e-8 of the frequency, and no overflow
        (10**9, 40 / 1e-8),
    ],
)
def test_the_interval_grows_as_the_formula_says(step, expected):
    config = SwitchLoraConfig(interval=40, decay_ratio=0.1)
    assert interval_at(step, config, 40_000) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("step", [0, 1, 10**6])
def test_without_decay_the_interval_stays(step):
    assert interval_at(step, SwitchLoraConfig(interval=17.5, decay_ratio=None), 100) == 17.5
    assert interval_at(step, SwitchLoraConfig(interval=math.inf), 100) == math.inf


@pytest.mark.parametrize(
    ("r", "interval", "uniform", "expected"),
    [(8, 4, 0.0, 2), (8, 4, 0.999, 2), (8, 16, 0.49, 1), (8, 16, 0.5, 0), (7, 2, 0.49, 4), (7, 2, 0.5, 3),
     (4, 1e30, 0.0, 1)],
)  # fmt: skip
def test_fractions_are_rounded_up_with_their_probability(r, interval, uniform, expected):
    assert num_requested(r, interval, uniform) == expected


@pytest.mark.parametrize(("r", "interval"), [(4, 10), (128, 40), (7, 3), (8, 1600), (5, 0.7), (16, 4)])
def test_the_mean_number_is_right(r, interval):
    """20,000 steps of one seed: within five standard deviations of r / interval, and never off by one or more."""
    draws, steps = SeededDraws(0), 20_000
    nums = [num_requested(r, interval, draws.uniform("layer", step)) for step in range(steps)]
    mean, fraction = r / interval, (r / interval) % 1
    assert abs(sum(nums) / steps - mean) <= 5 * (fraction * (1 - fraction) / steps) ** 0.5
    assert set(nums) <= {math.floor(mean), math.ceil(mean)}


@hypothesis.given(st.integers(1, 300), st.floats(0.1, 1e6), st.floats(0, 1, exclude_max=True))
def test_any_number_is_one_of_the_two_integers_around_the_mean(r, interval, uniform):
    num = num_requested(r, interval, uniform)
    assert math.floor(r / interval) <= num <= math.ceil(r / interval)


@pytest.mark.parametrize("order", ["cyclic", "random"])
def test_both_sides_switch_the_same_number_and_vectors_and_partners_stay_apart(order):
    config = config_of(r=7, interval=4.0, freeze_steps=1, order=order)
    model, optimizer = start(config, (20, 24, 18))
    num_switches = 0
    for step in range(60):
        resting = {(layer.name, side): side_state(optimizer, layer, side)["frozen"].clone() > 0
                   for layer in layers_of(model) for side in ("A", "B")}  # fmt: skip
        live = {(layer.name, side): set(side_state(optimizer, layer, side)["slots"].tolist())
                for layer in layers_of(model) for side in ("A", "B")}  # fmt: skip
        train(model, optimizer, range(step, step + 1))
        for name, outcome in optimizer.outcomes.items():
            if not outcome.switches:
                continue
            A, B = outcome.switches["A"], outcome.switches["B"]
            num_switches += len(A.slots)
            assert len(A.slots) == len(B.slots) <= outcome.requested
            assert not set(A.slots.tolist()) & set(B.slots.tolist())
            for side, made in outcome.switches.items():
                assert not resting[name, side][made.slots].any()
                assert not live[name, side] & set(made.incoming.tolist())
    assert num_switches > 60


@pytest.mark.parametrize(("letter", "cursor"), [("A", 0), ("B", 4)])
def test_a_run_of_slots_is_cut_before_one_that_rests_and_not_skipped_over(letter, cursor):
    """Two slots are requested from the cursor on. The second one rests: only the first goes. The first: none."""
    for resting, done in ((3, 2), (1, 1), (0, 0)):
        config = config_of(r=8, interval=4.0, freeze_steps=2)
        model, optimizer = start(config, (20, 24))
        (layer,) = layers_of(model)
        side_state(optimizer, layer, letter)["frozen"][cursor + resting] = 1
        train(model, optimizer, 1)
        outcome = optimizer.outcomes[layer.name]
        assert outcome.requested == 2
        assert [len(made.slots) for made in outcome.switches.values()] == [done] * (2 if done else 0)
        assert int(side_state(optimizer, layer, letter)["cursor"]) == cursor + done
        assert (optimizer.stats.last.switches_requested, optimizer.stats.last.switches_done) == (4, 2 * done)
        assert optimizer.stats.last.resets_done == 2 * done


def test_no_more_vectors_than_idle_candidates_go():
    model, optimizer = start(config_of(r=8, interval=2.0, freeze_steps=0), (10, 30))
    train(model, optimizer, 5)
    assert optimizer.stats.last.switches_requested == 2 * 4
    assert optimizer.stats.last.switches_done == 2 * 2  # c - r = 2


def test_layers_choose_independently_of_which_others_exist():
    """The same layer in a model with others, first and last, and alone: the same choices at every step."""
    choices = []
    for names in (["0"], ["0", "2"]):
        config = config_of(order="random", target_modules=names)
        model, optimizer = start(config)
        made = []
        for step in range(20):
            train(model, optimizer, range(step, step + 1))
            outcome = optimizer.outcomes["0"]
            made.append(
                (outcome.requested, {s: (w.slots.tolist(), w.incoming.tolist()) for s, w in outcome.switches.items()})
            )
        choices.append(made)
    assert choices[0] == choices[1]
    assert sum(bool(switches) for _, switches in choices[0]) > 5


def test_every_candidate_comes_in_and_every_vector_goes_out():
    """Over a run the active vectors sweep the whole set, in cyclic order in turn."""
    model, optimizer = start(config_of(r=3, interval=3.0, freeze_steps=1), (12, 10))
    (layer,) = layers_of(model)
    incoming = {"A": [], "B": []}
    for step in range(40):
        train(model, optimizer, range(step, step + 1))
        for side, made in optimizer.outcomes[layer.name].switches.items():
            incoming[side] += made.incoming.tolist()
    for came in incoming.values():
        assert came == [i % 10 for i in range(len(came))]
        assert len(came) >= 20


def test_the_frequency_falls_over_a_run():
    model, optimizer = start(config_of(interval=4.0, decay_ratio=0.3), total_steps=60)
    done = []
    for step in range(60):
        train(model, optimizer, range(step, step + 1))
        done.append(optimizer.stats.last.switches_requested)
    assert sum(done[:20]) > 3 * sum(done[40:])
    assert optimizer.stats.total.switches_requested == sum(done)


def test_no_draw_at_all_is_made_without_switching():
    model, optimizer = start(config_of(interval=math.inf))
    optimizer.draws = None
    train(model, optimizer, 3)
    assert optimizer.outcomes == {}
    assert optimizer.stats.total.switches_requested == 0
    assert "candidates" not in side_state(optimizer, layers_of(model)[0], "A")
    assert not torch.equal(layers_of(model)[0].lora_B, start(config_of(interval=math.inf))[0][0].lora_B)
