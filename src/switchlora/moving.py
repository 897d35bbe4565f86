"""Move one parameter by a rule, whatever formats it and its moments are stored in.

Rules work in the wide format. What is stored wide is changed in place; what is stored in bfloat16 is widened,
changed, and written back with stochastic rounding, each tensor with random bits of its own (`precision`).
"""

import contextlib
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Literal

import torch
from torch import Tensor

from switchlora.precision import store_, wide_dtype
from switchlora.rules import Rule
from switchlora.transfers import Where, along

Key = Callable[[str], int]  # from a purpose ("rounding of exp_avg") to the key of its rounding bits
Turn = Literal["AB", "A", "B"]  # the factors that move in a step


@dataclasses.dataclass(frozen=True)
class OfVectors:
    """What the rule needs of every vector of a factor, broadcastable: (r, 1) for A, (1, r) for B."""

    size: Tensor  # see `rules`; 0 where the vector rests
    eps: Tensor  # eps' of `rules`
    # The numbers of a few, or None for none of them:
    no_grad: Where | None = None  # those whose gradient counts as zero
    zero_before: Where | None = None  # those whose moments are zero before the step
    zero_after: Where | None = None  # those that do not move, and whose moments are zero after it


def move_(
    parameter: Tensor,
    state: Mapping[str, Tensor],
    grad: Tensor,
    rule: Rule,
    size: Tensor | float,
    eps: Tensor | float,
    key: Key,
    decay: float = 1.0,
    first_row: int = 0,
    still: tuple[int, Where] | None = None,
    moves: bool = True,
) -> None:
    """parameter <- decay parameter + the rule's change, in place; its moments in `state` likewise.

    Args:
        parameter, grad: any shape.
        state: the rule's moments, of the same shape.
        rule: see `rules`.
        size, eps: see `rules.Rule.change`.
        key: names the rounding bits.
        decay: 1 - lr * weight_decay.
        first_row: see `precision.store_`.
        still: a dimension, and the numbers of those along it that do not change, whatever their gradients.
        moves: False: only the moments follow the gradient.
    """
    wide = wide_dtype(parameter.dtype)
    moments = [state[name].to(wide) for name in rule.moments]  # themselves where they are wide
    change = None
    if moves:
        change = rule.change(grad.to(wide), moments, size, eps)
        if still is not None:
            change[along(*still)] = 0
    else:
        rule.follow(grad.to(wide), moments)
    for name, moment in zip(rule.moments, moments, strict=True):
        if moment is not state[name]:
            store_(state[name], moment, key(f"rounding of {name}"), first_row)
    if change is None:
        return
    if parameter.dtype == wide:
        (parameter if decay == 1 else parameter.mul_(decay)).add_(change)
    else:
        store_(parameter, change.add_(parameter.to(wide), alpha=decay), key("rounding"), first_row)


@dataclasses.dataclass(frozen=True)
class Change:
    """What a step did to A and B of a layer, as `weight_update` needs it: views of the operands of one product.

    Where only A moves, B and dA are what it needs, and the others stay as they are; where only B does, dB and A.
    """

    dB: Tensor  # (m, r)
    B: Tensor  # (m, r) before the step
    A: Tensor  # (r, n) after it
    dA: Tensor  # (r, n)


def move_factors_(
    A: Tensor,
    B: Tensor,
    states: Mapping[str, Mapping[str, Tensor]],
    coefficients: Mapping[str, OfVectors],
    rules: Mapping[str, Rule],
    keys: Mapping[str, Key],
    change: Change,
    turn: Turn = "AB",
    first_rows: Mapping[str, int] | None = None,
) -> None:
    """One step of both factors of a layer, and what `update_weight_` needs of it.

    A vector that rests does not move and counts as one without gradient; one that was reset has no moments. Both are
    few in a step and set to zero by number, as a rule after the pass over all of them, when they are in the cache.

    Args:
        A: (r, n), B: (m, r), with their gradients.
        states: of side "A" and "B".
        coefficients, rules, keys: of each side.
        change: is filled in.
        turn: the factors that move; the moments of the other one follow its gradient.
        first_rows: of each side, see `precision.store_`; None: 0.
    """
    first_rows = first_rows or {"A": 0, "B": 0}
    if "A" in turn:
        change.dA.copy_(A)
    B_before = change.B if "A" in turn else change.dB
    B_before.copy_(B)
    for letter, factor in (("A", A), ("B", B)):
        vectors = coefficients[letter]
        assert factor.grad is not None
        which = 0 if letter == "A" else 1
        moments = [states[letter][name] for name in rules[letter].moments]
        _clear_(moments, which, vectors.zero_before)
        with _zero_for_now(factor.grad, which, vectors.no_grad):
            move_(
                factor, states[letter], factor.grad, rules[letter], vectors.size, vectors.eps, keys[letter],
                first_row=first_rows[letter],
                still=None if vectors.zero_after is None else (which, vectors.zero_after), moves=letter in turn,
            )  # fmt: skip
        _clear_(moments, which, vectors.zero_after)
    if "A" in turn:
        torch.sub(A, change.dA, out=change.dA)  # as stored, after its own rounding
    if "B" in turn:
        change.A.copy_(A)
        torch.sub(B, B_before, out=change.dB)


def _clear_(moments: Iterable[Tensor], which: int, numbers: Where | None) -> None:
    if numbers is not None:
        for moment in moments:
            moment[along(which, numbers)] = 0


@contextlib.contextmanager
def _zero_for_now(grad: Tensor, which: int, numbers: Where | None) -> Iterator[None]:
    """Some vectors along dimension `which` are zero inside, and what they were after: few to put aside."""
    if numbers is None:
        yield
        return
    few = along(which, numbers)
    aside = grad[few].clone()
    grad[few] = 0
    try:
        yield
    finally:
        grad[few] = aside
