"""AdamW for everything that is not a factor: embeddings, head, norms and biases.

What is stored wide, parameter and moments, is torch's own fused AdamW: one call for all of them. What is stored in
bfloat16 needs stochastic rounding, which torch's does not have, and goes one by one through `moving`, or together
through `kernels.ordinary`.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from switchlora.kernels.availability import use_kernels
from switchlora.moving import Key, move_
from switchlora.precision import wide_dtype
from switchlora.rules import AdamW
from switchlora.shards import local, locals_of, own_rows


def move_ordinary_(
    parameters: Sequence[Tensor],
    states: Sequence[Mapping[str, Tensor]],
    settings: Mapping[str, Any],
    keys: Sequence[Key],
    fused: bool | None = False,
) -> None:
    """One step of AdamW on parameters that have gradients, in place.

    Args:
        parameters: of any shapes and dtypes.
        states: `exp_avg`, `exp_avg_sq` and `step`, a host integer (), of each.
        settings: lr, betas, eps and weight_decay: a parameter group.
        keys: of the rounding bits of each.
        fused: see `kernels.availability.use_kernels`.
    """
    first_rows = [own_rows(parameter).start for parameter in parameters]
    parameters, states = [local(p) for p in parameters], [locals_of(state) for state in states]
    lr, betas, eps = float(settings["lr"]), settings["betas"], settings["eps"]
    rule = AdamW(betas, eps)
    decay = 1 - lr * settings["weight_decay"]
    torchs: dict[tuple[int, torch.device, torch.dtype], list[int]] = {}
    kernels: dict[tuple[object, ...], list[tuple[int, tuple[float, float]]]] = {}
    for i, (parameter, state, key) in enumerate(zip(parameters, states, keys, strict=True)):
        assert parameter.grad is not None
        step = state["step"].add_(1)
        if parameter.numel() == 0:  # of a rank that got no rows
            continue
        if parameter.dtype == state["exp_avg"].dtype == wide_dtype(parameter.dtype) == parameter.grad.dtype:
            torchs.setdefault((int(step), parameter.device, parameter.dtype), []).append(i)
        else:
            size, small = (float(c) for c in rule.coefficients(step.numpy(), lr))
            if first_rows[i] == 0 and use_kernels(fused, (parameter, state["exp_avg"], state["exp_avg_sq"])):
                kind = (parameter.device, parameter.dtype, parameter.grad.dtype, state["exp_avg"].dtype)
                kernels.setdefault(kind, []).append((i, (size, small)))
            else:
                move_(parameter, state, parameter.grad, rule, size, small, key, decay, first_row=first_rows[i])
    for together in kernels.values():
        from switchlora.kernels.ordinary import move_many_

        numbers, coefficients = zip(*together, strict=True)
        move_many_(
            [parameters[i] for i in numbers], [states[i] for i in numbers], [keys[i] for i in numbers],
            coefficients, betas, decay,
        )  # fmt: skip
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
