"""What stands in a parameter's `.grad` between a step inside the backward pass and `step()`: nothing, and it says so.

Were it None, `clip_grad_norm_` would pass over it and clip nothing, and nobody would hear of it; transformers.Trainer
clips unless it is told not to. This holds no memory, has the shape, dtype and device of the gradient that was freed,
and whoever computes with it is told why that cannot be.

Its norm, which nobody knows any more, counts as infinite. Clipping to a finite norm then multiplies by 0, and is
refused; "clipping" to an infinite one, which is how transformers.Trainer measures what it does not clip, by NaN,
and is let pass.
"""

import math
from typing import Any

import torch
from torch import Tensor

from switchlora.errors import UserError


def twice(name: str) -> UserError:
    """What is due where a layer or parameter that was stepped gets gradients again."""
    return UserError(
        f"fused_backward=True: {name} got gradients twice without a step() between, and was stepped by the first ones; "
        "accumulation, and a layer in several reentrant checkpoints, need fused_backward=False"
    )


class SpentGradient(Tensor):
    """Stands for the gradient of `parameter`, whose name is `name`."""

    spent_by: str

    @staticmethod
    def __new__(cls, parameter: Tensor, name: str) -> "SpentGradient":
        """Takes its shape and format from the parameter, and no memory."""
        made = torch.Tensor._make_wrapper_subclass(
            cls, parameter.shape, dtype=parameter.dtype, device=parameter.device, strides=parameter.stride()
        )
        assert isinstance(made, SpentGradient)
        made.spent_by = name
        return made

    def __init__(self, parameter: Tensor, name: str) -> None:
        """See `__new__`."""

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        """For debuggers."""
        return f"SpentGradient({self.spent_by})"

    def __tensor_flatten__(self) -> tuple[list[str], None]:
        """It is made of no tensors."""
        return [], None

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Whatever is to be computed with it is refused, but for measuring it."""
        if func.overloadpacket is torch.ops.aten.linalg_vector_norm:
            return torch.full((), math.inf, dtype=args[0].dtype, device=args[0].device)
        if func is torch.ops.aten.mul_.Tensor and isinstance(args[1], Tensor) and args[1].isnan().all():
            return args[0]
        flat, _ = torch.utils._pytree.tree_flatten((args, kwargs))
        name = next(one.spent_by for one in flat if isinstance(one, SpentGradient))
        if func.overloadpacket in (torch.ops.aten.add, torch.ops.aten.add_):
            raise twice(name)
        if func.overloadpacket is torch.ops.aten._amp_foreach_non_finite_check_and_unscale_:
            raise UserError(
                f"fused_backward=True: torch.amp.GradScaler scaled the loss, and {name} was stepped by scaled "
                "gradients before it could unscale them; train in bfloat16 without it, or use fused_backward=False"
            )
        raise UserError(
            f"fused_backward=True: {name} was stepped in the backward pass and its gradient freed, so that there is "
            "nothing to clip, to measure, or for DDP to average; leave clipping out (max_grad_norm=0) and DDP off, or "
            "use fused_backward=False"
        )
