"""Parameters of which every rank holds some rows: what FSDP2 (`fully_shard`) makes of a model, seen from here.

A sharded parameter is a DTensor: one shape for all ranks, and on each a block of ceil(rows / ranks) rows, of which the
last ones may be shorter or empty. W (m, n), A (r, n) and B (m, r) of a layer are all split so. What a step computes on
rows of its own it computes on `local` tensors, which share their memory with the parameter; where it needs others',
`Ranks` says whose they are. A tensor that is not sharded is its own whole, and one rank holds it all.

Vectors lie across that: a_k is one row of A, b_k a column of B. Candidates (c, length) are split along their length,
so B's columns lie where B's rows do, and an exchange of b_k needs nobody else (`vector_part`).
"""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from switchlora.errors import UserError

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup
    from torch.distributed.device_mesh import DeviceMesh


@dataclasses.dataclass(frozen=True)
class Ranks:
    """Those that share the rows of a parameter out among them.

    mesh, dim: FSDP2's mesh, and which of its dimensions they are; with HSDP the other one holds copies.
    """

    mesh: "DeviceMesh"
    dim: int

    @property
    def num(self) -> int:
        """How many they are."""
        return int(self.mesh.size(self.dim))

    @property
    def rank(self) -> int:
        """Which of them this process is."""
        return int(self.mesh.get_local_rank(self.dim))

    @property
    def group(self) -> "ProcessGroup":
        """Over which they talk."""
        return self.mesh.get_group(self.dim)

    def block(self, size: int) -> int:
        """How many of `size` rows or columns the first rank has; none has more."""
        return -(-size // self.num)

    def part(self, size: int, rank: int | None = None) -> slice:
        """Those of `size` rows or columns that a rank has; this one by default."""
        block, rank = self.block(size), self.rank if rank is None else rank
        return slice(min(rank * block, size), min((rank + 1) * block, size))

    def sizes(self, size: int) -> list[int]:
        """How many of `size` rows or columns each rank has."""
        parts = [self.part(size, rank) for rank in range(self.num)]
        return [part.stop - part.start for part in parts]


def is_sharded(tensor: Tensor) -> bool:
    """Whether it is a DTensor (without importing what that takes, where nobody has)."""
    return hasattr(tensor, "placements") and hasattr(tensor, "to_local")


def local(tensor: Tensor) -> Tensor:
    """What this rank holds of a tensor, outside autograd, in the same memory; with its gradient, if it has one."""
    if not is_sharded(tensor):
        return tensor
    held: Tensor = tensor.to_local().detach()  # type: ignore[attr-defined]
    if tensor.grad is not None:
        held.grad = tensor.grad.to_local() if is_sharded(tensor.grad) else tensor.grad  # type: ignore[attr-defined]
    return held


def locals_of(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The same entries, each as `local` has it."""
    return {name: local(tensor) for name, tensor in state.items()}


def ranks_of(tensor: Tensor) -> Ranks | None:
    """Those that share a parameter's rows, or None where this rank has them all.

    Raises:
        UserError: it is split in another way than by rows.
    """
    if not is_sharded(tensor):
        return None
    placements: tuple[Any, ...] = tensor.placements  # type: ignore[attr-defined]
    split = [dim for dim, placement in enumerate(placements) if not placement.is_replicate()]
    if not split:
        return None
    if len(split) > 1 or type(placements[split[0]]).__name__ != "Shard" or placements[split[0]].dim != 0:
        raise UserError(
            f"a parameter is placed as {placements}: only rows can be shared out, as fully_shard does by itself; leave "
            "shard_placement_fn and tensor parallelism out"
        )
    return Ranks(tensor.device_mesh, split[0])  # type: ignore[attr-defined]


def own_rows(tensor: Tensor) -> slice:
    """Which rows of the whole this rank holds."""
    ranks, size = ranks_of(tensor), tensor.shape[0] if tensor.dim() else 1
    return slice(0, size) if ranks is None else ranks.part(size)


def vector_part(weight: Tensor, side: str) -> slice:
    """Which entries of each candidate of side "A" (n of them) or "B" (m) lie with this rank's rows of W (m, n)."""
    size, ranks = weight.shape[1 if side == "A" else 0], ranks_of(weight)
    return slice(0, size) if ranks is None else ranks.part(size)


def spread_vectors(held: Tensor, weight: Tensor, length: int) -> Tensor:
    """Candidates (c, length) of which this rank holds `held`, as one tensor of all ranks that share W's rows.

    It lies where `held` does, also in host memory beside a model on an accelerator.
    """
    ranks = ranks_of(weight)
    if ranks is None:
        return held
    from torch.distributed.tensor import DTensor, Replicate, Shard

    mesh = ranks.mesh
    if held.device.type != mesh.device_type:
        from torch.distributed.device_mesh import DeviceMesh

        mesh = DeviceMesh(held.device.type, mesh.mesh, mesh_dim_names=mesh.mesh_dim_names, _init_backend=False)
    placements = [Shard(1) if dim == ranks.dim else Replicate() for dim in range(mesh.ndim)]
    spread: Tensor = DTensor.from_local(
        held, mesh, placements, run_check=False, shape=torch.Size((held.shape[0], length)), stride=(length, 1)
    )
    return spread


def part_like(source: Tensor, target: Tensor) -> Tensor:
    """What this rank holds of `source`, if it is split as `target` is, or would be, if it is whole."""
    if is_sharded(source) or not is_sharded(target):
        return local(source)
    for dim, placement in enumerate(target.placements):  # type: ignore[attr-defined]
        if not placement.is_replicate():
            part = Ranks(target.device_mesh, dim).part(target.shape[placement.dim])  # type: ignore[attr-defined]
            source = source.narrow(placement.dim, part.start, part.stop - part.start)
    return source


def shard_like(whole: Tensor, parameter: Tensor) -> Tensor:
    """A whole tensor, shared out as a parameter of its shape is."""
    if not is_sharded(parameter):
        return whole
    return laid_out_like(part_like(whole, parameter).to(parameter.device).clone(), parameter)


def laid_out_like(held: Tensor, pattern: Tensor) -> Tensor:
    """What this rank holds, as one tensor of all ranks: of a sharded pattern's shape, and shared out as it is."""
    from torch.distributed.tensor import DTensor

    mesh, placements = pattern.device_mesh, pattern.placements  # type: ignore[attr-defined]
    shared: Tensor = DTensor.from_local(
        held, mesh, placements, run_check=False, shape=pattern.shape, stride=pattern.stride()
    )
    return shared
