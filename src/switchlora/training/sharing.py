"""A run's model under FSDP2: shared out among the processes from the start, and whole again only where it must be.

The model comes without memory (`deferred`), is converted and sharded, and then every rank draws its own rows of what
one process would have drawn. What a checkpoint holds is taken over by whoever holds it now, whatever the strategy and
the number of processes were.
"""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from switchlora.distributed.finiteness import FiniteWatch
from switchlora.distributed.wrapping import blocks_of, shard
from switchlora.layer import SwitchLoraLinear
from switchlora.optimizer import SwitchLora
from switchlora.shards import is_sharded, local, own_rows, part_like, shard_like

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

    from switchlora.training.deferred import Recipes


def share_out(
    model: nn.Module,
    recipes: "Recipes | None",
    mesh: "DeviceMesh",
    *,
    param_dtype: torch.dtype | None,
    compile_blocks: bool,
    watch: FiniteWatch,
) -> None:
    """Shard a prepared model in place, on the mesh's device.

    Args:
        recipes: how to make its parameters, if they have no memory yet.
        param_dtype: of the arithmetic, if it is not the weights' own.
        compile_blocks: by torch.compile, each by itself; what FSDP2 does between them cannot be compiled.
        watch: is shown this rank's gradients.

    Raises:
        UserError: see `wrapping.require_shardable`.
    """
    for block in blocks_of(model) if compile_blocks else ():
        block.compile()
    shard(model, mesh=mesh, param_dtype=param_dtype, watch=watch)
    if recipes is not None:
        _fill(model, recipes, torch.device(mesh.device_type))


@torch.no_grad()
def _fill(model: nn.Module, recipes: "Recipes", device: torch.device) -> None:
    buffers = dict(model.named_buffers())
    model.to_empty(device=device)
    for name, buffer in model.named_buffers():
        buffer.copy_(buffers[name])
    transposed = transposed_in(model)
    for name, parameter in model.named_parameters():
        if name in recipes:
            shape = parameter.shape[::-1] if name in transposed else parameter.shape
            value = recipes[name].value(shape, parameter.dtype)
            value = value.T if name in transposed else value
            local(parameter).copy_(value[own_rows(parameter)] if value.dim() else value)
    for layer in model.modules():
        if isinstance(layer, SwitchLoraLinear):
            layer.reset_factors()


def transposed_in(model: nn.Module) -> set[str]:
    """The names of weights that lie the other way round than in the dense model (`conv1d`)."""
    return {f"{name}.weight" for name, module in model.named_modules() if getattr(module, "was_conv1d", False)}


def reshard(model: nn.Module) -> None:
    """Put away what a forward pass without a backward pass has left whole."""
    from torch.distributed.fsdp import FSDPModule

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.reshard()


def state_of(model: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Both state dicts, of what this process holds."""
    return {"model": model.state_dict(), "optimizer": optimizer.state_dict()}


def load(model: nn.Module, optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> None:
    """Take over a state of whole tensors, or of ones shared out as the model's own are.

    Raises:
        RuntimeError, ValueError, KeyError: it is of another model.
    """
    own = model.state_dict()
    if not any(is_sharded(tensor) for tensor in own.values()):
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        return
    if own.keys() != state["model"].keys():
        raise KeyError(f"other entries, such as {sorted(own.keys() ^ state['model'].keys())[0]}")
    for name, tensor in own.items():
        if tensor.shape != state["model"][name].shape:
            raise ValueError(f"{name} has another shape")
        local(tensor).copy_(part_like(state["model"][name], tensor))
    of_optimizer = state["optimizer"]
    optimizer.load_state_dict(of_optimizer if isinstance(optimizer, SwitchLora) else _spread(optimizer, of_optimizer))


def _spread(optimizer: torch.optim.Optimizer, state: Mapping[str, Any]) -> dict[str, Any]:
    """A state of torch's own optimizers, whose moments shall be sharded as their parameters are."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    spread = {
        number: {
            name: shard_like(value, parameter) if getattr(value, "shape", None) == parameter.shape else value
            for name, value in state["state"].get(number, {}).items()
        }
        for number, parameter in zip(numbers, parameters, strict=True)
    }
    return {**state, "state": spread}
