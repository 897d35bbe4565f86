"""Stable-SPAM on the hidden matrices, AdamW on the rest: Adam on gradients whose spikes and norms are evened out.

pytorch_optimizer's. Defaults of the official code for the paper (Huang et al. 2025, arXiv 2502.17055): gamma 0.7, 0.9
and 0.999, moments reset every 1,000 steps. As much state as AdamW.
"""

from typing import TYPE_CHECKING, Any

from switchlora.methods.packaged import PackagedMethod
from switchlora.methods.parameters import BETAS, EPS

if TYPE_CHECKING:
    from torch.optim import Optimizer


class StableSpamMethod(PackagedMethod):
    """See `protocol.Method`."""

    name = "stable-spam"
    lr = 1e-3

    def of_hidden(self, hidden: dict[str, Any], options: Any) -> "Optimizer":
        """See `PackagedMethod`."""
        from pytorch_optimizer import StableSPAM

        # foreach: the same rule, but it asks the device for no numbers on the way, which a dry run does not have
        return StableSPAM([hidden], betas=BETAS, eps=EPS, weight_decay=options.weight_decay, foreach=True)
