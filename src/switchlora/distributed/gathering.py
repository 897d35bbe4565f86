"""A tensor that is shared out, whole again in one rank's host memory.

FSDP2's own gathering leaves the whole on every rank. Here one keeps it, and the others drop what they got.
"""

import torch
from torch import Tensor

from switchlora.shards import Ranks, is_sharded, local


def whole_on(rank: int, tensor: Tensor, ranks: Ranks) -> Tensor | None:
    """All of a sharded tensor in host memory on one rank, None on others; one that is not sharded as it is.

    Args:
        rank: of `ranks`, that share the tensor out; they talk on the device of their mesh, wherever it lies.
    """
    import torch.distributed as dist

    if not is_sharded(tensor):
        return tensor
    (dim,) = {p.dim for p in tensor.placements if not p.is_replicate()}  # type: ignore[attr-defined]
    held, size = local(tensor.detach()).to(ranks.mesh.device_type).movedim(dim, 0), tensor.shape[dim]
    block = ranks.block(size)
    padded = held.new_zeros(block, *held.shape[1:])
    padded[: len(held)] = held
    everybody = [torch.empty_like(padded) for _ in range(ranks.num)] if ranks.rank == rank else None
    dist.gather(padded, everybody, group=ranks.group, group_dst=rank)
    if everybody is None:
        return None
    return torch.cat([part.cpu() for part in everybody])[:size].movedim(0, dim).contiguous()
