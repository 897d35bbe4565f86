"""Products over many tokens on the CPU, where the order in which memory is read decides how fast they are.

Two things are done to the thin products of a layer's backward pass, both worth a few percent and neither worth anything
on an accelerator: V^T X is split over its tokens, a share for each thread, and all products go in blocks of tokens,
which stay in the cache for all that read them. Sums over tokens are taken apart, so never where they would be
rounded to a narrow format in between.
"""

import torch
from torch import Tensor

from switchlora.input_chain import is_transformed
from switchlora.precision import wide_dtype

# Measured with two threads: benchmarks/products.json.
SHARE_TOKENS = 1024  # at least; then the shares' results hold r / 1024 of what X does, at most
BLOCK_TOKENS = 4096 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 1024  # larger caches


def scaled_product(P: Tensor, Q: Tensor, scaling: float) -> Tensor:
    """s P Q in one pass: autograd keeps the result as the gradient itself, so no later pass over it is needed."""
    return torch.addmm(P.new_empty(1), P, Q, beta=0, alpha=scaling)


def product_over_tokens(V: Tensor, X: Tensor, scaling: float, dA: Tensor | None = None) -> Tensor:
    """s V^T X, added to dA (r, n) where that is given. V (T, r), X (T, n)."""
    num_shares = num_token_shares(X)
    if num_shares == 1:
        return scaled_product(V.T, X, scaling) if dA is None else dA.addmm_(V.T, X, alpha=scaling)
    of_V, of_X = V.view(num_shares, -1, V.shape[1]), X.view(num_shares, -1, X.shape[1])
    product = torch.bmm(of_V.transpose(1, 2), of_X).sum(0)
    return product.mul_(scaling) if dA is None else dA.add_(product, alpha=scaling)


def num_token_shares(X: Tensor) -> int:
    """Into how many shares of the tokens V^T X is split, each for one thread.

    Its result has few rows, which MKL, left alone, does not share out well: with two threads and 4,096 tokens it is 4
    to 15 % faster in shares (benchmarks/products.json), with 1,024 it is slower.
    """
    T, num = X.shape[0], torch.get_num_threads() if _is_wide_on_cpu(X) else 1
    return num if T % num == 0 and num * SHARE_TOKENS <= T else 1


def _is_wide_on_cpu(tensor: Tensor) -> bool:
    """Whether products are a CPU library's, and their sums may be taken apart: not in a compiled graph or under
    torch.func, nor where sums would be rounded to a narrow format."""
    return tensor.device.type == "cpu" and tensor.dtype == wide_dtype(tensor.dtype) and not is_transformed()


def num_token_blocks(dY: Tensor) -> int:
    """How many blocks of tokens the thin way takes: on the CPU, a block stays in the cache for all that read it."""
    return max(1, dY.shape[0] // BLOCK_TOKENS) if _is_wide_on_cpu(dY) else 1


def backward_in_blocks(
    dY: Tensor, X: Tensor, W: Tensor, A: Tensor, B: Tensor, scaling: float, num_blocks: int, dX: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """dX (T, n) and the thin gradients, in blocks of tokens; shapes as there, W (m, n). A dX that is given grows by
    dY W, in place."""
    begun, dX = dX is not None, torch.empty_like(X) if dX is None else dX
    dA, dB = torch.zeros_like(A), torch.zeros_like(B)
    for y, x, out in zip(*(full.tensor_split(num_blocks) for full in (dY, X, dX)), strict=True):
        out.addmm_(y, W) if begun else torch.mm(y, W, out=out)
        product_over_tokens(y @ B, x, scaling, dA)
        dB.addmm_(y.T, x @ A.T, alpha=scaling)
    return dX, dA, dB
