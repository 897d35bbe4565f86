"""Which rank did a NaN come from? Asked after the gradients of all ranks were summed, when it is everywhere.

Each rank looks at what it hands to the sum, one pass over a buffer that is about to be read anyway, and keeps one flag
on the device. Nobody waits for that flag unless the norm of the summed gradients turns out not to be finite.
"""

from typing import Any

import torch
from torch import Tensor, nn


class FiniteWatch:
    """Whether everything that this rank handed over was finite."""

    def __init__(self) -> None:
        self._bad: Tensor | None = None

    def look(self, buffer: Tensor) -> None:
        """Take note of one buffer; nothing waits."""
        bad = buffer.sum(dtype=torch.float64 if buffer.device.type == "cpu" else torch.float32).isfinite().logical_not()
        self._bad = bad if self._bad is None else self._bad.logical_or_(bad)

    @property
    def found(self) -> bool:
        """Whether something was not."""
        return self._bad is not None and bool(self._bad)


def watch_shards(model: nn.Module, watch: FiniteWatch) -> None:
    """Have FSDP2 show `watch` the gradients of each block before they are summed and shared out."""
    import torch.distributed as dist
    from torch.distributed.fsdp import FSDPModule
    from torch.distributed.fsdp._fully_shard._fsdp_api import ReduceScatter

    scatter = getattr(dist, "reduce_scatter_single", None) or dist.reduce_scatter_tensor  # its name before torch 2.13

    class Watched(ReduceScatter):
        def allocate(self, size: Any, *, dtype: torch.dtype, device: torch.device) -> Tensor:
            return torch.empty(size, dtype=dtype, device=device)

        def __call__(
            self, output_tensor: Tensor, input_tensor: Tensor, group: Any, op: Any, async_op: bool = False
        ) -> Any:
            watch.look(input_tensor)
            return scatter(output_tensor, input_tensor, group=group, op=op, async_op=async_op)

    for module in model.modules():
        if isinstance(module, FSDPModule):
            module.set_custom_reduce_scatter(Watched())
