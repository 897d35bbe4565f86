"""Every parameter that trains is in exactly one group of the optimizer.

factors   lora_A and lora_B of all converted layers; here are also the counts of steps and of switches
weights   of these layers, only with `config.polar`: the factors' learning rate, of which the step takes that share
          (see `polar`), without state; their decay is in the factors' step, so here it is 0. clip: False, for a step
          that does not depend on the gradient's size has nothing to gain from a norm that is clipped
others    embeddings, head, norms, biases: at a learning rate of their own; and every group that is added later
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from switchlora.config import SwitchLoraConfig
from switchlora.layer import SwitchLoraLinear
from switchlora.optimizer_checks import check_group_values, check_tensor, plain_numbers, unwrapped
from switchlora.stats import SwitchCounts


def parameter_groups(
    model: nn.Module,
    layers: list[SwitchLoraLinear],
    config: SwitchLoraConfig,
    lr: float,
    other_lr: float | None,
    rule: str,
    momentum: float,
) -> tuple[list[dict[str, Any]], dict[Tensor, str]]:
    """The groups, and the names of what is in the last one.

    Args:
        model: with the converted layers in it.
        lr: of the factors; other_lr: of the others, None: lr.
        rule: of the factors; momentum: of "muon".
    """
    lr = float(lr)
    factors = [factor for layer in layers for factor in (layer.lora_A, layer.lora_B)]
    groups: list[dict[str, Any]] = [{"params": factors, "lr": lr, "step": 0, **dataclasses.asdict(SwitchCounts())}]
    groups[0] |= {"momentum": float(momentum)} if rule == "muon" else {}
    if config.polar:
        groups.append({"params": [layer.weight for layer in layers], "lr": lr, "weight_decay": 0.0, "clip": False})
    taken = {parameter for group in groups for parameter in group["params"]}
    others = {p: name for name, p in unwrapped(model).named_parameters() if p.requires_grad and p not in taken}
    if others:
        groups.append({"params": list(others), "lr": lr if other_lr is None else float(other_lr)})
    return groups, dict(others.items())


def num_own_groups(config: SwitchLoraConfig) -> int:
    """How many groups come before those of ordinary parameters."""
    return 2 if config.polar else 1


def checked_group(group: dict[str, Any], names: Mapping[Tensor, str], device: torch.device) -> dict[str, Any]:
    """A group that is added later, with what an iterator gave as a list, and numbers as Python's own.

    Args:
        group: as in `torch.optim.Optimizer.add_param_group`; what torch refuses itself is left to it.
        names: of parameters, where they have any.
        device: of the model.

    Raises:
        UserError: names the parameter, or the value, and the way out.
    """
    if not isinstance(group, dict) or isinstance(group["params"], set):
        return group
    check_group_values(group)
    given = group["params"]
    group["params"] = [given] if isinstance(given, Tensor) else list(given)
    for place, parameter in enumerate(group["params"]):
        if isinstance(parameter, Tensor):
            check_tensor(names.get(parameter, f"parameter {place} of the group"), parameter, device)
    group.update(plain_numbers(group))
    return group
