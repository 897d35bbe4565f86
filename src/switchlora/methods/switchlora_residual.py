"""SwitchLoRA whose weights also follow, without state, what the factors do not see of the gradient.

Ours, not the paper's: see `switchlora.residual` for the step, what it costs, and what it is related to.
"""

import dataclasses
from typing import TYPE_CHECKING, Any

from switchlora.methods.protocol import FOLLOWING
from switchlora.methods.switchlora import SwitchLoraMethod

if TYPE_CHECKING:
    from switchlora.config import SwitchLoraConfig


class SwitchLoraResidualMethod(SwitchLoraMethod):
    """See `protocol.Method`."""

    name = "switchlora-residual"
    lr = 2e-2
    uses = SwitchLoraMethod.uses | FOLLOWING
    shards = False

    def config(self, options: Any) -> "SwitchLoraConfig":
        """The settings of the core, with the share."""
        return dataclasses.replace(super().config(options), residual=options.residual)
