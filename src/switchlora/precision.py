"""How a number computed in a wide format is written into a narrower one: once, and without bias.

Training in bf16 fails quietly when updates are rounded to nearest: bf16 has 8 significant bits, so an
update below 1/512 of the weight is swallowed every time, and a second moment can never decay. Stochastic
rounding goes up with the probability of the remainder, so the mean is right (`docs/numerics.md`). Its bits
are a function of (seed, name, step, row, column), so a shard rounds as the whole would.

fp32 and fp64 are stored as computed. float16 is refused at conversion: its range, not its rounding, is
what breaks training there.
"""

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor

from switchlora import draws


def autocast_dtype(device: torch.device) -> torch.dtype | None:
    """What an open `torch.autocast` casts to there; None where none is open."""
    if device.type == "meta" or not torch.is_autocast_enabled(device.type):
        return None
    return torch.get_autocast_dtype(device.type)


@contextlib.contextmanager
def without_autocast(device: torch.device) -> Iterator[None]:
    """Inside, products have the dtypes of their operands, whatever is open around."""
    if autocast_dtype(device) is None:
        yield
        return
    with torch.autocast(device.type, enabled=False):
        yield


def wide_dtype(dtype: torch.dtype) -> torch.dtype:
    """The format in which sums into a tensor of this dtype are computed: float64 for itself, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def stored_dtype(name: str) -> torch.dtype:
    """How weights are stored where an option says fp32, bf16 or bf16-mixed (fp32 weights, bf16 arithmetic)."""
    return torch.bfloat16 if name == "bf16" else torch.float32


def store_(target: Tensor, value: Tensor, key: int, first_row: int = 0) -> Tensor:
    """Write `value` into `target` in place, rounded once.

    Args:
        target: any shape, float64, float32 or bfloat16.
        value: the same shape, in `wide_dtype(target.dtype)`, or in float64 (moments in bfloat16 of float64 parameters).
        key: of the rounding bits (`draws.key`), used for bfloat16 only.
        first_row: the number of target's first row, where it is a part of something whole.

    Returns:
        target.
    """
    if target.dtype == torch.bfloat16:
        return target.copy_(stochastic_bfloat16(value.float(), key, first_row))
    return target.copy_(value)


def stochastic_bfloat16(value: Tensor, key: int, first_row: int = 0) -> Tensor:
    """Round float32 to bfloat16, up or down at random with the mean unchanged.

    A value that bfloat16 holds exactly stays as it is, infinities and NaN included.

    Args:
        value: any shape, float32.
        key: of the rounding bits (`draws.key`).
        first_row: see `store_`.

    Returns:
        the same shape, bfloat16.
    """
    if value.numel() == 0:  # the shard of a rank that got no rows
        return value.to(torch.bfloat16)
    grid = value.reshape(value.shape[0] if value.dim() else 1, -1)  # dim 0 is what shards split
    rows = torch.arange(first_row, first_row + grid.shape[0], device=value.device)
    columns = torch.arange(grid.shape[1], device=value.device)
    noise = draws.random_bits(key, rows, columns).bitwise_and_(0xFFFF)
    bits = noise.add_(grid.contiguous().view(torch.int32)).bitwise_and_(-0x10000)
    rounded = bits.view(torch.float32).view(value.shape)
    return torch.where(value.isfinite(), rounded, value).to(torch.bfloat16)
