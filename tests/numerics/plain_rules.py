"""The official rules of one step, event by event, in plain Python on lists: slow, and easy to check against the page.

Written from tests/data/golden/README.md, "Order of events", and the rules of choice, without a look at switching.py.
Vectors are any Python objects here. Two things are ours: no more vectors than idle candidates, and random candidates
are among the idle ones.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any


@dataclasses.dataclass
class PlainSide:
    vectors: list[Any]
    candidates: list[Any]
    slots: list[int]
    cursor: int
    frozen: list[int]
    step: list[int]
    moments: list[float]


@dataclasses.dataclass
class PlainLayer:
    r: int
    c: int
    A: PlainSide
    B: PlainSide

    @classmethod
    def at_start(cls, r: int, c: int, label: Callable[[str, int], Any]) -> "PlainLayer":
        """sel_A = c-r..c-1, sel_B the same rotated by r // 2; cursors 0 and r // 2."""
        slots_A = list(range(c - r, c))
        slots_B = [slots_A[i - r // 2] for i in range(r)]
        sides = []
        for letter, slots, cursor in (("A", slots_A, 0), ("B", slots_B, r // 2)):
            candidates = [label(letter, i) for i in range(c)]
            vectors = [candidates[i] for i in slots]
            sides.append(PlainSide(vectors, candidates, slots, cursor, [0] * r, [0] * r, [0.0] * r))
        return cls(r, c, *sides)


def plain_number(r: int, interval: float, u: float) -> int:
    q = r / interval
    return math.floor(q) + (1 if u < q - math.floor(q) else 0)


def plain_switch(
    layer: PlainLayer, *, u: float, interval: float, N: int, chosen: dict[str, list[int]] | None, reset: bool = True
) -> tuple[int, int]:
    """Events 3a to 3d. `chosen`: the candidates of random order, None for ring order. Returns (drawn, done)."""
    A, B, r, c = layer.A, layer.B, layer.r, layer.c
    drawn = plain_number(r, interval, u)
    num_frozen_A, num_frozen_B = sum(f > 0 for f in A.frozen), sum(f > 0 for f in B.frozen)
    k = min(
        drawn,
        (A.cursor - num_frozen_A - B.cursor) % r,
        (B.cursor - num_frozen_B - A.cursor) % r,
        c - r,
    )
    if k == 0:
        return drawn, 0
    slots = {"A": [(A.cursor + j) % r for j in range(k)], "B": [(B.cursor + j) % r for j in range(k)]}
    A.cursor, B.cursor = (A.cursor + k) % r, (B.cursor + k) % r
    for letter, side, counterpart in (("A", A, B), ("B", B, A)):
        first = slots[letter][0]
        ring = [(side.slots[first - 1] + 1 + j) % c for j in range(k)]
        for slot, incoming in zip(slots[letter], ring if chosen is None else chosen[letter], strict=True):
            assert incoming not in side.slots, "a live candidate came in: the function would jump"
            side.candidates[side.slots[slot]] = side.vectors[slot]
            side.vectors[slot] = side.candidates[incoming]
            side.slots[slot] = incoming
            counterpart.frozen[slot] = N
            if reset:
                counterpart.step[slot] = 0
                counterpart.moments[slot] = 0.0
    return drawn, k


def plain_rule(layer: PlainLayer) -> None:
    """Event 3e and the optimizer's step, as far as counters go: they run on, and moments become non-zero."""
    for side in (layer.A, layer.B):
        side.step = [step + 1 for step in side.step]
        side.moments = [moment if frozen else 1.0 for moment, frozen in zip(side.moments, side.frozen, strict=True)]
        side.frozen = [max(frozen - 1, 0) for frozen in side.frozen]
