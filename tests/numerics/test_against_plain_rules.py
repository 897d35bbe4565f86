"""switching.switch, all indexed tensors, against the official rules written as plain loops (plain_rules.py)."""

import hypothesis
import hypothesis.strategies as st
import numpy as np
import pytest
import torch
from torch import Tensor

from switchlora import SwitchLoraConfig
from switchlora.candidates import Pools
from switchlora.draws import SeededDraws
from switchlora.exchange import DeviceVectors
from switchlora.initialisation import initial_slots
from switchlora.switching import Side, plan, switch
from tests.numerics.plain_rules import PlainLayer, PlainSide, plain_rule, plain_switch

LENGTH = {"A": 3, "B": 2}  # of the vectors; their entries tell them apart


class NotedDraws(SeededDraws):
    """The draws of a run, noted."""

    def __init__(self, seed: int) -> None:
        super().__init__(seed)
        self.chosen: dict[str, list[int]] = {}

    def choose(self, name: str, side: str, step: int, idle: Tensor, num: int) -> Tensor:
        chosen = super().choose(name, side, step, idle, num)
        self.chosen[side] = chosen.tolist()
        return chosen


def side_at_start(letter: str, r: int, c: int) -> Side:
    table = torch.stack([torch.full((LENGTH[letter],), float(label(letter, i))) for i in range(c)])
    slots = initial_slots(c, c, r)[letter]
    vectors = DeviceVectors([table[slots].clone()], Pools([table], torch.device("cpu")), first=0, fused=False)
    return Side(
        letter, vectors, np.zeros((1, r), dtype=np.int32), np.zeros((1, r), dtype=np.int32), slots.numpy()[None].copy(),
        np.array([0 if letter == "A" else r // 2]), c,
    )  # fmt: skip


def label(letter: str, index: int) -> int:
    return index + (1000 if letter == "B" else 0)


def rule(side: Side) -> None:
    side.step += 1
    side.frozen[side.frozen > 0] -= 1
    # training moves them; a copy that went stale would show
    side.vectors.factors[0] += 10_000 * torch.from_numpy(side.frozen[0] == 0)[:, None]


def plain_training(side: PlainSide) -> None:
    side.vectors = [v + 10_000 * (f == 0) for v, f in zip(side.vectors, side.frozen, strict=True)]


def assert_equal(ours: Side, plain: PlainSide) -> None:
    assert ours.slots[0].tolist() == plain.slots
    assert int(ours.cursor[0]) == plain.cursor
    assert ours.frozen[0].tolist() == plain.frozen
    assert ours.step[0].tolist() == plain.step  # 0: the rule takes the moments to be zero (test_adamw)
    for values, expected in (
        (ours.vectors.factors[0], plain.vectors),
        (ours.vectors.candidates.tensors[0], plain.candidates),
    ):
        assert torch.equal(values, torch.tensor(expected, dtype=torch.float32)[:, None].expand_as(values))


def run(r: int, c: int, interval: float, N: int, order: str, reset: bool, seed: int, num_steps: int) -> int:
    """Both, step by step, in full agreement; returns the number of vectors switched."""
    config = SwitchLoraConfig(
        r=r, interval=interval, freeze_steps=N, order=order, reset=reset, decay_ratio=None, seed=seed
    )
    draws, num_done = NotedDraws(seed), 0
    A, B = side_at_start("A", r, c), side_at_start("B", r, c)
    plain = PlainLayer.at_start(r, c, label)
    for step in range(num_steps):
        draws.chosen = {}
        planned = plan(A, B, config, draws, ["layer"], step, interval)
        (outcome,) = switch(A, B, planned, config, step)
        u = draws.uniform("layer", step)
        chosen = draws.chosen if order == "random" else None
        drawn, done = plain_switch(plain, u=u, interval=interval, N=N, chosen=chosen, reset=reset)
        assert outcome.requested == drawn
        made = {side: len(exchange.slots) for side, exchange in outcome.switches.items()}
        assert made == ({"A": done, "B": done} if done else {})
        num_done += done
        assert_equal(A, plain.A)
        assert_equal(B, plain.B)
        rule(A)
        rule(B)
        plain_rule(plain)
        plain_training(plain.A)
        plain_training(plain.B)
        assert_equal(A, plain.A)
        assert_equal(B, plain.B)
    return num_done


@hypothesis.given(
    r=st.integers(2, 17), idle=st.integers(1, 40), interval=st.floats(0.2, 30), N=st.integers(0, 7),
    order=st.sampled_from(["cyclic", "random"]), reset=st.booleans(), seed=st.integers(0, 2**63 - 1),
)  # fmt: skip
@hypothesis.settings(max_examples=250)
def test_every_state_of_every_step_is_that_of_the_plain_rules(r, idle, interval, N, order, reset, seed):
    run(r, r + idle, max(interval, 2.0 * N), N, order, reset, seed, num_steps=25)


@pytest.mark.parametrize("order", ["cyclic", "random"])
@pytest.mark.parametrize(
    ("r", "c", "interval", "N"),
    [
        (8, 16, 0.5, 0),  # 16 requested of 8
        (9, 40, 1.0, 0),  # odd r: the runs meet first on one side
        (3, 4, 1.0, 0),  # one idle candidate
        (2, 64, 2.0, 1),
        (64, 100, 10.0, 5),  # at the limit interval = 2 N
        (33, 34, 4.0, 2),
    ],
)
def test_large_numbers_and_tight_rings(r, c, interval, N, order):
    assert run(r, c, interval, N, order, True, seed=1, num_steps=120) >= 40


def test_at_most_half_the_slots_are_switched_in_n_steps():
    """The cap of the official code, seen from outside: throughput is limited, and the excess is counted."""
    r, N = 10, 5
    config = SwitchLoraConfig(r=r, interval=2 * N, freeze_steps=N, decay_ratio=None)
    A, B, draws = side_at_start("A", r, 64), side_at_start("B", r, 64), SeededDraws(0)
    done = []
    for step in range(60):
        planned = plan(A, B, config, draws, ["layer"], step, 1.0)  # ten times what the configuration allows
        (outcome,) = switch(A, B, planned, config, step)
        assert outcome.requested == r
        done.append(len(outcome.switches["A"].slots) if outcome.switches else 0)
        rule(A)
        rule(B)
    assert max(sum(done[i : i + N]) for i in range(60 - N)) == r // 2
