"""GaLore on the hidden matrices, AdamW on the rest: Adam in the space of the gradient's leading singular vectors.

pytorch_optimizer's. Defaults of the paper (Zhao et al. 2024, arXiv 2403.03507): a quarter of the hidden size as rank, a
projection from the singular value decomposition of a gradient every 200 steps, alpha = 0.25.
"""

from typing import TYPE_CHECKING, Any

from switchlora.methods.packaged import PackagedMethod
from switchlora.methods.parameters import BETAS, EPS
from switchlora.methods.protocol import PROJECTING

if TYPE_CHECKING:
    from torch.optim import Optimizer

ALPHA = 0.25


class GaLoreMethod(PackagedMethod):
    """See `protocol.Method`."""

    name = "galore"
    lr = 1e-2
    uses = frozenset({"r"}) | PROJECTING

    def of_hidden(self, hidden: dict[str, Any], options: Any) -> "Optimizer":
        """See `PackagedMethod`."""
        from pytorch_optimizer import GaLore

        return GaLore([projected(hidden, options, alpha_of(options))], **settings(options))


def alpha_of(options: Any) -> float:
    """The paper's alpha, its fraction of the learning rate."""
    return ALPHA if options.projection_scale is None else float(options.projection_scale)


def projected(hidden: dict[str, Any], options: Any, scale: float) -> dict[str, Any]:
    """The group with what the package asks for where a gradient is to be projected."""
    own = {"rank": options.r, "update_proj_gap": options.projection_gap, "scale": scale, "projection_type": "std"}
    return {**hidden, **own}


def settings(options: Any) -> dict[str, Any]:
    """Of Adam in the projected space."""
    return {"betas": BETAS, "eps": EPS, "weight_decay": options.weight_decay}
