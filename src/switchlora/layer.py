"""A linear layer in effective-weight form: dense forward, gradients for low-rank factors only.

LoRA computes y = (W_base + s B A) x with an adapter branch beside a frozen W_base. `SwitchLoraLinear`
stores the sum, W = W_base + s B A, instead. Forward is then one dense product, with no extra activation,
and W is at every moment the weight that a plain `nn.Linear` would hold. What makes it low-rank is the
backward: with G = dL/dW = dY^T X, the chain rule gives

    dA = s B^T G,    dB = s G A^T,    and W itself gets no gradient, unless it asks for G (see `polar`).

Two ways to compute them are equal in exact arithmetic; `dense_is_cheaper` counts FLOPs and picks one:

    thin    U = X A^T, V = dY B, then dB = s dY^T U, dA = s V^T X     4r(m+n)T, never forms G
    dense   G = dY^T X once, then the two products above              2mnT + 4mnr

Together with dX the step costs 4mnT + min(thin, dense) FLOPs, where full rank costs 6mnT and an adapter
branch 4mnT + 6r(m+n)T. Where W takes its gradient, G is formed anyway, and the way is dense. Layers that read the same
input sum what they pass back to it (`input_chain`). The layer knows neither step nor optimizer: moving A and B,
and W with them, is `optimizer.SwitchLora`'s work.
"""

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from switchlora.initialisation import Init, draw_candidates, initial_slots, vector_bounds
from switchlora.input_chain import InputChains, Link, can_chain
from switchlora.precision import wide_dtype
from switchlora.shards import local, own_rows

# Measured: benchmarks/products.json. Processors with AVX-512 have larger caches.
BLOCK_TOKENS = 2048 if torch.backends.cpu.get_cpu_capability() == "AVX512" else 1024


def dense_is_cheaper(m: int, n: int, r: int, T: int) -> bool:
    """Whether forming G costs fewer FLOPs than the thin products, for T tokens in one backward."""
    return 2 * m * n * T + 4 * m * n * r < 4 * r * (m + n) * T


def factor_gradients_thin(dY: Tensor, X: Tensor, A: Tensor, B: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """s B^T G and s G A^T without forming G = dY^T X. dY (T, m), X (T, n), A (r, n), B (m, r)."""
    return _scaled_product((dY @ B).T, X, scaling), _scaled_product(dY.T, X @ A.T, scaling)


def factor_gradients_dense(dY: Tensor, X: Tensor, A: Tensor, B: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """s B^T G and s G A^T from G = dY^T X, formed once. dY (T, m), X (T, n), A (r, n), B (m, r)."""
    return factor_gradients_of(dY.T @ X, A, B, scaling)


def factor_gradients_of(G: Tensor, A: Tensor, B: Tensor, scaling: float) -> tuple[Tensor, Tensor]:
    """s B^T G and s G A^T. G (m, n), A (r, n), B (m, r)."""
    return _scaled_product(B.T, G, scaling), _scaled_product(G, A.T, scaling)


def _scaled_product(P: Tensor, Q: Tensor, scaling: float) -> Tensor:
    """s P Q in one pass: autograd keeps the result as the gradient itself, so no later pass over it is needed."""
    return torch.addmm(P.new_empty(1), P, Q, beta=0, alpha=scaling)


def num_token_blocks(dY: Tensor) -> int:
    """How many blocks of tokens the thin way takes: on the CPU, a block stays in the cache for all that read it.

    One elsewhere, in a compiled graph, and where sums over blocks would be rounded to a narrow format.
    """
    if dY.device.type != "cpu" or dY.dtype != wide_dtype(dY.dtype) or torch.compiler.is_compiling():
        return 1
    return max(1, dY.shape[0] // BLOCK_TOKENS)


def backward_in_blocks(
    dY: Tensor, X: Tensor, W: Tensor, A: Tensor, B: Tensor, scaling: float, num_blocks: int, dX: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """dX (T, n) and the thin gradients, in blocks of tokens; shapes as there, W (m, n). A dX that is given grows by
    dY W, in place."""
    begun, dX = dX is not None, torch.empty_like(X) if dX is None else dX
    dA, dB = torch.zeros_like(A), torch.zeros_like(B)
    for y, x, out in zip(*(full.tensor_split(num_blocks) for full in (dY, X, dX)), strict=True):
        out.addmm_(y, W) if begun else torch.mm(y, W, out=out)
        dA.addmm_((y @ B).T, x, alpha=scaling)  # every product is one parallel region more: no pass beside them
        dB.addmm_(y.T, x @ A.T, alpha=scaling)
    return dX, dA, dB


class _EffectiveLinear(torch.autograd.Function):
    """y = x W^T + bias, with the gradient of W passed on to A and B, and to W where that asks for it; in a chain of
    layers that read the same x also an alias of x."""

    @staticmethod
    def forward(
        x: Tensor, W: Tensor, bias: Tensor | None, A: Tensor, B: Tensor,
        scaling: float, trains_weight: bool, link: Link | None,
    ) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
        y = F.linear(x, W, bias)
        return y if link is None else (y, x.detach())

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor | tuple[Tensor, Tensor]) -> None:
        x, W, bias, A, B, ctx.scaling, ctx.trains_weight, ctx.link = inputs
        ctx.save_for_backward(x, W, bias, A, B)
        if ctx.link is not None:
            ctx.set_materialize_grads(False)

    @staticmethod
    @once_differentiable  # W knows nothing of A and B here, so second derivatives would miss its dependence on them
    def backward(ctx: Any, grad_y: Tensor | None, grad_end: Tensor | None = None) -> tuple[Tensor | None, ...]:
        if ctx.link is not None:
            ctx.link.is_open = False
        if grad_y is None:  # this pass is not from y: what it saved may be gone
            return grad_end, None, None, None, None, None, None, None
        x, W, bias, A, B = ctx.saved_tensors
        (m, n), r = W.shape, A.shape[0]
        # Under autocast x and grad_y have the narrow dtype, the parameters their own, and the context is
        # usually closed by now: the products follow grad_y, the results the parameters.
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


class SwitchLoraLinear(nn.Linear):
    """`nn.Linear` whose weight is trained through low-rank factors.

    Attributes:
        weight: (m, n), the dense effective weight; takes no gradient, unless `trains_weight`.
        bias: (m,) or None; trains like any parameter.
        lora_A: (r, n), lora_B: (m, r): the trainable factors.
        scaling: s = lora_alpha / r.
        name: the name of the layer when it was converted; it keys every random choice.
        trains_weight: whether the weight takes its gradient G, too; set by `train_weight`.
        was_conv1d: whether it stands in for GPT-2's Conv1D, whose weight lies transposed (see `conv1d`).

    Args:
        in_features, out_features, bias, device, dtype: as in `nn.Linear`.
        r: rank.
        lora_alpha: numerator of the scaling.
        init_lora_weights: "switchlora" or "lora" (see `initialisation`).
        factor_dtype: dtype of A and B; by default that of the weight, but float32 beside a bfloat16 weight.
        name, seed: key of the factors' initial values.
    """

    lora_A: nn.Parameter
    lora_B: nn.Parameter
    trains_weight: bool = False
    was_conv1d: bool = False
    input_chains: ClassVar[InputChains] = InputChains()

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        r: int,
        lora_alpha: float = 1.0,
        init_lora_weights: Init = "switchlora",
        factor_dtype: torch.dtype | None = None,
        name: str = "",
        seed: int = 0,
    ) -> None:
        nn.Module.__init__(self)  # not nn.Linear's, which would draw a weight before the factors exist
        dtype = dtype or torch.get_default_dtype()
        factor_dtype = factor_dtype or wide_dtype(dtype)
        self.in_features, self.out_features, self.r = in_features, out_features, r
        self.scaling = lora_alpha / r
        self.init_lora_weights: Init = init_lora_weights
        self.name, self.seed = name, seed
        self.weight = nn.Parameter(
            torch.empty(out_features, in_features, device=device, dtype=dtype), requires_grad=False
        )
        bias_parameter = nn.Parameter(torch.empty(out_features, device=device, dtype=dtype)) if bias else None
        self.register_parameter("bias", bias_parameter)
        self.lora_A = nn.Parameter(torch.empty(r, in_features, device=device, dtype=factor_dtype))
        self.lora_B = nn.Parameter(torch.empty(out_features, r, device=device, dtype=factor_dtype))
        self.reset_parameters()

    @classmethod
    def from_linear(
        cls,
        linear: nn.Linear,
        *,
        r: int,
        lora_alpha: float,
        init_lora_weights: Init,
        factor_dtype: torch.dtype | None,
        name: str,
        seed: int,
    ) -> "SwitchLoraLinear":
        """A layer of the same function, which takes over weight and bias of `linear` without a copy."""
        weight, bias = linear.weight, linear.bias
        layer = cls(
            linear.in_features, linear.out_features, False, "meta", weight.dtype, r=r, lora_alpha=lora_alpha,
            init_lora_weights=init_lora_weights, factor_dtype=factor_dtype, name=name, seed=seed,
        )  # fmt: skip
        layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
        layer.bias = bias
        for factor in ("lora_A", "lora_B"):
            empty = torch.empty_like(getattr(layer, factor), device=weight.device)
            setattr(layer, factor, nn.Parameter(empty))
        layer.reset_factors()
        layer.train(linear.training)
        return layer

    def reset_parameters(self) -> None:
        """Initialise weight and bias as `nn.Linear` does, and the factors by (seed, name)."""
        super().reset_parameters()
        self.reset_factors()

    @torch.no_grad()
    def reset_factors(self) -> None:
        """Initialise A and B, a function of (seed, name); the weight, and so the function, stays."""
        if self.lora_A.is_meta:
            return
        m, n, r = self.out_features, self.in_features, self.r
        bounds, slots = vector_bounds(m, n, r, self.init_lora_weights), initial_slots(m, n, r)
        for side, factor in (("A", self.lora_A), ("B", self.lora_B)):
            held, own = local(factor), own_rows(factor)
            vectors = held if side == "A" else held.T
            rows, part = (slots[side][own], slice(0, n)) if side == "A" else (slots[side], own)
            rows = rows.to(held.device)
            vectors.copy_(draw_candidates(self.seed, self.name, side, rows, part, bounds[side], held.dtype))

    def train_weight(self) -> None:
        """Have the weight take its gradient, beside the factors."""
        self.trains_weight = True
        self.weight.requires_grad_(True)

    @property
    def stepped_by(self) -> tuple[Tensor, ...]:
        """The parameters whose gradients a step of this layer needs: the factors, and W where it takes one."""
        factors = (self.lora_A, self.lora_B)
        return (*factors, self.weight) if self.trains_weight else factors

    @property
    def has_gradients(self) -> bool:
        """Whether these are all there."""
        return all(parameter.grad is not None for parameter in self.stepped_by)

    def forward(self, input: Tensor) -> Tensor:
        """x (..., n) -> (..., m)."""
        if not can_chain(input):
            y: Tensor = self._apply_to(_in_autocast_dtype(input), None)
            return y
        end, link = self.input_chains.read(input, self)
        y, end = self._apply_to(_in_autocast_dtype(input) if end is None else end, link)
        self.input_chains.hand_on(input, link, y, end)
        return y

    def _apply_to(self, x: Tensor, link: Link | None) -> Any:
        return _EffectiveLinear.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.bias, self.lora_A, self.lora_B, self.scaling, self.trains_weight, link
        )

    def extra_repr(self) -> str:
        """Shapes, rank and scaling, for `print(model)`."""
        return f"{super().extra_repr()}, r={self.r}, scaling={self.scaling:g}"


def _in_autocast_dtype(x: Tensor) -> Tensor:
    device = x.device.type
    if torch.is_autocast_enabled(device) and x.dtype != torch.float64:
        return x.to(torch.get_autocast_dtype(device))  # so that backward saves the narrow one
    return x
