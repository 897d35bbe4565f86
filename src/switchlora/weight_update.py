"""What moving the factors means for the dense weight: the only place where W ever changes.

When A moves to A' = A + dA and B to B' = B + dB, then W = W_base + s B A moves by

    s (B'A' - BA) = s (dB A' + B dA),

one product of rank 2r; of rank r where A and B move in turn. The right-hand side is used, never the left: its
two halves are nearly equal, and their rounding errors would be of the size of the update itself (1e-3 of one
update in fp32, more than all of it in TF32 or bf16); W would move at a learning rate of 0. dA and dB are
differences of the factors as stored, so W follows them exactly, whatever their dtype.

The two factors of that product, (dB, B) and (A', dA), are written side by side by the rule (`moving`), so that the
product needs no copies.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from switchlora.moving import Change, Key, Turn
from switchlora.precision import store_, wide_dtype


def product_buffers(m: int, n: int, r: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Uninitialised left (m, 2r) = (dB, B) and right (2r, n) = (A', dA)."""
    left = torch.empty(m, 2 * r, dtype=dtype, device=device)
    return left, torch.empty(2 * r, n, dtype=dtype, device=device)


def change_in(left: Tensor, right: Tensor) -> Change:
    """The four parts of these buffers, which a step fills in."""
    r = right.shape[0] // 2
    return Change(dB=left[:, :r], B=left[:, r:], A=right[:r], dA=right[r:])


def operands(left: Tensor, right: Tensor, turn: Turn) -> tuple[Tensor, Tensor]:
    """What of these buffers is multiplied: all; where only A moved (B, dA), and where only B did (dB, A).

    Args:
        left, right: (..., m, 2r) and (..., 2r, n).
        turn: the factors that moved.
    """
    half = half_of(turn, right.shape[-2] // 2)
    return left[..., half], right[..., half, :]


def half_of(turn: Turn, size: int) -> slice:
    """Of (dB, B), or of (A', dA), each half with `size` entries: those that are multiplied, see `operands`."""
    return {"AB": slice(2 * size), "A": slice(size, 2 * size), "B": slice(size)}[turn]


def update_weight_(
    W: Tensor, left: Tensor, right: Tensor, scaling: float, decay: float, key: Key, first_row: int = 0
) -> None:
    """W <- decay W + s (dB A' + B dA), in place: wide sums, one rounding.

    Args:
        W: (m, n).
        left: (m, 2r), what the steps added to B, and B before its step; or one of them, see `operands`.
        right: (2r, n), A after its step, and what the step added to it; or one of them.
        scaling: s.
        decay: 1 - lr * weight_decay.
        key: names the rounding bits, used where W is bfloat16.
        first_row: see `precision.store_`.
    """
    wide = wide_dtype(W.dtype)
    if W.dtype == wide:
        W.addmm_(left.to(wide), right.to(wide), beta=decay, alpha=scaling)
    else:
        with products_for(W):
            moved = W.to(wide).addmm_(left.to(wide), right.to(wide), beta=decay, alpha=scaling)
        store_(W, moved, key("rounding of W"), first_row)


@contextlib.contextmanager
def products_for(W: Tensor) -> Iterator[None]:
    """Inside, float32 products take tensor cores (TF32) where W is bfloat16 and on CUDA; sums stay float32.

    bfloat16 factors, and nearly always their differences, are exact in TF32; of float32 ones it keeps 11 significant
    bits, of which W keeps 8. In full float32 the update would run at a fifteenth of the rate of the model's products
    (H100: 67 and 989 TFLOP/s), and be a third of a step of 8,192 tokens at 1.3B, r = 512. A float32 W goes by torch's
    own setting, as the model's float32 products do.
    """
    settings = torch.backends.cuda.matmul
    own = settings.fp32_precision
    if W.dtype != torch.bfloat16 or not W.is_cuda or own == "tf32":
        yield
        return
    settings.allow_tf32 = True  # torch's old and its new name of the setting, which must agree
    try:
        yield
    finally:
        settings.allow_tf32 = False
        settings.fp32_precision = own
