"""Random bits and stochastic rounding, number by number: `draws.random_bits` and `precision.stochastic_bfloat16`."""

import triton
import triton.language as tl


@triton.jit
def mix(x):
    """`draws._mix_`, on uint32."""
    x ^= x >> 16
    x *= 0x7FEB352D
    x ^= x >> 15
    x *= 0x846CA68B
    x ^= x >> 16
    return x


@triton.jit
def random_bits(key, row, column):
    """32 random bits, uint32, for each pair of a row and a column (int32); the key is an int64 with its 64 bits."""
    of_row = mix(row.to(tl.uint32) ^ key.to(tl.uint32))
    of_column = mix(column.to(tl.uint32) ^ (key >> 32).to(tl.uint32))
    return mix(of_row + of_column)


@triton.jit
def as_stored(value, key, row, column, DTYPE: tl.constexpr):
    """float32 as it will read once stored: itself, or rounded up or down at random to what bfloat16 holds."""
    if DTYPE == tl.bfloat16:  # noqa: SIM300
        bits = value.to(tl.uint32, bitcast=True)
        rounded = ((random_bits(key, row, column) & 0xFFFF) + bits) & 0xFFFF0000
        is_finite = (bits & 0x7F800000) != 0x7F800000
        value = tl.where(is_finite, rounded.to(tl.float32, bitcast=True), value)
    return value


@triton.jit
def tensor_at(table, DTYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """The tensor whose address an entry of a table holds. ALIGNED: all are multiples of 16, so loads may be wide."""
    pointer = tl.load(table).to(tl.pointer_type(DTYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    return pointer
