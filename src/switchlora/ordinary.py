"""AdamW for everything that is not a factor: embeddings, head, norms and biases.

What is stored wide, parameter and moments, is torch's own fused AdamW: one call for all of them. What is stored in
bfloat16 needs stochastic rounding, which torch's does not have, and goes one by one through `moving`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from switchlora.moving import Key, move_
from switchlora.precision import wide_dtype
from switchlora.rules import adamw_coefficients


def move_ordinary_(
    parameters: Sequence[Tensor],
    states: Sequence[Mapping[str, Tensor]],
    settings: Mapping[str, Any],
    keys: Sequence[Key],
) -> None:
    """One step of AdamW on parameters that have gradients, in place.

    Args:
        parameters: of any shapes and dtypes.
        states: `exp_avg`, `exp_avg_sq` and `step`, a host integer (), of each.
        settings: lr, betas, eps and weight_decay: a parameter group.
        keys: of the rounding bits of each.
    """
    lr, betas, eps = float(settings["lr"]), settings["betas"], settings["eps"]
    torchs: dict[tuple[int, torch.device, torch.dtype], list[int]] = {}
    for i, (parameter, state, key) in enumerate(zip(parameters, states, keys, strict=True)):
        assert parameter.grad is not None
        step = state["step"].add_(1)
        if parameter.dtype == state["exp_avg"].dtype == wide_dtype(parameter.dtype) == parameter.grad.dtype:
            torchs.setdefault((int(step), parameter.device, parameter.dtype), []).append(i)
        else:
            size, small = (float(c) for c in adamw_coefficients(step.numpy(), lr, betas, eps))
            move_(parameter, state, parameter.grad, size, small, betas, key, 1 - lr * settings["weight_decay"])
    for (step_number, device, _), members in torchs.items():
        counts = torch.full(
            (len(members),), step_number - 1.0, dtype=torch.float32, device=device
        )  # which it counts up
        adamw(
            [parameters[i] for i in members],
            [parameters[i].grad for i in members],  # type: ignore[misc]
            [states[i]["exp_avg"] for i in members],
            [states[i]["exp_avg_sq"] for i in members],
            [],
            list(counts.unbind()),
            fused=True,
            amsgrad=False,
            beta1=betas[0],
            beta2=betas[1],
            lr=lr,
            weight_decay=settings["weight_decay"],
            eps=eps,
            maximize=False,
        )
