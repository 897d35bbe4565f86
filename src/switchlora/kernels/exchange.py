"""Switched vectors of many layers, by one launch: the loops of `exchange.DeviceVectors`."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from switchlora.kernels.tables import BLOCK, current_device, num_blocks, triton_dtype
from switchlora.transfers import Ints, on_device


def exchange_(factors: Sequence[Tensor], layers: Ints, slots: Ints, arriving: Tensor) -> Tensor:
    """Put vectors into their slots.

    Args:
        factors: of L layers, each (r, length): A, or B transposed, which need not be contiguous.
        layers, slots: (K,) where.
        arriving: (K, length), contiguous, of their dtype.

    Returns:
        what stood there, (K, length).
    """
    from switchlora.kernels.jit.exchange import exchange

    leaving, length = torch.empty_like(arriving), arriving.shape[1]
    addresses = on_device(_addresses(factors, layers, slots), arriving.device)
    with current_device(arriving.device):
        exchange[len(layers), num_blocks(length)](
            addresses, arriving, leaving, length, factors[0].stride(1),
            DTYPE=triton_dtype(arriving.dtype), BLOCK=BLOCK,
        )  # fmt: skip
    return leaving


def _addresses(tensors: Sequence[Tensor], layers: Ints, slots: Ints) -> Ints:
    """(K,) where the vectors begin."""
    like = tensors[0]
    assert all(tensor.stride() == like.stride() for tensor in tensors), "one shape, one layout"
    bases = np.array([tensor.data_ptr() for tensor in tensors], dtype=np.int64)
    addresses: Ints = bases[layers] + slots * (like.stride(0) * like.element_size())
    return addresses
