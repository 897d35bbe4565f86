"""RACS on the hidden matrices, AdamW on the rest: gradients scaled by row and by column, next to no state.

Our own optimizer, written from the paper (`baselines.racs`, which says why). Defaults of the paper (Gong et al. 2025,
arXiv 2502.07752): alpha = 0.05, beta = 0.9, learning rate 0.02.
"""

from typing import TYPE_CHECKING, Any

from switchlora.methods.dense import DenseMethod
from switchlora.methods.parameters import groups_of, with_adamw

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class RacsMethod(DenseMethod):
    """See `protocol.Method`."""

    name = "racs"
    lr = 2e-2

    def optimizer(self, model: "nn.Module", options: Any) -> "Optimizer":
        """See `protocol.Method`."""
        from switchlora.baselines.racs import Racs

        hidden, *others = groups_of(model, options)
        return with_adamw(Racs([hidden], lr=options.lr, weight_decay=options.weight_decay), others, options)
