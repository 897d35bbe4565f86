"""The weights of some layers, by one product a layer or one batch of them: `weight_update.update_weight_`.

A float32 W takes the product and the sum in one call of the matrix library (`addmm_`), a layer at a time. A bfloat16 W
must be rounded stochastically, which no library does: the products of all layers are one batched call, summed in
float32, and one launch adds and rounds. What the products' inputs keep is as in the eager code
(`weight_update.products_for`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from switchlora.kernels.tables import BLOCK, num_blocks, triton_dtype
from switchlora.weight_update import products_for


def update_weights_(
    weights: Sequence[Tensor],
    left: Tensor,
    right: Tensor,
    product: Tensor | None,
    scaling: float,
    decay: float,
    table: Tensor,
    aligned: bool,
) -> None:
    """W <- decay W + s left @ right for l layers of one shape, in place.

    Args:
        weights: l times (m, n), all float32 or all bfloat16.
        left, right: (l, m, 2r) and (l, 2r, n), float32; or one half of them, see `weight_update.operands`.
        product: (l, m, n) float32, scratch for bfloat16 weights.
        scaling: s.
        decay: 1 - lr * weight_decay.
        table: (l, width) int64, each row beginning with the address of W and the key of its rounding bits.
        aligned: whether all addresses are multiples of 16.
    """
    if product is None:
        for W, of_left, of_right in zip(weights, left, right, strict=True):
            W.addmm_(of_left, of_right, beta=decay, alpha=scaling)
        return
    with products_for(weights[0]):
        torch.bmm(left, right, out=product)
    add_rounded_(weights[0], product, scaling, decay, table, aligned)


def add_rounded_(W: Tensor, product: Tensor, scaling: float, decay: float, table: Tensor, aligned: bool) -> None:
    """W <- decay W + s P for l bfloat16 weights, in place, stochastically rounded.

    Args:
        W: any of them: shape and dtype.
        product: P, (l, m, n), float32.
        scaling, decay, table, aligned: see `update_weights_`.
    """
    from switchlora.kernels.jit.weight_update import weight_update

    weight_update[num_blocks(W.numel()), len(product)](
        table, product, W.numel(), scaling, decay,
        WIDTH=table.stride(0), COLUMNS=W.shape[1], WEIGHT=triton_dtype(W.dtype), ALIGNED=aligned, BLOCK=BLOCK,
    )  # fmt: skip
