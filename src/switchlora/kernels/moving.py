"""One side's factors of some layers, by one launch: `moving.move_factors_`."""

from torch import Tensor

from switchlora.kernels.tables import BLOCK, num_blocks, triton_dtype


def move_factors_(
    factor: Tensor,
    grad: Tensor,
    moment: Tensor,
    is_A: bool,
    table: Tensor,
    coefficients: Tensor,
    product: Tensor,
    betas: tuple[float, float],
    aligned: bool,
) -> None:
    """One step of A, or of B, of l layers of one shape, in place, and what the weight update needs of it.

    Args:
        factor, grad, moment: of any of them: shape and dtypes.
        is_A: or B.
        table: (l, width) int64, each row beginning with `tables.parameter_fields`; a view into wider rows is fine.
        coefficients: (l, 4, r): see `moving_layers.Coefficients`.
        product: right (l, 2r, n) = (A', dA) for A, left (l, m, 2r) = (dB, B) for B, float32.
        betas: of AdamW.
        aligned: whether all addresses are multiples of 16.
    """
    from switchlora.kernels.jit.moving import factor_step

    numel, columns = factor.numel(), factor.shape[1]
    factor_step[num_blocks(numel), len(table)](
        table, coefficients, product, coefficients.shape[2], numel, 1 - betas[0], betas[1], 1 - betas[1],
        WIDTH=table.stride(0), COLUMNS=columns, IS_A=is_A,
        PARAMETER=triton_dtype(factor.dtype), GRAD=triton_dtype(grad.dtype), MOMENT=triton_dtype(moment.dtype),
        ALIGNED=aligned, BLOCK=BLOCK,
    )  # fmt: skip
