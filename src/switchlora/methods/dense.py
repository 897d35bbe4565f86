"""What the methods share that leave the model as it is and differ in the optimizer alone."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from switchlora.methods.parameters import summary

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class DenseMethod:
    """See `protocol.Method`; a subclass gives name, lr and the optimizer."""

    name: str
    init_lora_weights: str | None = None
    uses: frozenset[str] = frozenset()
    shards = False

    def prepare(self, model: "nn.Module", options: Any) -> str:
        """See `protocol.Method`; the model stays as it is."""
        return summary(model, self.name)

    def metrics(self, optimizer: "Optimizer") -> Mapping[str, float]:
        """See `protocol.Method`."""
        return {}

    def totals(self, optimizer: "Optimizer") -> Mapping[str, int]:
        """See `protocol.Method`."""
        return {}

    def finish(self, model: "nn.Module") -> None:
        """See `protocol.Method`; the model is dense already."""
