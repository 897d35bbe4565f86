"""Which parameters a method for hidden matrices is for, and which are left to AdamW: the same for all methods.

The head on AdamW is an advantage where a rival projects it, so nobody's head is projected.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch import Tensor, nn
    from torch.optim import Optimizer

    from switchlora.baselines.together import Together

BETAS, EPS = (0.9, 0.999), 1e-8  # of every AdamW here


def hidden_and_others(model: "nn.Module") -> tuple[list["Tensor"], list["Tensor"]]:
    """The trainable weights of all linear layers but the LM head; and embeddings, head, norms and biases."""
    from switchlora.conversion import hidden_linears

    hidden = [linear.weight for linear in hidden_linears(model) if linear.weight.requires_grad]
    taken = set(hidden)
    return hidden, [p for p in model.parameters() if p.requires_grad and p not in taken]


def groups_of(model: "nn.Module", options: Any, **of_hidden: Any) -> list[dict[str, Any]]:
    """Both as parameter groups with their learning rates; `of_hidden` goes into the first."""
    hidden, others = hidden_and_others(model)
    groups = [{"params": hidden, "lr": options.lr, **of_hidden}, {"params": others, "lr": options.other_lr}]
    return [group for group in groups if group["params"]]


def clipped(trainable: Sequence["Tensor"], optimizer: "Optimizer") -> list["Tensor"]:
    """Of these, in their order, what counts in the norm of gradients that is clipped: not groups of `clip: False`."""
    apart = {p for group in optimizer.param_groups if not group.get("clip", True) for p in group["params"]}
    return [p for p in trainable if p not in apart]


def summary(model: "nn.Module", what: str) -> str:
    """What a method that leaves the model as it is says of it."""
    return f"{what}: {sum(p.numel() for p in model.parameters() if p.requires_grad):,} trainable parameters"


def with_adamw(of_hidden: "Optimizer", others: list[dict[str, Any]], options: Any) -> "Together":
    """One optimizer of both: `of_hidden`, and torch's AdamW for the other groups, the same for every method."""
    import torch

    from switchlora.baselines.together import Together

    if not others:
        return Together([of_hidden])
    adamw = torch.optim.AdamW(others, betas=BETAS, eps=EPS, weight_decay=options.weight_decay, fused=True)
    return Together([of_hidden, adamw])
