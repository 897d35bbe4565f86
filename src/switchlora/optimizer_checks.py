"""What `SwitchLora` refuses at construction, each with the way out."""

import logging
import math
import operator
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from switchlora.config import SwitchLoraConfig
from switchlora.conversion import FACTOR_DTYPES, check_arguments, rank_of
from switchlora.errors import UserError
from switchlora.layer import SwitchLoraLinear
from switchlora.shards import is_sharded

logger = logging.getLogger("switchlora")

DEVICES = ("cpu", "cuda")
RULES = ("adamw", "muon")
STEPPED = ("weight", "lora_A", "lora_B")  # what a step moves of a layer


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside DDP and torch.compile, so that names, which key rounding bits, are the same with and without."""
    while isinstance(model, nn.parallel.DistributedDataParallel) or hasattr(model, "_orig_mod"):
        inner = "module" if isinstance(model, nn.parallel.DistributedDataParallel) else "_orig_mod"
        model = model.get_submodule(inner)
    return model


def check_model(model: nn.Module, config: SwitchLoraConfig) -> None:
    """Refuse what is no model or no configuration, and wrappers that flatten parameters, so that no vector of a factor
    can be told from another.

    Raises:
        UserError: says what it is, or names the wrapper, and what to use.
    """
    check_arguments(model, config)
    kinds = {type(module).__name__ for module in model.modules()}
    for kind, name in (("DeepSpeedEngine", "DeepSpeed"), ("FullyShardedDataParallel", "FSDP1")):
        if kind in kinds:
            raise UserError(
                f"{name} is not supported, for it flattens the factors; use torch.distributed.fsdp.fully_shard(model)"
            )


def check_hyperparameters(
    total_steps: int, lr: float, other_lr: float | None, betas: tuple[float, float], eps: float, weight_decay: float
) -> None:
    """Refuse values of the wrong type or out of range.

    Raises:
        UserError: names the argument, its value and the rule.
    """
    is_count = isinstance(total_steps, int | np.integer) and not isinstance(total_steps, bool)
    if not (is_count and total_steps >= 1):
        raise UserError(f"total_steps={total_steps!r}: must be an integer, at least 1 optimizer step")
    if not (other_lr is None or _is_rate(other_lr)):
        raise UserError(f"other_lr={other_lr!r}: must be a finite number, 0 or more, or None")
    check_group_values({"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay})


def check_group_values(group: Mapping[str, Any]) -> None:
    """Refuse values of a parameter group that are of the wrong type or out of range, and steps that are none of ours.

    Raises:
        UserError: names the value and the rule.
    """
    rate = "must be a finite number, 0 or more"
    for name, holds, rule in (
        ("lr", _is_rate, rate),
        ("betas", _is_pair_of_betas, "must be two numbers in [0, 1)"),
        ("eps", lambda eps: _is_rate(eps) and eps > 0, "must be a finite number above 0"),
        ("weight_decay", _is_rate, rate),
        ("maximize", operator.not_, "is not supported; negate the loss"),
        ("amsgrad", operator.not_, "is not supported; leave it out"),
    ):
        if name in group and not holds(group[name]):
            raise UserError(f"{name}={group[name]!r}: {rule}")


def plain_numbers(group: Mapping[str, Any]) -> dict[str, Any]:
    """Those of its values that `check_group_values` lets pass, as Python's own, so that states hold nothing else."""
    numbers = {name: float(group[name]) for name in ("lr", "eps", "weight_decay") if name in group}
    return numbers | ({"betas": tuple(map(float, group["betas"]))} if "betas" in group else {})


def check_rule(rule: object, momentum: object, fused: bool | None) -> None:
    """Refuse rules that do not exist, and kernels for one that has none.

    Raises:
        UserError: names the argument and the alternative.
    """
    if rule not in RULES:
        raise UserError(f"rule={rule!r}: must be {' or '.join(map(repr, RULES))}")
    if not (_is_rate(momentum) and momentum < 1):  # type: ignore[operator]
        raise UserError(f"momentum={momentum!r}: must be a number in [0, 1)")
    if fused and rule != "adamw":
        raise UserError(f"fused=True: there are no kernels for rule={rule!r}; use fused=None")


def check_moment_dtype(moment_dtype: object) -> None:
    """Refuse formats of the moments that are not supported.

    Raises:
        UserError: names the format, why not, and the alternative.
    """
    if moment_dtype is None or moment_dtype in (torch.float32, torch.bfloat16):
        return
    if not isinstance(moment_dtype, torch.dtype):
        reason = "must be a torch.dtype"
    elif moment_dtype == torch.float16:
        reason = "second moments are squares of gradients, and underflow in float16"
    elif moment_dtype == torch.float64:
        reason = "moments are float64 only beside float64 parameters, where None makes them so"
    elif moment_dtype.itemsize == 1:
        reason = "8-bit state would lose what a reset of single vectors needs: a scale of their own"
    else:
        reason = "is no format for moments"
    raise UserError(f"moment_dtype={moment_dtype!r}: {reason}; use torch.bfloat16, or None for float32")


def check_fused_backward_flag(fused_backward: object) -> None:
    """Refuse what is only truthy.

    Raises:
        UserError: names the value.
    """
    if not isinstance(fused_backward, bool):
        raise UserError(f"fused_backward={fused_backward!r}: must be True or False")


def _is_rate(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() == 1 and value.is_floating_point() and 0 <= float(value) < math.inf
    is_number = isinstance(value, int | float | np.integer | np.floating) and not isinstance(value, bool)
    return is_number and 0 <= float(value) < math.inf


def _is_pair_of_betas(value: object) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(_is_rate(beta) and beta < 1 for beta in value)


def check_layers(layers: list[SwitchLoraLinear], config: SwitchLoraConfig) -> None:
    """Refuse layers that were not converted, not by this configuration, or that are not ready to train.

    Raises:
        UserError: names the layer and the way out.
    """
    if not layers:
        raise UserError("the model has no SwitchLoraLinear; call switchlora.convert(model, config) first")
    names = [layer.name for layer in layers]
    owners: dict[Tensor, str] = {}
    for layer in layers:
        for name in STEPPED:
            if owners.setdefault(getattr(layer, name), layer.name) != layer.name:
                raise UserError(
                    f"layers {owners[getattr(layer, name)]} and {layer.name} share their {name}, and a step of one "
                    "would move it under the other; share the layer, or nothing"
                )
        if names.count(layer.name) > 1:
            raise UserError(
                f"two layers were converted under the name {layer.name!r}, and a name keys a layer's choices; convert "
                "the whole model in one call"
            )
        r = rank_of(layer.name, config)
        follows = config.polar > 0
        settings = (layer.r, layer.scaling, layer.init_lora_weights, layer.seed, layer.trains_weight)
        if settings != (r, config.lora_alpha / r, config.init_lora_weights, config.seed, follows):
            raise UserError(
                f"layer {layer.name} was converted with another configuration; give SwitchLora the same one"
            )
        if layer.weight.requires_grad != follows or not (layer.lora_A.requires_grad and layer.lora_B.requires_grad):
            must = "must, with polar above 0" if follows else "must not"
            raise UserError(
                f"layer {layer.name}: lora_A and lora_B must require gradients and weight {must}; undo the "
                "requires_grad_() that changed it after convert"
            )
        if follows and is_sharded(layer.weight):
            raise UserError(
                f"polar={config.polar:g}: needs whole matrices, and layer {layer.name} is sharded; use DDP, or polar=0"
            )
        for name in STEPPED:
            check_tensor(f"layer {layer.name}: {name}", getattr(layer, name), layers[0].weight.device)


def warn_of_idle_layers(layers: list[SwitchLoraLinear], done: set[str]) -> None:
    """A model that reads `layer.weight` itself, instead of calling the layer, would never train that layer."""

    def trains(layer: SwitchLoraLinear) -> bool:
        return layer.has_gradients or (not layer.trains_weight and layer.weight.grad is not None)

    idle = [layer.name for layer in layers if layer.name not in done and not trains(layer)]
    if idle:
        logger.warning("%d converted layers got no gradient in the first step, such as %s", len(idle), idle[0])


def check_tensor(name: str, tensor: Tensor, device: torch.device) -> None:
    """Refuse a parameter that no step could move: without storage, in a format that cannot train, or lying apart.

    Args:
        name: for the message, such as "embed.weight".
        tensor: the parameter.
        device: of the first converted layer.

    Raises:
        UserError: names the parameter and the way out.
    """
    if tensor.is_meta:
        raise UserError(
            f"{name} is on the meta device; call model.to_empty(device=...) and reset_parameters() on its modules "
            "before SwitchLora(model, ...)"
        )
    if tensor.device.type not in DEVICES:
        raise UserError(
            f"{name} is on {tensor.device.type}, where this was never tested; use {' or '.join(DEVICES)}: "
            'model.to("cpu")'
        )
    if tensor.dtype not in FACTOR_DTYPES:
        raise UserError(
            f"{name} is {tensor.dtype}, which training overflows or cannot move; use bfloat16 or float32: "
            "model.bfloat16() or model.float()"
        )
    if tensor.device != device:
        raise UserError(
            f"{name} is on {tensor.device}, the first converted layer on {device}, and a model on several devices "
            f'was never tested; put it on one: model.to("{device}")'
        )
