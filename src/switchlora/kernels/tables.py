"""How kernels see many tensors: a table of addresses and keys, made on the host and sent in one copy.

Nobody waits for it. It is made anew in every step: gradients move, and wrappers may replace parameters.
"""

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from switchlora.moving import Key
from switchlora.transfers import Ints

PARAMETER_FIELDS = 8  # numbers in the part of a row that describes a parameter, padding included
BLOCK = 1024  # numbers that one program handles


def parameter_fields(parameter: Tensor, grad: Tensor, state: Mapping[str, Tensor], key: Key) -> list[int]:
    """Addresses of parameter, gradient and both moments, and the keys of the three that are written."""
    tensors = (parameter, state["exp_avg"], state["exp_avg_sq"])
    assert all(tensor.is_contiguous() for tensor in (*tensors, grad)), "the kernels index contiguous tensors"
    purposes = ("rounding", "rounding of exp_avg", "rounding of exp_avg_sq")
    keys = [
        key(purpose) if tensor.dtype == torch.bfloat16 else 0 for tensor, purpose in zip(tensors, purposes, strict=True)
    ]
    first, *moments = (tensor.data_ptr() for tensor in tensors)
    return [first, grad.data_ptr(), *moments, *keys, 0]


def gradient(parameter: Tensor) -> Tensor:
    """The gradient as the kernels need it, contiguous: as a rule the tensor itself."""
    assert parameter.grad is not None
    return parameter.grad.contiguous()


def as_table(rows: Sequence[Sequence[int]]) -> Ints:
    """Rows of integers below 2**64 (addresses, keys) as int64 with the same bits."""
    return np.array(rows, dtype=np.uint64).view(np.int64)


def aligned(addresses: Ints) -> bool:
    """Whether a kernel may load and store 16 bytes at once at all of them."""
    return not (addresses % 16).any()


def num_blocks(numel: int) -> int:
    """How many programs a tensor takes."""
    return -(-numel // BLOCK)


def current_device(device: torch.device) -> contextlib.AbstractContextManager[Any]:
    """Triton launches on the current device, which need not be the tensors'."""
    return torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()


def triton_dtype(dtype: torch.dtype) -> Any:
    """The same format by triton's name."""
    import triton.language as tl

    return {torch.float32: tl.float32, torch.bfloat16: tl.bfloat16}[dtype]
