"""SwitchLoRA whose weights also follow their own gradients: orthogonalised, and without state.

Ours, not the paper's: see `switchlora.polar` for the step, what it costs, and what it is related to.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

from switchlora.methods.protocol import FOLLOWING
from switchlora.methods.switchlora import SwitchLoraMethod

if TYPE_CHECKING:
    from switchlora.config import SwitchLoraConfig


class SwitchLoraPolarMethod(SwitchLoraMethod):
    """See `protocol.Method`."""

    name = "switchlora-polar"
    lr = 2e-2
    uses = SwitchLoraMethod.uses | FOLLOWING
    shards = False

    def config(self, options: Any) -> "SwitchLoraConfig":
        """The settings of the core, with the share."""
        return dataclasses.replace(super().config(options), polar=options.polar)
