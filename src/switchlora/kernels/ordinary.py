"""AdamW on ordinary parameters of which something is stored in bfloat16, by one launch: `moving.move_`, for many.

Each parameter is cut into blocks, and a program finds the parameter its block belongs to.
"""

from collections.abc import Mapping, Sequence

import numpy as np
from torch import Tensor

from switchlora.kernels.tables import (
    BLOCK,
    aligned,
    as_table,
    current_device,
    gradient,
    num_blocks,
    parameter_fields,
    triton_dtype,
)
from switchlora.moving import Key
from switchlora.transfers import on_device


def move_many_(
    parameters: Sequence[Tensor],
    states: Sequence[Mapping[str, Tensor]],
    keys: Sequence[Key],
    coefficients: Sequence[tuple[float, float]],
    betas: tuple[float, float],
    decay: float,
) -> None:
    """One step of AdamW on parameters that have gradients, in place.

    Args:
        parameters: of any shapes, on one device, of one dtype, as are their gradients and their moments.
        states: moments of each.
        keys: of the rounding bits of each.
        coefficients: size and eps' of each (see `rules.AdamW`).
        betas: of AdamW.
        decay: 1 - lr * weight_decay.
    """
    from switchlora.kernels.jit.ordinary import ordinary_step

    grads = [gradient(parameter) for parameter in parameters]
    rows, num = [], 0
    for parameter, grad, state, key in zip(parameters, grads, states, keys, strict=True):
        height = parameter.shape[0] if parameter.dim() else 1
        fields = parameter_fields(parameter, grad, state, key)[:-1]
        rows.append([*fields, parameter.numel() // max(height, 1), parameter.numel(), num])
        num += num_blocks(parameter.numel())
    if not num:
        return
    table, device = as_table(rows), parameters[0].device
    with current_device(device):
        ordinary_step[(num,)](
            on_device(table, device), on_device(np.array(coefficients, dtype=np.float32), device),
            len(rows), decay, 1 - betas[0], betas[1], 1 - betas[1],
            WIDTH=table.shape[1], ROWS=1 << (len(rows) - 1).bit_length(),
            PARAMETER=triton_dtype(parameters[0].dtype), GRAD=triton_dtype(grads[0].dtype),
            MOMENT=triton_dtype(states[0]["exp_avg"].dtype),
            ALIGNED=aligned(table[:, :4]) and aligned(table[:, 8]), BLOCK=BLOCK,
        )  # fmt: skip
