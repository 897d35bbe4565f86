"""W also follows its own gradient: orthogonalised, and without any optimizer state.

The factors' gradients s B^T G and s G A^T know of G = dL/dW only what lies in the span of B's columns or of A's rows.
Beside what the factors make of theirs (`weight_update`), W takes in every step

    W <- W - polar lr 0.2 sqrt(max(m, n)) O(G),    O(U S V^T) = U V^T, G's polar factor, as Muon has it (`muon`).

O makes all directions of G equally long, so its size is not needed, and no moment is kept of it.

G has to stay out of a norm that is clipped, for it would only make the steps of all else smaller: `switchlora pretrain`
leaves it out; a loop of your own clips all parameters but these weights (docs/methods/switchlora-polar.md).

It costs full rank's gradient: G, mn numbers a layer, is formed once in the backward pass (the factors' gradients then
come from it), accumulates in `weight.grad`, and travels under DDP. In every step O costs 5 (4 k^2 l + 2 k^3) FLOPs,
k = min(m, n), l = max(m, n), whatever the number of tokens. It needs whole matrices, so layers cannot be shared out
among ranks.

Source: ours. Related: SWAN (arXiv 2412.13148) orthogonalises whole gradients without state; Fira (arXiv 2410.01623)
follows without state what GaLore's projection leaves out. Projecting G off the spans of the factors first came to the
same (docs/log.md).
"""

from collections.abc import Callable, Iterable

import torch
from torch import Tensor

from switchlora.layer import SwitchLoraLinear
from switchlora.moving import Key
from switchlora.muon import scaled
from switchlora.precision import store_, wide_dtype


def follow_gradients_(layers: Iterable[SwitchLoraLinear], lr: float, key_of: Callable[[str], Key]) -> None:
    """The weights of layers that have gradients follow them; see `follow_gradient_`."""
    for layer in layers:
        assert layer.weight.grad is not None
        follow_gradient_(layer.weight, layer.weight.grad, lr, key_of(layer.name))


@torch.no_grad()
def follow_gradient_(W: Tensor, G: Tensor, lr: float, key: Key) -> None:
    """W <- W - lr 0.2 sqrt(max(m, n)) O(G), in place; where W is bfloat16, summed wide and rounded once.

    Args:
        W, G: (m, n).
        lr: of the weights: `polar` times that of the factors.
        key: names the rounding bits.
    """
    wide = wide_dtype(W.dtype)
    direction = scaled(G.to(wide))
    if W.dtype == wide:
        W.sub_(direction, alpha=lr)
    else:
        store_(W, W.to(wide).sub_(direction, alpha=lr), key("rounding of W's polar step"))
