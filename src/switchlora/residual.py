"""W also follows what its factors do not see of its gradient: orthogonalised, and without any optimizer state.

The factors' gradients s B^T G and s G A^T know of G = dL/dW only what lies in the span of B's columns or of A's rows.
What they miss is

    R = (1 - P_B) G (1 - P_A),    P_B, P_A the orthogonal projections on these spans,

and beside what the factors make of theirs (`weight_update`), W takes in every step

    W <- W - residual lr 0.2 sqrt(max(m, n)) O(R),    O(U S V^T) = U V^T as Muon has it (`muon`).

O makes all directions of R equally long, so the size of R is not needed, and no moment is kept of it. The spans are
those for which the step's gradients were computed, but for what was switched since: after the switch, before the
factors move. Where vectors depend on each other, as the zeros of LoRA's B do at first, QR adds directions of its own
to the span, and W leaves these out, too.

It costs full rank's gradient: G, mn numbers a layer, is formed once in the backward pass (the factors' gradients then
come from it), accumulates in `weight.grad`, and travels under DDP. In every step it costs 8mnr FLOPs for the
projections, two QR decompositions, and 5 (4 k^2 l + 2 k^3) for O, k = min(m, n), l = max(m, n), whatever the number of
tokens. O needs whole matrices, so layers cannot be shared out among ranks.

Related: Fira (arXiv 2410.01623) follows what GaLore's projection leaves out, scaled as the projected part was; SWAN
(arXiv 2412.13148) orthogonalises whole gradients without state.
"""

import torch
from torch import Tensor

from switchlora.layer import SwitchLoraLinear
from switchlora.moving import Key
from switchlora.muon import scaled
from switchlora.precision import store_, wide_dtype


def unseen(G: Tensor, A: Tensor, B: Tensor) -> Tensor:
    """R = (1 - P_B) G (1 - P_A): what a step of the factors misses of G.

    Args:
        G: (m, n).
        A: (r, n), B: (m, r), of G's dtype.
    """
    columns: Tensor = torch.linalg.qr(B).Q
    rows: Tensor = torch.linalg.qr(A.T).Q
    R = G - columns @ (columns.T @ G)
    return R - (R @ rows) @ rows.T


def residual_direction(layer: SwitchLoraLinear) -> Tensor:
    """0.2 sqrt(max(m, n)) O(R) of a layer that has its gradients, in the wide dtype of W; nothing is changed."""
    assert layer.weight.grad is not None
    dtype = wide_dtype(layer.weight.dtype)
    return scaled(unseen(*(t.detach().to(dtype) for t in (layer.weight.grad, layer.lora_A, layer.lora_B))))


def follow_(W: Tensor, direction: Tensor, lr: float, key: Key) -> None:
    """W <- W - lr direction, in place; where W is bfloat16, summed wide and rounded once.

    Args:
        W, direction: (m, n).
        lr: of the weights: residual times that of the factors.
        key: names the rounding bits.
    """
    wide = wide_dtype(W.dtype)
    if W.dtype == wide:
        W.sub_(direction, alpha=lr)
    else:
        store_(W, W.to(wide).sub_(direction, alpha=lr), key("rounding of W's residual step"))
