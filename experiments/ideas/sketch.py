"""SwitchLoRA whose vectors stay as they were drawn: only W moves, seen through A and B.

In effective-weight form A and B are only where the gradient is looked at: what they learn is already in W. So here the
step s(B dA + dB A) goes into W and A and B are put back; no trained vector is lost at a switch. Resets are soft, as
in `soft_reset`.
"""

from pathlib import Path
from typing import Any

from switchlora.methods.own import own_method

SoftReset: Any = type(own_method(str(Path(__file__).with_name("soft_reset.py"))))


class Sketch(SoftReset):  # type: ignore[misc]
    """See `switchlora.methods.protocol.Method`."""

    name = "sketch"

    def optimizer(self, model: Any, options: Any) -> Any:
        """The usual one, whose factors are put back after each step."""
        import torch

        optimizer = super().optimizer(model, options)
        move = optimizer._move

        @torch.no_grad()
        def move_and_put_back(group: Any, part: slice) -> None:
            factors = [factor for layer in group.layers[part] for factor in (layer.lora_A, layer.lora_B)]
            before = [factor.clone() for factor in factors]
            move(group, part)
            for factor, as_drawn in zip(factors, before, strict=True):
                factor.copy_(as_drawn)

        optimizer._move = move_and_put_back
        return optimizer


METHOD = Sketch()
