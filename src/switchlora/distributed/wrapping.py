"""Hand a model to torch's own engines: DDP, which keeps all of it on every rank, and FSDP2, which shares it out.

DDP sends gradients of what trains: A, B and ordinary parameters. W has none. Buffers are the same on all ranks and stay
at home.

FSDP2 gathers a block of layers when it is needed and drops it afterwards, so a block is what is whole at one time. The
blocks of a transformer are its decoder layers; what is left (embedding, last norm, head) is one more.
"""

import dataclasses
import inspect
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from switchlora.distributed.finiteness import FiniteWatch, watch_shards
from switchlora.errors import UserError

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh


def data_parallel(
    model: nn.Module, *, compressed: bool = False, watch: FiniteWatch | None = None
) -> nn.parallel.DistributedDataParallel:
    """DDP around a model.

    Args:
        compressed: gradients travel, and are summed, in bfloat16: half the bytes, 8 significant bits.
        watch: is shown this rank's gradients.
    """
    kind = nn.parallel.DistributedDataParallel
    is_new = "forward_sync_buffers" in inspect.signature(kind).parameters  # from torch 2.13 on
    stay_at_home: dict[str, Any] = {"forward_sync_buffers" if is_new else "broadcast_buffers": False}
    wrapped = kind(model, gradient_as_bucket_view=True, **stay_at_home)
    if compressed or watch is not None:
        wrapped.register_comm_hook(_Handing(compressed, watch), _hand_over)
    return wrapped


@dataclasses.dataclass(frozen=True)
class _Handing:
    compressed: bool
    watch: FiniteWatch | None


def _hand_over(
    handing: _Handing,
    bucket: torch.distributed.GradBucket,  # type: ignore[name-defined]
) -> torch.futures.Future[Tensor]:
    """A hook of DDP: the mean over ranks of a bucket. torch's own that compresses refuses gloo."""
    import torch.distributed as dist

    buffer = bucket.buffer()
    if handing.watch is not None:
        handing.watch.look(buffer)
    buffer.div_(dist.get_world_size())
    given = buffer.to(torch.bfloat16) if handing.compressed else buffer
    work = dist.all_reduce(given, async_op=True)
    assert work is not None
    summed: torch.futures.Future[Tensor] = work.get_future().then(
        lambda f: buffer.copy_(f.value()[0]) if handing.compressed else f.value()[0]
    )
    return summed


def blocks_of(model: nn.Module) -> list[nn.Module]:
    """What is repeated in a model: modules of the classes that a transformers model names, or its longest list."""
    names = getattr(model, "_no_split_modules", None) or ()
    named = [module for module in model.modules() if type(module).__name__ in names]
    inner = {module for block in named for module in list(block.modules())[1:]}
    if named:
        return [block for block in named if block not in inner]
    lists = [list(module) for module in model.modules() if isinstance(module, nn.ModuleList)]
    return max(lists, key=len, default=[])


def require_shardable(model: nn.Module) -> None:
    """Refuse a model that FSDP2 cannot share out; it may be on the meta device.

    Raises:
        UserError: a weight tied across decoder layers, or trainable ones of two dtypes.
    """
    blocks = {module: number for number, block in enumerate(blocks_of(model)) for module in block.modules()}
    places: dict[Tensor, int | None] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False, remove_duplicate=False):
            if places.setdefault(parameter, blocks.get(module)) != blocks.get(module):
                raise UserError(
                    f"--parallel fsdp: {type(module).__name__}.{name} is tied to a weight outside its decoder "
                    "layer, and each layer is shared out by itself; use ddp"
                )
    dtypes = {parameter.dtype for parameter in model.parameters() if parameter.requires_grad}
    if len(dtypes) > 1:
        raise UserError(
            f"trainable parameters are {' and '.join(sorted(map(str, dtypes)))}: FSDP2 sums gradients of one dtype "
            "only; use --dtype bf16-mixed, or --factor-dtype bf16 beside --dtype bf16, or --parallel ddp"
        )


def shard(
    model: nn.Module,
    *,
    mesh: "DeviceMesh | None" = None,
    param_dtype: torch.dtype | None = None,
    watch: FiniteWatch | None = None,
) -> None:
    """Share a model's parameters out among all processes, in place; it may be on the meta device.

    Args:
        mesh: of the processes; None: all of them.
        param_dtype: of forward and backward passes, if it is not the parameters' own; gradients are summed wide.
        watch: is shown this rank's gradients.

    Raises:
        UserError: see `require_shardable`.
    """
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    require_shardable(model)
    policy = MixedPrecisionPolicy()
    if param_dtype is not None:
        policy = MixedPrecisionPolicy(param_dtype=param_dtype, reduce_dtype=torch.float32)
    for block in blocks_of(model):
        fully_shard(block, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    if watch is not None:
        watch_shards(model, watch)
