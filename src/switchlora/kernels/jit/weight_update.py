"""W <- decay W + s P for the bfloat16 weights of many layers: a program takes a block of one layer's weight."""

import triton
import triton.language as tl

from switchlora.kernels.jit.bits import as_stored, tensor_at


@triton.jit
def weight_update(
    table, product, numel, scaling, decay,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, WEIGHT: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """See `weight_update.update_weight_`.

    table: (l, WIDTH), in each row the address of W and the key of its rounding; product: P, (l, m, n), float32.
    """
    layer = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = index < numel
    fields = table + layer * WIDTH
    weight = tensor_at(fields, WEIGHT, ALIGNED) + index
    value = tl.load(weight, mask=mask, other=0.0).to(tl.float32) * decay
    value += scaling * tl.load(product + layer * numel + index, mask=mask, other=0.0)
    value = as_stored(value, tl.load(fields + 1), index // COLUMNS, index % COLUMNS, WEIGHT)
    tl.store(weight, value.to(WEIGHT), mask=mask)
