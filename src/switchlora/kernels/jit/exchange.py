"""Vectors named by the address of their first number: a program takes a block of one vector."""

import triton
import triton.language as tl

from switchlora.kernels.jit.bits import tensor_at


@triton.jit
def exchange(addresses, arriving, leaving, length, stride, DTYPE: tl.constexpr, BLOCK: tl.constexpr):
    """The K vectors at `addresses` go to the rows of leaving (K, length), those of arriving take their places."""
    number = tl.program_id(0).to(tl.int64)
    within = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = within < length
    place = tensor_at(addresses + number, DTYPE, False) + within * stride
    row = number * length + within
    tl.store(leaving + row, tl.load(place, mask=mask), mask=mask)
    tl.store(place, tl.load(arriving + row, mask=mask), mask=mask)
