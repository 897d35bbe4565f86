"""A small training run on one process, or on several by FSDP2 or DDP, for tests that compare."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard

from switchlora import SwitchLora, SwitchLoraLinear, convert
from switchlora.distributed.wrapping import data_parallel
from tests.numerics.cases import chain, config_of

BATCH = 6  # of all ranks together


def make(
    parallel: str,
    settings: dict[str, Any],
    dims: tuple[int, ...],
    dtype: torch.dtype = torch.float64,
    factor_dtype: torch.dtype | None = None,
    **of_optimizer: Any,
) -> tuple[nn.Module, SwitchLora]:
    """A converted chain, wrapped ("none", "ddp", "fsdp"), and its optimizer."""
    torch.manual_seed(3)
    config, model = config_of(**settings), chain(dims, dtype)
    convert(model, config, factor_dtype=factor_dtype)
    wrapped: nn.Module = model
    if parallel == "fsdp":
        for layer in model.children():
            if isinstance(layer, SwitchLoraLinear):
                fully_shard(layer)
        fully_shard(model)
    if parallel == "ddp":
        wrapped = data_parallel(model)
    return wrapped, SwitchLora(wrapped, config, **{"total_steps": 100, "lr": 1e-2, "weight_decay": 0.1, **of_optimizer})


def loss_of(model: nn.Module, step: int) -> Tensor:
    """The loss of this rank's rows of the batch of a step: random inputs and targets."""
    first = next(module for module in model.modules() if isinstance(module, nn.Linear))
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(BATCH, first.in_features, generator=generator, dtype=torch.float64)
    target = torch.randn(BATCH, last.out_features, generator=generator, dtype=torch.float64)
    num, rank = (dist.get_world_size(), dist.get_rank()) if dist.is_initialized() else (1, 0)
    own, dtype = slice(rank * BATCH // num, (rank + 1) * BATCH // num), first.weight.dtype
    return (model(x[own].to(dtype)) - target[own].to(dtype)).square().mean()


def train(model: nn.Module, optimizer: SwitchLora, steps: range, clip: float | None = None) -> list[float]:
    """Steps; the losses over all ranks."""
    losses = []
    for step in steps:
        loss = loss_of(model, step)
        loss.backward()
        if clip is not None:
            nn.utils.clip_grad_norm_([p for p in model.parameters() if p.requires_grad], clip)
        optimizer.step()
        optimizer.zero_grad()
        shown = loss.detach().double()
        if dist.is_initialized():
            dist.all_reduce(shown)
            shown /= dist.get_world_size()
        losses.append(float(shown))
    return losses


def whole(tensor: Any) -> Any:
    """All ranks' parts of a sharded tensor; anything else as it is."""
    return tensor.full_tensor().clone() if hasattr(tensor, "full_tensor") else tensor


def everything(model: nn.Module, optimizer: SwitchLora) -> dict[str, Any]:
    """Weights and state of a run, whole, flat."""
    flat = {f"model.{name.removeprefix('module.')}": whole(p.detach()) for name, p in model.state_dict().items()}
    state = optimizer.state_dict()
    for index, entries in state["state"].items():
        flat |= {f"state.{index}.{name}": whole(value) for name, value in entries.items()}
    for index, group in enumerate(state["param_groups"]):
        flat |= {f"group.{index}.{name}": value for name, value in group.items()}
    return flat


def run(parallel: str, steps: int = 12, clip: float | None = None, **made: Any) -> tuple[list[float], dict[str, Any]]:
    """Losses, and what there is in the end."""
    model, optimizer = make(parallel, **made)
    return train(model, optimizer, range(steps), clip), everything(model, optimizer)


def assert_close(ours: dict[str, Any], theirs: dict[str, Any], tolerance: float) -> None:
    """Floating point numbers to a tolerance, all else exactly."""
    assert ours.keys() == theirs.keys()
    for name, value in ours.items():
        if isinstance(value, Tensor) and value.is_floating_point():
            assert float((value - theirs[name]).abs().max()) <= tolerance, name
        elif isinstance(value, Tensor):
            assert torch.equal(value, theirs[name]), name
        else:
            assert value == theirs[name], name
