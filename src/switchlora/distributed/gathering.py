"""Tensors made whole again, one at a time, on the first rank's host: for checkpoints and the dense model.

FSDP2's own gathering leaves the whole on every rank. Here only the first keeps it, in host memory, and the others drop
what they got.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from switchlora.shards import Ranks, is_sharded, local


def whole_on_first(tensor: Tensor, ranks: Ranks) -> Tensor | None:
    """All of a sharded tensor in host memory on the first rank, None on others; one that is not sharded as it is.

    Args:
        ranks: that share it out; they talk on the device of their mesh, wherever the tensor lies.
    """
    import torch.distributed as dist

    if not is_sharded(tensor):
        return tensor
    (dim,) = {p.dim for p in tensor.placements if not p.is_replicate()}  # type: ignore[attr-defined]
    held, size = local(tensor.detach()).to(ranks.mesh.device_type).movedim(dim, 0), tensor.shape[dim]
    block = ranks.block(size)
    padded = held.new_zeros(block, *held.shape[1:])
    padded[: len(held)] = held
    everybody = [torch.empty_like(padded) for _ in range(ranks.num)] if ranks.rank == 0 else None
    dist.gather(padded, everybody, group=ranks.group, group_dst=0)
    if everybody is None:
        return None
    return torch.cat([part.cpu() for part in everybody])[:size].movedim(0, dim).contiguous()


def state_on_first(state: Mapping[str, Any], ranks: Ranks) -> dict[str, Any]:
    """A state dict (nested mappings and lists of tensors and numbers) with every tensor as `whole_on_first` has it."""

    def walk(value: Any) -> Any:
        if isinstance(value, Tensor):
            return whole_on_first(value, ranks)
        if isinstance(value, Mapping):
            return {key: walk(item) for key, item in value.items()}
        return [walk(item) for item in value] if isinstance(value, list) else value

    return {key: walk(value) for key, value in state.items()}
