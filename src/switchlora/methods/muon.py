"""Full-rank training with Muon on the hidden matrices and AdamW on the rest: the full-rank state of the art.

torch.optim.Muon (on the CPU without its bfloat16, `baselines.muon`) with Nesterov momentum 0.95, its five Newton-Schulz
steps, and updates scaled to AdamW's root mean square (0.2 sqrt(max(rows, columns)), Liu et al. 2025, arXiv 2502.16982),
so that `--lr` means what it means to AdamW.
Source: Jordan et al. 2024, kellerjordan.github.io/posts/muon.
"""

from typing import TYPE_CHECKING, Any

from switchlora.methods.dense import DenseMethod
from switchlora.methods.parameters import groups_of, with_adamw

if TYPE_CHECKING:
    from torch import nn
    from torch.optim import Optimizer


class MuonMethod(DenseMethod):
    """See `protocol.Method`."""

    name = "muon"
    lr = 5e-3

    def optimizer(self, model: "nn.Module", options: Any) -> "Optimizer":
        """See `protocol.Method`."""
        from switchlora.baselines.muon import Muon

        hidden, *others = groups_of(model, options)
        muon = Muon([hidden], momentum=0.95, weight_decay=options.weight_decay, adjust_lr_fn="match_rms_adamw")
        return with_adamw(muon, others, options)
