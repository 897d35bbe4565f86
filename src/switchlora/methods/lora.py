"""LoRA from scratch: the same factors in the same effective-weight form, never switched.

It is the control for SwitchLoRA: whatever differs between the two comes from switching (and from the
initialisation, which `--init-lora-weights` sets for either). Source: Hu et al. 2021, arXiv 2106.09685.
"""

import math
from typing import Any

from switchlora.methods.protocol import LOW_RANK
from switchlora.methods.switchlora import SwitchLoraMethod


class LoraMethod(SwitchLoraMethod):
    """See `protocol.Method`."""

    name = "lora"
    lr = 1e-2
    init_lora_weights: str | None = "lora"
    uses = LOW_RANK

    def switching(self, options: Any) -> dict[str, Any]:
        """None: the interval is infinite, and the other settings stay at their defaults."""
        return {"interval": math.inf}
