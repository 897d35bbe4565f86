"""What moving the factors means for the dense weight: the only place where W ever changes.

When A moves to A' = A + dA and B to B' = B + dB, then W = W_base + s B A moves by

    s (B'A' - BA) = s (dB A' + B dA),

one product of rank 2r. The right-hand side is used, never the left: its two halves are nearly equal, and
their rounding errors would be of the size of the update itself (1e-3 of one update in fp32, more than all of it
in TF32 or bf16); W would move at a learning rate of 0. dA and dB are differences of the factors as stored, so W
follows them exactly, whatever their dtype.
"""

import torch
from torch import Tensor

from switchlora.precision import store_, wide_dtype


def update_weight_(
    W: Tensor, A: Tensor, B: Tensor, dA: Tensor, dB: Tensor, scaling: float, decay: float, key: int
) -> None:
    """W <- decay W + s (dB A' + B dA), in place: wide sums, one rounding.

    Args:
        W: (m, n).
        A: (r, n), the factor after its step.
        B: (m, r), the factor before its step.
        dA, dB: what the steps added.
        scaling: s.
        decay: 1 - lr * weight_decay.
        key: of the rounding bits, used where W is bfloat16.
    """
    wide = wide_dtype(W.dtype)
    left = torch.cat((dB, B), dim=1).to(wide)  # (m, 2r)
    right = torch.cat((A, dA), dim=0).to(wide)  # (2r, n)
    if W.dtype == wide:
        W.addmm_(left, right, beta=decay, alpha=scaling)
    else:
        store_(W, W.to(wide).addmm_(left, right, beta=decay, alpha=scaling), key)
