"""Optimizers of the package pytorch_optimizer, with state that is plain data and so can be saved and resumed.

A checkpoint must not be able to run code, so it is read with `weights_only=True`: tensors and numbers, no objects. But
GaLore and Fira keep a Python object beside the moments of every matrix, their projector, and Stable-SPAM counts all its
steps in an attribute that `Together`, which shares groups and state, does not see. In a state_dict the projector is
what outlives a step of it, and the count is an entry of the group; loading makes objects and attributes of them again.
Everything else that those three know is set at construction.
"""

from collections.abc import Iterator
from typing import Any

from torch.optim import Optimizer

from switchlora.baselines.together import Together

OF_PROJECTOR = ("ortho_matrix", "last_svd_step")  # what changes in a projector; its settings are in the group
OF_OPTIMIZER = ("total_step",)  # what changes in an optimizer beside its groups and state


def keep_plain(optimizer: Together) -> Together:
    """Let `state_dict` of the optimizer be plain data, and `load_state_dict` take it back."""
    optimizer.register_state_dict_post_hook(_to_plain)
    optimizer.register_load_state_dict_post_hook(_from_plain)
    return optimizer


def at_fraction(optimizer: Optimizer, alpha: float) -> Optimizer:
    """Let the optimizer step with alpha times its learning rates, and the weight decay that it would have without."""
    whole: list[tuple[float, float]] = []

    def lower(one: Optimizer, *_: Any) -> None:
        whole[:] = [(group["lr"], group["weight_decay"]) for group in one.param_groups]
        for group in one.param_groups:
            group["lr"] *= alpha
            group["weight_decay"] /= alpha

    def restore(one: Optimizer, *_: Any) -> None:
        for group, (lr, weight_decay) in zip(one.param_groups, whole, strict=True):
            group["lr"], group["weight_decay"] = lr, weight_decay

    optimizer.register_step_pre_hook(lower)
    optimizer.register_step_post_hook(restore)
    return optimizer


def _to_plain(optimizer: Optimizer, state_dict: dict[str, Any]) -> dict[str, Any]:
    state = {number: dict(entries) for number, entries in state_dict["state"].items()}  # theirs are the live ones
    for entries in state.values():
        if "projector" in entries:
            entries["projector"] = {name: getattr(entries["projector"], name) for name in OF_PROJECTOR}
    for owner, group in zip(_owners(optimizer), state_dict["param_groups"], strict=True):
        group |= {name: getattr(owner, name) for name in OF_OPTIMIZER if hasattr(owner, name)}
    return {**state_dict, "state": state}


def _from_plain(optimizer: Optimizer) -> None:
    from pytorch_optimizer.optimizer.utils.galore import GaLoreProjector

    for owner, group in zip(_owners(optimizer), optimizer.param_groups, strict=True):
        for name in OF_OPTIMIZER:
            if name in group:
                setattr(owner, name, group.pop(name))
        for parameter in group["params"]:
            entries = optimizer.state.get(parameter, {})
            if "projector" in entries:
                settings = {key: group[key] for key in ("rank", "update_proj_gap", "scale", "projection_type")}
                projector = GaLoreProjector(**settings)
                vars(projector).update(entries["projector"])
                entries["projector"] = projector


def _owners(optimizer: Optimizer) -> Iterator[Optimizer]:
    """The optimizer of each group."""
    assert isinstance(optimizer, Together)
    return (one for one in optimizer.optimizers for _ in one.param_groups)
