"""SwitchLoRA with half the rank in the attention's matrices, and what that saves given to those of the MLP.

Full rank's change of the MLP has the larger effective rank (106 of 128 against 78, docs/evidence, E6). As many
trained numbers as with one rank for all, but for rounding.
"""

import dataclasses
from typing import Any, ClassVar

from switchlora.methods.switchlora import SwitchLoraMethod

ATTENTION, MLP = r".*\.[qkvo]_proj", r".*\.(gate|up|down)_proj"


class MlpRanks(SwitchLoraMethod):
    """See `switchlora.methods.protocol.Method`."""

    name = "mlp-ranks"
    halved: ClassVar[str] = ATTENTION
    raised: ClassVar[str] = MLP

    def prepare(self, model: Any, options: Any) -> str:
        """As usual, once it is known how many numbers a rank costs on either side."""
        sizes = {name: sum(module.weight.shape) for name, module in model.named_modules() if name.endswith("_proj")}
        attention = sum(size for name, size in sizes.items() if "self_attn" in name)
        self._exchange = attention / (sum(sizes.values()) - attention)
        return super().prepare(model, options)

    def config(self, options: Any) -> Any:
        """The usual one with two ranks."""
        saved, gain = options.r // 2, self._exchange if self.halved == ATTENTION else 1 / self._exchange
        ranks = {self.halved: options.r - saved, self.raised: options.r + int(saved * gain)}
        return dataclasses.replace(super().config(options), rank_pattern=ranks)


METHOD = MlpRanks()
