"""What moving the factors means for the dense weight: the only place where W ever changes.

When A moves to A' = A + dA and B to B' = B + dB, then W = W_base + s B A moves by

    s (B'A' - BA) = s (dB A' + B dA),

one product of rank 2r. The right-hand side is used, never the left: its two halves are nearly equal, and
their rounding errors would be of the size of the update itself (1e-3 of one update in fp32, more than all of it
in TF32 or bf16); W would move at a learning rate of 0. dA and dB are differences of the factors as stored, so W
follows them exactly, whatever their dtype.

The two factors of that product, (dB, B) and (A', dA), are written side by side by the rule (`moving`), so that the
product needs no copies.
"""

import torch
from torch import Tensor

from switchlora.moving import Key
from switchlora.precision import store_, wide_dtype


def product_buffers(m: int, n: int, r: int, dtype: torch.dtype, device: torch.device) -> tuple[Tensor, Tensor]:
    """Uninitialised left (m, 2r) = (dB, B) and right (2r, n) = (A', dA)."""
    left = torch.empty(m, 2 * r, dtype=dtype, device=device)
    return left, torch.empty(2 * r, n, dtype=dtype, device=device)


def update_weight_(W: Tensor, left: Tensor, right: Tensor, scaling: float, decay: float, key: Key) -> None:
    """W <- decay W + s (dB A' + B dA), in place: wide sums, one rounding.

    Args:
        W: (m, n).
        left: (m, 2r), what the steps added to B, and B before its step.
        right: (2r, n), A after its step, and what the step added to it.
        scaling: s.
        decay: 1 - lr * weight_decay.
        key: names the rounding bits, used where W is bfloat16.
    """
    wide = wide_dtype(W.dtype)
    if W.dtype == wide:
        W.addmm_(left.to(wide), right.to(wide), beta=decay, alpha=scaling)
    else:
        store_(W, W.to(wide).addmm_(left.to(wide), right.to(wide), beta=decay, alpha=scaling), key("rounding of W"))
