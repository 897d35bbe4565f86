"""SwitchLoRA from the paper's start that switches the vectors of A alone, as it does from LoRA's start.

E4 saw LoRA's start, switched, ahead of the paper's at r = h/16. Is it the start, or that B keeps what it has learnt?
"""

from typing import Any

from switchlora.config import SwitchLoraConfig
from switchlora.methods.switchlora import SwitchLoraMethod


class OneSidedConfig(SwitchLoraConfig):
    """A configuration by which nothing of B is ever switched."""

    @property
    def switches_B(self) -> bool:
        """Never."""
        return False


class OneSided(SwitchLoraMethod):
    """See `switchlora.methods.protocol.Method`."""

    name = "one-sided"

    def config(self, options: Any) -> SwitchLoraConfig:
        """The usual one, one-sided."""
        return OneSidedConfig(**vars(super().config(options)))


METHOD = OneSided()
