"""THE ALGORITHM: which vectors of A and B are exchanged for others, and what rests afterwards.

Only the r pairs (a_k, b_k) of a layer train, so W can only move in the span of a few directions. SwitchLoRA
(arXiv 2406.06564) therefore exchanges some of the vectors at every step, so that over a run the directions span
the whole space. One step of one layer, after the backward pass and before the optimizer's rule:

  1. how many   k is r / interval_t on average, and interval_t grows as training goes on       (num_requested)
  2. which      k slots of A from A's cursor on, k slots of B from B's; a run of slots is cut    (num_switchable)
                before one that rests or whose partner is being switched; cursors start r // 2 apart
  3. for what   the next k candidates in cyclic order, or k drawn at random from the idle ones     (next_exchange)
  4. exchange   the trained vector goes back among the candidates; W = W_base + s B A is stored    (exchange)
                whole, so W, and with it the function, stays as it is, bit for bit
  5. reset and  dL/db_k depends on a_k alone. When a_k is switched, b_k's moments are stale and      (rest)
     freeze     so is its gradient: its step count returns to 0, for which the rule takes its
                moments to be zero, and b_k rests for N steps, this one included. a_k's own
                gradient depends on b_k alone: it is exact, and a_k moves at once.
                The other way round for B.

All layers of one shape go together: the choice is integers on the host (numpy), of shape (L, r) or (L,) for L layers,
and what is chosen is a list of K vectors, each named by its layer and slot. `Side` shows B as its transpose, so that
vectors are rows on both sides; `Vectors` moves the numbers themselves, and nothing waits for the device.
"""

import dataclasses
import math
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from switchlora.config import SwitchLoraConfig
from switchlora.draws import Draws
from switchlora.transfers import Ints


@dataclasses.dataclass(frozen=True)
class Chosen:
    """K vectors of one side, ordered by layer: where they are (layer and slot) and who replaces them."""

    layers: Ints  # (K,) of the L layers
    slots: Ints  # (K,)
    outgoing: Ints  # (K,) which candidates they are
    incoming: Ints  # (K,) which candidates come in


@dataclasses.dataclass(frozen=True)
class Plan:
    """What L layers switch in one step."""

    requested: Ints  # (L,) vectors per side that are asked for
    num: Ints  # (L,) that go
    chosen: dict[str, Chosen]  # by side; no side where nobody goes


class Vectors(Protocol):
    """The numbers of one side of L layers: active vectors and candidates."""

    def exchange(self, chosen: Chosen, step: int) -> None:
        """Active vectors go to their places among the candidates, candidates become active."""


@dataclasses.dataclass
class Side:
    """A, or B transposed, of L layers of one shape; the integers are changed in place."""

    letter: str  # "A" or "B"
    vectors: Vectors
    step: Ints  # (L, r) the rule's steps since the last reset; 0: it takes the moments to be zero
    frozen: Ints  # (L, r) steps for which the vector still rests
    slots: Ints  # (L, r) the number of each active vector among the candidates
    cursor: Ints  # (L,) the slot that is switched next
    num_candidates: int  # c


@dataclasses.dataclass(frozen=True)
class Switch:
    """What was done to one side of a layer: k slots, and the candidates that came in (int64, host)."""

    slots: Tensor
    incoming: Tensor


@dataclasses.dataclass(frozen=True)
class Outcome:
    """One layer, one step: the number of vectors per side that was asked for, and the exchanges made."""

    requested: int = 0
    switches: dict[str, Switch] = dataclasses.field(default_factory=dict)


def interval_at(step: int, config: SwitchLoraConfig, total_steps: int) -> float:
    """Expected number of steps between two switches of one vector, at optimizer step `step` (from 0)."""
    if config.decay_ratio is None:
        return config.interval
    frequency = math.pow(0.3, (step + 1) / (config.decay_ratio * total_steps))
    return config.interval / max(frequency, 1e-8)


def num_requested(r: int, interval: float, uniform: float) -> int:
    """Vectors to switch per side: r / interval, rounded up with the probability of the fraction."""
    expected = r / interval
    return math.floor(expected) + (uniform < expected - math.floor(expected))


def num_switchable(A: Side, B: Side, *, both: bool) -> Ints:
    """(L,) the longest run of slots, from the cursors on, that may be switched now on either side alike."""
    idle = A.num_candidates - A.slots.shape[1]
    if not both:
        return np.minimum(free_run(A, None), idle)
    return np.minimum(np.minimum(free_run(A, B.cursor), free_run(B, A.cursor)), idle)


def free_run(side: Side, partner_cursor: Ints | None) -> Ints:
    """(L,) slots from the cursor up to one that rests, or to where the partners of the other side's run begin."""
    num_layers, r = side.frozen.shape
    every = np.arange(num_layers)
    blocked = np.ones((num_layers, r + 1), dtype=bool)  # the last one ends the run of those that are not blocked
    blocked[:, :r] = side.frozen[every[:, None], (side.cursor[:, None] + np.arange(r)) % r] > 0
    if partner_cursor is not None:
        blocked[every, (partner_cursor - side.cursor) % r] = True
    run: Ints = blocked.argmax(axis=1)
    return run


def next_slots(side: Side, num: Ints) -> tuple[Ints, Ints, Ints]:
    """The num[i] slots of layer i from its cursor on, wrapping round: layers, slots, and 0, 1, .. within each layer."""
    layers = np.repeat(np.arange(len(num)), num)
    within = np.arange(len(layers)) - (num.cumsum() - num)[layers]
    return layers, (side.cursor[layers] + within) % side.slots.shape[1], within


def random_candidates(side: Side, num: Ints, draws: Draws, names: Sequence[str], step: int) -> Ints:
    """(K,) idle candidates, num[i] of layer i."""
    drawn = []
    for i in num.nonzero()[0].tolist():
        is_idle = np.ones(side.num_candidates, dtype=bool)
        is_idle[side.slots[i]] = False
        idle = torch.from_numpy(is_idle.nonzero()[0])
        drawn.append(draws.choose(names[i], side.letter, step, idle, int(num[i])).numpy())
    return np.concatenate(drawn)


def rest(counterpart: Side, chosen: Chosen, config: SwitchLoraConfig) -> None:
    """Reset the optimizer state of the partners of switched vectors, and freeze them."""
    counterpart.frozen[chosen.layers, chosen.slots] = config.freeze_steps
    if config.reset:
        counterpart.step[chosen.layers, chosen.slots] = 0


def next_exchange(
    side: Side, num: Ints, config: SwitchLoraConfig, draws: Draws, names: Sequence[str], step: int
) -> Chosen:
    """The vectors of one side that go, and who comes in: those after the last one that did, or random idle ones."""
    layers, slots, within = next_slots(side, num)
    if config.order == "cyclic":
        last_in = side.slots[layers, side.cursor[layers] - 1]
        incoming = (last_in + 1 + within) % side.num_candidates
    else:
        incoming = random_candidates(side, num, draws, names, step)
    return Chosen(layers, slots, side.slots[layers, slots], incoming)


def plan(
    A: Side, B: Side, config: SwitchLoraConfig, draws: Draws, names: Sequence[str], step: int, interval: float
) -> Plan:
    """Choose for L layers and a step. Changes nothing, and what one side exchanges changes no choice of the other."""
    requested = np.array([num_requested(A.slots.shape[1], interval, draws.uniform(name, step)) for name in names])
    num = np.minimum(requested, num_switchable(A, B, both=config.switches_B)) if requested.any() else requested
    sides = () if not num.any() else (A, B) if config.switches_B else (A,)
    return Plan(requested, num, {side.letter: next_exchange(side, num, config, draws, names, step) for side in sides})


def switch(A: Side, B: Side, planned: Plan, config: SwitchLoraConfig, step: int) -> list[Outcome]:
    """Switch vectors of L layers in one step: A's, then B's. W is not an argument: it does not change.

    Args:
        A, B: the two sides of the layers; changed in place.
        planned, config: from `plan` for this step of the optimizer, and the rules.

    Returns:
        one outcome a layer.
    """
    outcomes = [Outcome(k) for k in planned.requested.tolist()]
    ends = planned.num.cumsum().tolist()
    for side, counterpart in ((A, B), (B, A)):
        if (chosen := planned.chosen.get(side.letter)) is None:
            continue
        side.vectors.exchange(chosen, step)
        side.slots[chosen.layers, chosen.slots] = chosen.incoming
        side.cursor[:] = (side.cursor + planned.num) % side.slots.shape[1]
        rest(counterpart, chosen, config)
        slots, incoming = torch.tensor(chosen.slots), torch.tensor(chosen.incoming)
        for outcome, start, end in zip(outcomes, [0, *ends], ends, strict=False):
            if end > start:
                outcome.switches[side.letter] = Switch(slots[start:end], incoming[start:end])
    return outcomes
