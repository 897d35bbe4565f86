"""One step of AdamW on many parameters of different sizes: a program takes a block of one of them."""

import triton
import triton.language as tl

from switchlora.kernels.jit.adamw import move


@triton.jit
def ordinary_step(
    table, coefficients, num, decay, weight1, beta2, weight2,
    WIDTH: tl.constexpr, ROWS: tl.constexpr,
    PARAMETER: tl.constexpr, GRAD: tl.constexpr, MOMENT: tl.constexpr, ALIGNED: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """See `moving.move_`.

    table: (num, WIDTH), in each row the fields of a parameter, its columns, its numel, and the number of its first
    block; coefficients: (num, 2), size and eps'; ROWS: num, rounded up to a power of 2;
    ALIGNED: numels are multiples of 16, too.
    """
    block = tl.program_id(0)
    rows = tl.arange(0, ROWS)
    firsts = tl.load(table + rows * WIDTH + 9, mask=rows < num, other=0x7FFFFFFF)
    number = tl.sum((firsts <= block).to(tl.int32), axis=0) - 1
    fields = table + number * WIDTH
    columns, numel = tl.load(fields + 7).to(tl.int32), tl.load(fields + 8).to(tl.int32)
    if ALIGNED:  # otherwise the mask would keep loads narrow
        numel = tl.multiple_of(numel, 16)
    index = (block - tl.load(fields + 9).to(tl.int32)) * BLOCK + tl.arange(0, BLOCK)
    size, eps = tl.load(coefficients + 2 * number), tl.load(coefficients + 2 * number + 1)
    move(
        fields, index, index // columns, index % columns, index < numel, size, eps, 1.0, 1.0, decay, weight1, beta2,
        weight2, PARAMETER, GRAD, MOMENT, ALIGNED,
    )  # fmt: skip
