"""Refuse second derivatives through a layer, however they are asked for.

W knows nothing of A and B, so a second derivative would miss its dependence on them. torch's `once_differentiable`
answers some of them with zeros (`functional.hessian`, a `torch.func.grad` of another). Here, what a backward pass
hands on is made a function of all that it depends on, and that function cannot be differentiated.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from switchlora.errors import UserError


def differentiable_once(
    results: Sequence[Tensor | None], depends_on: Sequence[Tensor | None]
) -> tuple[Tensor | None, ...]:
    """The same results, for a caller who records them; a `UserError` when they are differentiated."""
    once: tuple[Tensor | None, ...] = _Once.apply(len(results), *results, *depends_on)  # type: ignore[no-untyped-call]
    return once


class _Once(torch.autograd.Function):
    """See the head of this file."""

    generate_vmap_rule = True

    @staticmethod
    def forward(num_results: int, *tensors: Tensor | None) -> tuple[Tensor | None, ...]:
        return tuple(None if tensor is None else tensor.clone() for tensor in tensors[:num_results])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Any, ...]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        raise UserError(
            "a SwitchLoRA layer can be differentiated once only, and this asks for second derivatives; take them of "
            "the dense model, switchlora.to_dense(model)"
        )
