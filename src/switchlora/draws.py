"""Every random number of the method, as a pure function of (seed, layer name, purpose, step).

No generator is advanced anywhere, so ranks agree without talking, a resumed run repeats the same choices,
and one layer's choices do not depend on which other layers exist. Scalars come from a keyed hash of the
four names (blake2b). Grids of numbers come from a counter-based hash of (key, row, column): a shard that
knows its global rows and columns draws exactly what the whole would draw, on any device.

The 32-bit mixer is `lowbias32` of C. Wellons' hash prospector (public domain), applied once to the row,
once to the column and once to their sum.
"""

import hashlib
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from switchlora.transfers import on_device


def key(seed: int, name: str, purpose: str, step: int = 0) -> int:
    """A 64-bit key for one (seed, layer name, purpose, step)."""
    text = f"{seed}\0{name}\0{purpose}\0{step}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little")


class Draws(Protocol):
    """Where the switch takes its chances from; the golden replay puts recorded ones here."""

    def uniform(self, name: str, step: int) -> float:
        """A number in [0, 1) for the Bernoulli rounding of the number of switches."""

    def choose(self, name: str, side: str, step: int, idle: Tensor, num: int) -> Tensor:
        """`num` different entries of `idle` (indices of candidates, int64), in random order."""


class SeededDraws:
    """The draws of a run: hashes of the seed."""

    def __init__(self, seed: int) -> None:
        self.seed = seed

    def uniform(self, name: str, step: int) -> float:
        """See `Draws`."""
        return key(self.seed, name, "number of switches", step) / 2.0**64

    def choose(self, name: str, side: str, step: int, idle: Tensor, num: int) -> Tensor:
        """See `Draws`."""
        order = random_bits(key(self.seed, name, f"candidates of {side}", step), idle.new_zeros(1), idle)
        return idle[order.view(-1).argsort()[:num]]


def random_bits(key: int | Sequence[int], rows: Tensor, columns: Tensor) -> Tensor:
    """32 random bits for each pair of a row and a column.

    Args:
        key: from `key`; or one for each row, which then draws what it would draw alone.
        rows: (R,) int64, global row numbers.
        columns: (C,) int64, global column numbers.

    Returns:
        (R, C) int32.
    """
    if isinstance(key, int):
        row_hash = _mix_(rows.to(torch.int32) ^ _signed(key))
        column_hash = _mix_(columns.to(torch.int32) ^ _signed(key >> 32))
        return _mix_(row_hash[:, None] + column_hash[None, :])
    halves = np.array([(_signed(k), _signed(k >> 32)) for k in key], dtype=np.int32).reshape(-1, 2)
    of_row, of_column = on_device(halves, rows.device).unbind(1)
    row_hash = _mix_(rows.to(torch.int32) ^ of_row)
    column_hash = _mix_(columns.to(torch.int32)[None, :] ^ of_column[:, None])
    return _mix_(column_hash.add_(row_hash[:, None]))


def uniform_vectors(
    key: int | Sequence[int], rows: Tensor, length: int, bound: float, dtype: torch.dtype, first: int = 0
) -> Tensor:
    """Vectors with entries uniform in (-bound, bound), symmetric about zero, 24 bits each.

    Args:
        key: from `key`; or one for each row.
        rows: (R,) int64, which vectors of the (unbounded) table that the key names.
        length: entries of one vector.
        bound: largest absolute value.
        dtype: of the result.
        first: the number of the first of these entries, where a rank has only some.

    Returns:
        (R, length) on the device of `rows`.
    """
    bits = random_bits(key, rows, torch.arange(first, first + length, device=rows.device))
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    unit = ((bits >> 8) & 0xFFFFFF).sub_(2**23).to(wide).add_(0.5).mul_(2.0**-23)  # exact in float32
    return unit.mul_(bound).to(dtype)


def _mix_(x: Tensor) -> Tensor:
    """Hash int32 in place; products wrap modulo 2**32, shifts are made logical by a mask."""
    x ^= (x >> 16) & 0xFFFF
    x *= _signed(0x7FEB352D)
    x ^= (x >> 15) & 0x1FFFF
    x *= _signed(0x846CA68B)
    x ^= (x >> 16) & 0xFFFF
    return x


def _signed(value: int) -> int:
    """The int32 with the same low 32 bits."""
    value &= 0xFFFFFFFF
    return value - 2**32 if value >= 2**31 else value
