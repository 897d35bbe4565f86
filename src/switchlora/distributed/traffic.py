"""How many bytes a rank hands to collectives, counted where they pass, not worked out from shapes.

Every collective, of DDP's reducer, of FSDP2 and of ours, is an operator of torch's own dispatcher (`c10d::allreduce_`
and so on), and a dispatch mode sees each call with its tensors. Counted are the numbers that are put in: for a gather
and an all-to-all what this rank has to give, for a reduction its whole operand. What then goes over a wire depends on
the algorithm and the number N of ranks: a ring sends 2 (N - 1) / N of an all-reduce's operand, (N - 1) / N of a
reduce-scatter's, and N - 1 times what is given to an all-gather (`ring_bytes`).

The mode costs time with every operator, so a run counts in some of its steps only.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

KINDS = {"allreduce": "all_reduce", "allgather": "all_gather", "reduce_scatter": "reduce_scatter"}
KINDS |= {"alltoall": "all_to_all", "broadcast": "broadcast", "gather": "gather", "scatter": "scatter"}


@dataclasses.dataclass
class Traffic:
    """Bytes handed over since the start, by kind of collective."""

    bytes_by_kind: dict[str, int] = dataclasses.field(default_factory=dict)

    @property
    def total_bytes(self) -> int:
        """Of all kinds."""
        return sum(self.bytes_by_kind.values())

    def ring_bytes(self, num_ranks: int) -> float:
        """What a rank sends if collectives go round a ring."""
        return ring_bytes(self.bytes_by_kind, num_ranks)


def ring_bytes(bytes_by_kind: Mapping[str, float], num_ranks: int) -> float:
    """What a rank sends if collectives go round a ring, of what it hands over by kind; 0 where nothing is."""
    share = (num_ranks - 1) / num_ranks
    factors = {"all_reduce": 2 * share, "all_gather": num_ranks - 1.0}
    return sum(factors.get(kind, share) * num for kind, num in bytes_by_kind.items())


class counted(TorchDispatchMode):  # type: ignore[no-untyped-call]  # small, as torch.no_grad is
    """Count the collectives inside: `with counted() as traffic:`."""

    def __init__(self) -> None:
        from torch.distributed.tensor import DTensor

        super().__init__()  # type: ignore[no-untyped-call]
        self.traffic, self._compound = Traffic(), DTensor

    def __enter__(self) -> Traffic:
        super().__enter__()  # type: ignore[no-untyped-call]
        return self.traffic

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, self._compound) for kind in types):
            return NotImplemented  # what it is made of comes by here again, with collectives of its own
        if function.namespace in ("c10d", "_c10d_functional"):
            self._count(function, args, kwargs or {})
        return function(*args, **(kwargs or {}))

    def _count(self, function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        name = function._schema.name.partition("::")[2].strip("_")
        kind = next((kind for start, kind in KINDS.items() if name.replace("all_", "all").startswith(start)), None)
        if kind is None:  # barriers, waits
            return
        given = dict(zip((argument.name for argument in function._schema.arguments), args, strict=False)) | kwargs
        source = next(
            given[name] for name in ("input_tensors", "input_tensor", "inputs", "input", "tensors") if name in given
        )
        num_bytes = sum(tensor.numel() * tensor.element_size() for tensor in _tensors(source))
        self.traffic.bytes_by_kind[kind] = self.traffic.bytes_by_kind.get(kind, 0) + num_bytes


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
