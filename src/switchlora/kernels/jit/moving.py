"""One step of one factor of many layers: a program takes a block of one layer's factor."""

import triton
import triton.language as tl

from switchlora.kernels.jit.adamw import move


@triton.jit
def factor_step(
    table, coefficients, product, r, numel, weight1, beta2, weight2,
    WIDTH: tl.constexpr, COLUMNS: tl.constexpr, IS_A: tl.constexpr,
    PARAMETER: tl.constexpr, GRAD: tl.constexpr, MOMENT: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """See `moving.move_factors_`.

    table: (l, WIDTH), in each row the fields of the factor; coefficients: (l, 4, r); product: right (l, 2r, n) for A,
    left (l, m, 2r) for B; numel, COLUMNS: of the factor.
    """
    layer = tl.program_id(1).to(tl.int64)
    index = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    mask = index < numel
    row, column = index // COLUMNS, index % COLUMNS
    vector = coefficients + layer * 4 * r + (row if IS_A else column)
    size = tl.load(vector, mask=mask, other=0.0)
    eps = tl.load(vector + r, mask=mask, other=1.0)
    live = tl.load(vector + 2 * r, mask=mask, other=0.0)
    kept = tl.load(vector + 3 * r, mask=mask, other=0.0)
    before, after = move(
        table + layer * WIDTH, index, row, column, mask, size, eps, live, kept, 1.0, weight1, beta2, weight2,
        PARAMETER, GRAD, MOMENT, ALIGNED,
    )  # fmt: skip
    product += layer * 2 * numel
    if IS_A:  # (A', dA), one above the other
        tl.store(product + index, after, mask=mask)
        tl.store(product + numel + index, after - before, mask=mask)
    else:  # (dB, B), side by side
        place = product + index + row * COLUMNS
        tl.store(place, after - before, mask=mask)
        tl.store(place + COLUMNS, before, mask=mask)
