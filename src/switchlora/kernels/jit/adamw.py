"""AdamW on a block of numbers: `rules.AdamW`, and the loading, rounding and storing of `moving.move_` around it."""

import triton
import triton.language as tl

from switchlora.kernels.jit.bits import as_stored, tensor_at


@triton.jit
def adamw(grad, first, second, size, eps, weight1, beta2, weight2):
    """`rules.AdamW` in float32: the change, and both moments. weight1, weight2: 1 - beta1 and 1 - beta2."""
    away = grad - first
    first = tl.where(weight1 < 0.5, first + weight1 * away, grad - away * (1.0 - weight1))  # as torch.lerp does
    second = second * beta2 + weight2 * grad * grad
    change = tl.div_rn(first, tl.sqrt_rn(second) + eps) * size
    return change, first, second


@triton.jit
def move(
    fields, index, row, column, mask, size, eps, live, kept, decay, weight1, beta2, weight2,
    PARAMETER: tl.constexpr, GRAD: tl.constexpr, MOMENT: tl.constexpr, ALIGNED: tl.constexpr,
):  # fmt: skip
    """One step of a block of one parameter, in place; returns it before and after, float32, after as it is stored.

    fields: a row of `tables.parameter_fields`.
    """
    parameter = tensor_at(fields, PARAMETER, ALIGNED) + index
    first = tensor_at(fields + 2, MOMENT, ALIGNED) + index
    second = tensor_at(fields + 3, MOMENT, ALIGNED) + index
    grad = tl.load(tensor_at(fields + 1, GRAD, ALIGNED) + index, mask=mask, other=0.0).to(tl.float32)
    m = tl.load(first, mask=mask, other=0.0).to(tl.float32)
    v = tl.load(second, mask=mask, other=0.0).to(tl.float32)
    before = tl.load(parameter, mask=mask, other=0.0).to(tl.float32)
    change, m, v = adamw(
        tl.where(live != 0.0, grad, 0.0),  # not products: what counts as zero may be infinite
        tl.where(kept != 0.0, m, 0.0),
        tl.where(kept != 0.0, v, 0.0),
        size, eps, weight1, beta2, weight2,
    )  # fmt: skip
    after = as_stored(before * decay + change, tl.load(fields + 4), row, column, PARAMETER)
    m = as_stored(m, tl.load(fields + 5), row, column, MOMENT)
    v = as_stored(v, tl.load(fields + 6), row, column, MOMENT)
    tl.store(parameter, after.to(PARAMETER), mask=mask)
    tl.store(first, m.to(MOMENT), mask=mask)
    tl.store(second, v.to(MOMENT), mask=mask)
    return before, after
