"""Counts of what was asked for and what was done."""

import dataclasses

import torch

from switchlora.stats import SwitchCounts, count
from switchlora.switching import Outcome, Switch
from tests.numerics.cases import config_of, start, train


def outcome(requested: int, done: int, sides: str = "AB") -> Outcome:
    slots = torch.arange(done)
    return Outcome(requested, {side: Switch(slots, slots) for side in sides} if done else {})


def test_counts_are_of_vectors_over_layers_and_sides():
    outcomes = [outcome(3, 2), outcome(1, 0), outcome(0, 0), outcome(5, 5)]
    assert count(outcomes, config_of()) == SwitchCounts(18, 14, 14, 14)
    assert count(outcomes, config_of(reset=False)) == SwitchCounts(18, 14, 14, 0)
    assert count([outcome(3, 2, "A")], config_of(init_lora_weights="lora")) == SwitchCounts(3, 2, 2, 2)
    assert count([], config_of()) == SwitchCounts(0, 0, 0, 0)


def test_totals_are_the_sum_of_the_steps_and_are_saved():
    model, optimizer = start(config_of(r=5, interval=4.0))
    total = SwitchCounts()
    for step in range(25):
        train(model, optimizer, range(step, step + 1))
        for field in dataclasses.fields(SwitchCounts):
            last = getattr(optimizer.stats.last, field.name)
            setattr(total, field.name, getattr(total, field.name) + last)
    assert optimizer.stats.total == total
    assert 0 < total.switches_done < total.switches_requested  # some runs were cut, and the counts say so
    fresh_model, fresh = start(config_of(r=5, interval=4.0))
    fresh_model.load_state_dict(model.state_dict())
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh.stats.total == total
