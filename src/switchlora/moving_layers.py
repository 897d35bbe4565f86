"""Move the factors of some layers of one shape, and W with them: 6 and 7 of `docs/algorithm.md`, layer by layer.

This is the eager code, the same on every device. `kernels.moving_layers` does the same in a few launches.
"""

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor

from switchlora.layer import SwitchLoraLinear
from switchlora.moving import Key, OfVectors, Turn, move_factors_
from switchlora.precision import wide_dtype
from switchlora.rules import Rule
from switchlora.transfers import Where, by_layer
from switchlora.weight_update import change_in, operands, product_buffers, update_weight_

State = Mapping[str, Tensor]
Flags = np.ndarray[tuple[int, int], np.dtype[np.bool_]]
KeyOf = Callable[[str, str], Key]  # from a layer's name and " of A", " of B" or "" to the keys of its rounding bits


@dataclasses.dataclass(frozen=True)
class Coefficients:
    """What the rule needs of every vector of one side of L layers, in its step."""

    table: Tensor  # (L, 4, r): size and eps' of `rules`; whether each is live (0: it rests); is kept (0: it was reset)
    # Of each of L layers, those that this rank has: see `moving.OfVectors`.
    no_grad: Sequence[Where | None]
    zero_before: Sequence[Where | None]
    zero_after: Sequence[Where | None]

    def of_layer(self, number: int, letter: str, own: slice = slice(None)) -> OfVectors:
        """Of one factor, or of some of its vectors."""
        table = self.table[number, :2, own]
        size, eps = table.reshape((2, -1, 1) if letter == "A" else (2, 1, -1)).unbind(0)
        return OfVectors(size, eps, self.no_grad[number], self.zero_before[number], self.zero_after[number])


def turn_of(step: int, alternate: bool) -> Turn:
    """The factors that move in a step: both, or A and B in turn."""
    if not alternate:
        return "AB"
    return "B" if step % 2 else "A"


def numbers_of(marked: Flags, device: torch.device) -> list[Where | None]:
    """The numbers of the vectors that are marked, of each of L layers; None where none is. One transfer for all.

    Args:
        marked: (L, vectors).
    """
    found: list[Where | None] = [None] * len(marked)
    layers, vectors = np.nonzero(marked)
    for layer, _, numbers in by_layer(layers, vectors, device):
        found[layer] = numbers
    return found


def move_layers_(
    layers: Sequence[SwitchLoraLinear],
    states: Mapping[str, Sequence[State]],
    coefficients: Mapping[str, Coefficients],
    rule: Rule,
    decay: float,
    key_of: KeyOf,
    turn: Turn = "AB",
) -> None:
    """One step of the factors of L layers that have gradients, and of their weights.

    Args:
        layers: of one shape, device and dtypes.
        states: of side "A" and "B", one a layer.
        coefficients: of each side.
        rule: of the factors.
        decay: 1 - lr * weight_decay, of W.
        key_of: names the rounding bits.
        turn: the factors that move.
    """
    first = layers[0]
    (m, n), dtype = first.weight.shape, wide_dtype(first.lora_A.dtype)
    left, right = product_buffers(m, n, first.r, dtype, first.weight.device)
    rules, change = {"A": rule, "B": rule}, change_in(left, right)
    for i, layer in enumerate(layers):
        of_layer = {letter: coefficients[letter].of_layer(i, letter) for letter in ("A", "B")}
        keys = {letter: key_of(layer.name, f" of {letter}") for letter in ("A", "B")}
        of_sides = {letter: states[letter][i] for letter in ("A", "B")}
        move_factors_(layer.lora_A, layer.lora_B, of_sides, of_layer, rules, keys, change, turn)
        update_weight_(layer.weight, *operands(left, right, turn), layer.scaling, decay, key_of(layer.name, ""))
