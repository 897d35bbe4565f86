"""Full-rank training with torch.optim.AdamW: what every cheaper method is held against.

Two learning rates, as everywhere here: `--lr` for the matrices that the low-rank methods would convert,
`--other-lr` for embeddings, head, norms and biases. A bf16 model keeps its moments in bf16 and rounds to nearest,
as torch does; use bf16-mixed for a fair baseline.
"""

from typing import TYPE_CHECKING, Any

from switchlora.methods.dense import DenseMethod
from switchlora.methods.parameters import BETAS, EPS, groups_of

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class FullMethod(DenseMethod):
    """See `protocol.Method`."""

    name = "full"
    lr = 1e-3
    shards = True

    def optimizer(self, model: "nn.Module", options: Any) -> "Optimizer":
        """See `protocol.Method`."""
        import torch

        groups = groups_of(model, options)
        return torch.optim.AdamW(groups, betas=BETAS, eps=EPS, weight_decay=options.weight_decay, fused=True)
