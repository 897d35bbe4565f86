"""APOLLO and APOLLO-Mini on the hidden matrices, AdamW on the rest.

Our own optimizer, written from the paper (`baselines.apollo`, which says why). Defaults of the paper: a quarter of the
hidden size as rank and alpha = 1; for Mini rank 1, one scale a matrix, and alpha = sqrt(128); a projection lasts 200
steps.
"""

import math
from typing import TYPE_CHECKING, Any

from switchlora.methods.dense import DenseMethod
from switchlora.methods.parameters import groups_of, with_adamw
from switchlora.methods.protocol import PROJECTING

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class ApolloMethod(DenseMethod):
    """See `protocol.Method`."""

    name = "apollo"
    lr = 1e-2
    uses = frozenset({"r"}) | PROJECTING
    alpha, per_channel = 1.0, True

    def rank(self, options: Any) -> int:
        """Of the projection."""
        return int(options.r)

    def optimizer(self, model: "nn.Module", options: Any) -> "Optimizer":
        """See `protocol.Method`."""
        from switchlora.baselines.apollo import Apollo

        hidden, *others = groups_of(model, options)
        alpha = self.alpha if options.projection_scale is None else options.projection_scale
        apollo = Apollo(
            [hidden], lr=options.lr, r=self.rank(options), alpha=alpha, gap=options.projection_gap,
            per_channel=self.per_channel, weight_decay=options.weight_decay, seed=options.seed,
        )  # fmt: skip
        return with_adamw(apollo, others, options)


class ApolloMiniMethod(ApolloMethod):
    """See `protocol.Method`."""

    name = "apollo-mini"
    uses = PROJECTING
    alpha, per_channel = math.sqrt(128), False

    def rank(self, options: Any) -> int:
        """One."""
        return 1
