"""GaLore (galore-torch) and what is special in timing it: a singular value decomposition every 200 steps.

GaLore projects the gradient of each hidden matrix on its leading singular vectors and keeps moments of the projection
only. The projection is made anew every `UPDATE_GAP` steps, and that step costs many times an ordinary one. So the
measured rounds hold no such step, it is timed by itself, and its share, 1/200 of what it costs more, is added to get
the amortised time that a long run sees.
"""

from typing import Any

import torch
from torch import nn

from switchlora.bench.contestants import import_or_say
from switchlora.methods.parameters import hidden_and_others

UPDATE_GAP, SCALE = 200, 0.25  # as in GaLore's own pre-training scripts
NEVER = 2**31
MAX_REFRESHES, ENOUGH_SECONDS = 3, 20.0


def build_galore(model: nn.Module, r: int, lr: float) -> torch.optim.Optimizer:
    """The optimizer of an unchanged model: rank r for the hidden matrices, plain AdamW for the rest."""
    import_or_say("galore_torch")
    from galore_torch import GaLoreAdamW

    hidden, others = hidden_and_others(model)
    projected = {"rank": r, "update_proj_gap": UPDATE_GAP, "scale": SCALE, "proj_type": "std"}
    groups = [{"params": others}, {"params": hidden, **projected}]
    optimizer: torch.optim.Optimizer = GaLoreAdamW(groups, lr=lr, eps=1e-8, no_deprecation_warning=True)
    return optimizer


def refresh_in_next_step(optimizer: torch.optim.Optimizer, refresh: bool) -> None:
    """Whether the next steps decompose the gradients. The first step of all always does."""
    for state in optimizer.state.values():
        projector: Any = state.get("projector")
        if projector is not None:
            projector.update_proj_gap = 1 if refresh else NEVER


def amortised(step_seconds: float, refresh_seconds: float, plain_seconds: float) -> float:
    """A step's time with its share of a refresh: `refresh_seconds` and `plain_seconds` are of whole steps."""
    return step_seconds + max(0.0, refresh_seconds - plain_seconds) / UPDATE_GAP
