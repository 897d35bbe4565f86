"""THE ALGORITHM: which vectors of A and B are exchanged for others, and what rests afterwards.

Only the r pairs (a_k, b_k) of a layer train, so W can only move in the span of a few directions. SwitchLoRA
(arXiv 2406.06564) therefore exchanges some of the vectors at every step, so that over a run the directions span
the whole space. One step of one layer, after the backward pass and before the optimizer's rule:

  1. how many   k is r / interval_t on average, and interval_t grows as training goes on       (num_requested)
  2. which      k slots of A from A's cursor on, k slots of B from B's; a run of slots is cut    (num_switchable)
                before one that rests or whose partner is being switched; cursors start r // 2 apart
  3. for what   the next k candidates in cyclic order, or k drawn at random from the idle ones   (next_candidates)
  4. exchange   the trained vector goes back among the candidates; W = W_base + s B A is stored    (switch)
                whole, so W, and with it the function, stays as it is, bit for bit
  5. reset and  dL/db_k depends on a_k alone. When a_k is switched, b_k's moments are stale and      (rest)
     freeze     so is its gradient: the moments are cleared and b_k rests for N steps, this one
                included. a_k's own gradient depends on b_k alone: it is exact, and a_k moves at once.
                The other way round for B.

Everything here is host-side integers and a handful of indexed tensor operations per layer, however many vectors
go; nothing waits for the device. `Side` shows B as its transpose, so that vectors are rows on both sides.
"""

import dataclasses
import math

import torch
from torch import Tensor

from switchlora.candidates import Candidates
from switchlora.config import SwitchLoraConfig
from switchlora.draws import Draws


@dataclasses.dataclass
class Side:
    """A, or B transposed, of one layer: views of its vectors and of their state. l = n for A, m for B."""

    letter: str  # "A" or "B"
    vectors: Tensor  # (r, l), the factor itself
    moments: tuple[Tensor, ...]  # each (r, l), cleared by a reset
    step: Tensor  # (r,) int, host: the rule's steps since the last reset
    frozen: Tensor  # (r,) int, host: steps for which the vector still rests
    slots: Tensor  # (r,) int, host: the number of each active vector among the candidates
    cursor: Tensor  # () int, host: the slot that is switched next
    candidates: Candidates | None  # None: this side is never switched
    num_candidates: int  # c


@dataclasses.dataclass(frozen=True)
class Switch:
    """What was done to one side: k slots, and the candidates that came in (int64, host)."""

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


def num_switchable(A: Side, B: Side, *, both: bool) -> int:
    """The longest run of slots, from the cursors on, that may be switched now on either side alike."""
    idle = A.num_candidates - len(A.slots)
    if not both:
        return min(idle, free_run(A, partner_cursor=None))
    return min(idle, free_run(A, B.cursor), free_run(B, A.cursor))


def free_run(side: Side, partner_cursor: Tensor | None) -> int:
    """Slots from the cursor up to one that rests, or to where the partners of the other side's run begin."""
    blocked = side.frozen > 0
    if partner_cursor is not None:
        blocked[partner_cursor] = True
    until_blocked = blocked.roll(-int(side.cursor)).nonzero()
    return int(until_blocked[0]) if len(until_blocked) else len(blocked)


def next_slots(side: Side, num: int) -> Tensor:
    """The `num` slots from the cursor on, wrapping round."""
    return (side.cursor + torch.arange(num)) % len(side.slots)


def next_candidates(side: Side, slots: Tensor, config: SwitchLoraConfig, draws: Draws, name: str, step: int) -> Tensor:
    """The candidates that come in: those after the last one that did, or random idle ones."""
    if config.order == "cyclic":
        last_in = side.slots[slots[0] - 1]
        return (last_in + 1 + torch.arange(len(slots))) % side.num_candidates
    idle = torch.ones(side.num_candidates, dtype=torch.bool)
    idle[side.slots] = False
    return draws.choose(name, side.letter, step, idle.nonzero().view(-1), len(slots))


def rest(counterpart: Side, slots: Tensor, config: SwitchLoraConfig) -> None:
    """Clear the optimizer state of the partners of switched vectors, and freeze them."""
    counterpart.frozen[slots] = config.freeze_steps
    if config.reset:
        counterpart.step[slots] = 0
        device_slots = on_device(slots, counterpart.vectors)
        for moment in counterpart.moments:
            moment[device_slots] = 0


def on_device(slots: Tensor, vectors: Tensor) -> Tensor:
    """The same contiguous run of slots as an index on the device of `vectors`, computed there."""
    if vectors.device == slots.device:
        return slots
    first = int(slots[0])
    return torch.arange(first, first + len(slots), device=vectors.device) % len(vectors)


def switch(A: Side, B: Side, config: SwitchLoraConfig, draws: Draws, name: str, step: int, interval: float) -> Outcome:
    """Switch vectors of one layer in one step: A's, then B's. W is not an argument: it does not change.

    Args:
        A, B: the two sides of the layer; changed in place.
        config, draws: the rules, and where their chances come from.
        name: of the layer.
        step: of the optimizer, from 0.
        interval: from `interval_at`.
    """
    requested = num_requested(len(A.slots), interval, draws.uniform(name, step))
    if requested == 0:
        return Outcome()
    num = min(requested, num_switchable(A, B, both=config.switches_B))
    if num == 0:
        return Outcome(requested)
    switches = {}
    for side, counterpart in ((A, B), (B, A)) if config.switches_B else ((A, B),):
        slots = next_slots(side, num)
        assert side.candidates is not None
        incoming = next_candidates(side, slots, config, draws, name, step)
        side.candidates.swap(side.vectors, on_device(slots, side.vectors), side.slots[slots], incoming, step)
        side.slots[slots] = incoming
        side.cursor.copy_((side.cursor + num) % len(side.slots))
        rest(counterpart, slots, config)
        switches[side.letter] = Switch(slots, incoming)
    return Outcome(requested, switches)
