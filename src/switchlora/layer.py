"""A linear layer whose weight is trained through low-rank factors, in effective-weight form (see `effective_linear`).

The layer knows neither step nor optimizer: moving A and B, and W with them, is `optimizer.SwitchLora`'s work.
"""

from typing import ClassVar

import torch
from torch import Tensor, nn

from switchlora.effective_linear import effective_linear
from switchlora.initialisation import Init, draw_candidates, initial_slots, vector_bounds
from switchlora.input_chain import InputChains, can_chain
from switchlora.precision import autocast_dtype, wide_dtype
from switchlora.shards import local, own_rows


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
        dtype = None if input.dtype == torch.float64 else autocast_dtype(input.device)
        own = (self.weight, self.bias, self.lora_A, self.lora_B, self.scaling, self.trains_weight)
        x, link = self.input_chains.read(input, dtype, self) if can_chain(input) else (None, None)
        if x is None:
            x = input if dtype is None else input.to(dtype)  # cast here, so that backward saves the narrow one
        y, end = effective_linear(x, *own, link)
        if link is not None and end is not None:
            self.input_chains.hand_on(input, link, y, end)
        return y

    def extra_repr(self) -> str:
        """Shapes, rank and scaling, for `print(model)`."""
        return f"{super().extra_repr()}, r={self.r}, scaling={self.scaling:g}"
