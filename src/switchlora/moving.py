"""Move one parameter by a rule, whatever formats it and its moments are stored in.

Rules work in the wide format. What is stored wide is changed in place; what is stored in bfloat16 is widened,
changed, and written back with stochastic rounding, each tensor with random bits of its own (`precision`).
"""

import dataclasses
from collections.abc import Callable, Mapping

import torch
from torch import Tensor

from switchlora.precision import store_, wide_dtype
from switchlora.rules import Rule

Key = Callable[[str], int]  # from a purpose ("rounding of exp_avg") to the key of its rounding bits


@dataclasses.dataclass(frozen=True)
class OfVectors:
    """What the rule needs of every vector of a factor, broadcastable: (r, 1) for A, (1, r) for B."""

    size: Tensor  # see `rules`; 0 where the vector rests
    eps: Tensor  # eps' of `rules`
    live: Tensor | None  # 0 for each vector that rests, 1 for each other one; None: none rests
    kept: Tensor | None  # 0 for each vector that was reset in this step, 1 for each other one; None: none was


def move_(
    parameter: Tensor,
    state: Mapping[str, Tensor],
    grad: Tensor,
    rule: Rule,
    size: Tensor | float,
    eps: Tensor | float,
    key: Key,
    decay: float = 1.0,
    kept: Tensor | None = None,
) -> None:
    """parameter <- decay parameter + the rule's change, in place; its moments in `state` likewise.

    Args:
        parameter, grad: any shape.
        state: the rule's moments, of the same shape.
        rule: see `rules`.
        size, eps, kept: see `rules.Rule.change`.
        key: names the rounding bits.
        decay: 1 - lr * weight_decay.
    """
    wide = wide_dtype(parameter.dtype)
    moments = [state[name].to(wide) for name in rule.moments]  # themselves where they are wide
    change = rule.change(grad.to(wide), moments, size, eps, kept)
    for name, moment in zip(rule.moments, moments, strict=True):
        if moment is not state[name]:
            store_(state[name], moment, key(f"rounding of {name}"))
    if parameter.dtype == wide:
        (parameter if decay == 1 else parameter.mul_(decay)).add_(change)
    else:
        store_(parameter, change.add_(parameter.to(wide), alpha=decay), key("rounding"))


def move_factors_(
    A: Tensor,
    B: Tensor,
    states: Mapping[str, Mapping[str, Tensor]],
    coefficients: Mapping[str, OfVectors],
    rule: Rule,
    keys: Mapping[str, Key],
    left: Tensor,
    right: Tensor,
) -> None:
    """One step of both factors of a layer, and what `update_weight_` needs of it. A vector that rests has no gradient.

    Args:
        A: (r, n), B: (m, r), with their gradients.
        states: of side "A" and "B".
        coefficients: of each side.
        rule: of both.
        keys: of each side.
        left: (m, 2r), gets (dB, B before the step).
        right: (2r, n), gets (A after the step, dA).
    """
    r = A.shape[0]
    dB, B_before = left[:, :r], left[:, r:]
    A_after, dA = right[:r], right[r:]
    dA.copy_(A)
    B_before.copy_(B)
    for letter, factor in (("A", A), ("B", B)):
        vectors = coefficients[letter]
        assert factor.grad is not None
        grad = factor.grad if vectors.live is None else factor.grad.to(vectors.live.dtype) * vectors.live
        move_(factor, states[letter], grad, rule, vectors.size, vectors.eps, keys[letter], kept=vectors.kept)
    A_after.copy_(A)
    torch.sub(A_after, dA, out=dA)  # as stored, after its own rounding
    torch.sub(B, B_before, out=dB)
