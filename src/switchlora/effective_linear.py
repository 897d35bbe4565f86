"""The linear map in effective-weight form: dense forward, gradients for low-rank factors only.

LoRA computes y = (W_base + s B A) x with an adapter branch beside a frozen W_base. Here the sum, W = W_base + s B A, is
what is stored. Forward is then one dense product, with no extra activation, and W is at every moment the weight that a
plain `nn.Linear` would hold. What makes it low-rank is the backward: with G = dL/dW = dY^T X, the chain rule gives

    dA = s B^T G,    dB = s G A^T,    and W itself gets no gradient, unless it asks for G (see `polar`).

Two ways to compute them are equal in exact arithmetic; `dense_is_cheaper` counts FLOPs and picks one:

    thin    U = X A^T, V = dY B, then dB = s dY^T U, dA = s V^T X     4r(m+n)T, never forms G
    dense   G = dY^T X once, then the two products above              2mnT + 4mnr

Together with dX the step costs 4mnT + min(thin, dense) FLOPs, where full rank costs 6mnT and an adapter
branch 4mnT + 6r(m+n)T. Where W takes its gradient, G is formed anyway, and the way is dense. Layers that read the same
input sum what they pass back to it (`input_chain`).
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from switchlora.input_chain import Link, is_transformed
from switchlora.once import differentiable_once
from switchlora.precision import wide_dtype, without_autocast
from switchlora.token_blocks import backward_in_blocks, num_token_blocks, product_over_tokens, scaled_product


def dense_is_cheaper(m: int, n: int, r: int, T: int) -> bool:
    """Whether forming G costs fewer FLOPs than the thin products, for T tokens in one backward."""
    return 2 * m * n * T + 4 * m * n * r < 4 * r * (m + n) * T


def factor_gradients_thin(dY: Tensor, X: Tensor, A: Tensor, B: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """s B^T G and s G A^T without forming G = dY^T X. dY (T, m), X (T, n), A (r, n), B (m, r)."""
    return product_over_tokens(dY @ B, X, scaling), scaled_product(dY.T, X @ A.T, scaling)


def factor_gradients_dense(dY: Tensor, X: Tensor, A: Tensor, B: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """s B^T G and s G A^T from G = dY^T X, formed once. dY (T, m), X (T, n), A (r, n), B (m, r)."""
    return factor_gradients_of(dY.T @ X, A, B, scaling)


def factor_gradients_of(G: Tensor, A: Tensor, B: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """s B^T G and s G A^T. G (m, n), A (r, n), B (m, r)."""
    return scaled_product(B.T, G, scaling), scaled_product(G, A.T, scaling)


def _backward(ctx: Any, grad_y: Tensor | None, grad_end: Tensor | None = None) -> tuple[Tensor | None, ...]:
    """What `_EffectiveLinear` passes back: to x, W, bias, A and B, and None to what is no tensor."""
    if ctx.link is not None:
        ctx.link.is_open = False
    if grad_y is None:  # this pass is not from y: what it saved may be gone
        return grad_end, None, None, None, None, None, None, None
    with without_autocast(grad_y.device):  # which the caller may not have closed
        return _passed_back(ctx, grad_y, grad_end)


def _passed_back(ctx: Any, grad_y: Tensor, grad_end: Tensor | None) -> tuple[Tensor | None, ...]:
    x, W, bias, A, B = ctx.saved_tensors
    (m, n), r = W.shape, A.shape[0]
    # Of a forward pass under autocast x and grad_y have the narrow dtype, the parameters their own: the products
    # follow grad_y, the results the parameters.
    dtype = grad_y.dtype
    dY, X = grad_y.reshape(-1, m), x.reshape(-1, n).to(dtype)
    dX = None if grad_end is None else grad_end.reshape(-1, n).to(dtype)  # of the layers behind, now ours to add to
    grad_W = grad_bias = grad_A = grad_B = None
    dense, num_blocks = dense_is_cheaper(m, n, r, dY.shape[0]), num_token_blocks(dY)
    needs_x, needs_W = ctx.needs_input_grad[0], ctx.needs_input_grad[1] and ctx.trains_weight
    needs_factors = ctx.needs_input_grad[3] or ctx.needs_input_grad[4]
    if needs_x and needs_factors and not (needs_W or dense) and num_blocks > 1:
        matrices = (W.to(dtype), A.to(dtype), B.to(dtype))
        dX, grad_A, grad_B = backward_in_blocks(dY, X, *matrices, ctx.scaling, num_blocks, dX)
    else:
        if needs_x:
            dX = dY @ W.to(dtype) if dX is None else dX.addmm_(dY, W.to(dtype))
        if needs_W:
            G = dY.T @ X
            grad_W = G.to(W.dtype)
            if needs_factors:
                grad_A, grad_B = factor_gradients_of(G, A.to(dtype), B.to(dtype), ctx.scaling)
        elif needs_factors:
            gradients = factor_gradients_dense if dense else factor_gradients_thin
            grad_A, grad_B = gradients(dY, X, A.to(dtype), B.to(dtype), ctx.scaling)
    grad_x = None if dX is None else dX.view(x.shape).to(x.dtype)
    if grad_A is not None and grad_B is not None:
        grad_A, grad_B = grad_A.to(A.dtype), grad_B.to(B.dtype)
    if bias is not None and ctx.needs_input_grad[2]:
        grad_bias = dY.sum(0, dtype=wide_dtype(dtype)).to(bias.dtype)
    return grad_x, grad_W, grad_bias, grad_A, grad_B, None, None, None


class _EffectiveLinear(torch.autograd.Function):
    """y = x W^T + bias, with the gradient of W passed on to A and B, and to W where that asks for it; in a chain of
    layers that read the same x also an alias of x. With a bias y is a matrix: of more dimensions torch makes a view,
    and into a view that a function returns nobody may write."""

    generate_vmap_rule = True

    @staticmethod
    def forward(
        x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor,
        scaling: float, trains_weight: bool, link: Link | None,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        y = F.linear(x if bias is None or x.is_nested else x.reshape(-1, x.shape[-1]), W, bias)
        return y if link is None else (y, x.detach())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor | tuple[Tensor, Tensor]) -> None:
        x, W, bias, A, B, ctx.scaling, ctx.trains_weight, ctx.link = inputs
        ctx.save_for_backward(x, W, bias, A, B)
        if ctx.link is not None:
            ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        asked_twice = torch.is_grad_enabled() and not torch.compiler.is_compiling()  # which refuses by itself
        if gradients[0] is None or not asked_twice:
            return _backward(ctx, *gradients)
        with torch.no_grad():
            passed_back = _backward(ctx, *gradients)
        return differentiable_once(passed_back, (*ctx.saved_tensors, *gradients))


class _PlainEffectiveLinear(torch.autograd.Function):
    """The same in one piece. In two, as torch.func wants it, torch reads the signature of `forward` at every call: 0.1
    ms, while products empty the caches."""

    @staticmethod
    def forward(ctx: Any, *inputs: Any) -> Tensor | tuple[Tensor, Tensor]:
        output = _EffectiveLinear.forward(*inputs)
        _EffectiveLinear.setup_context(ctx, inputs, output)
        return output

    backward = staticmethod(_EffectiveLinear.backward)


def effective_linear(
    x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor, scaling: float, trains_weight: bool,
    link: Link | None = None,
) -> tuple[Tensor, Tensor | None]:  # fmt: skip
    """y = x W^T + bias (..., m); and in a chain the end (..., n) that its next layer reads.

    Args:
        x: (..., n).
        W: (m, n); takes a gradient if `trains_weight`.
        bias: (m,) or None.
        A: (r, n), B: (m, r): take the gradients that LoRA's would have.
        scaling: s.
        link: the place in a chain.
    """
    function = _EffectiveLinear if is_transformed() else _PlainEffectiveLinear
    output = function.apply(x, W, bias, A, B, scaling, trains_weight, link)  # type: ignore[no-untyped-call]
    y, end = (output, None) if link is None else output
    return (y if y.dim() == x.dim() else y.view(*x.shape[:-1], W.shape[0])), end
