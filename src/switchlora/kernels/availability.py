"""Where kernels run, and why not where they do not.

On CUDA from compute capability 8.0 on, which is what they are compiled for in the tests, for contiguous float32 and
bfloat16. On the CPU they run in triton's interpreter alone (TRITON_INTERPRET=1 in the environment before triton is
first imported), number by number and slowly: so the tests hold them against the eager code without a GPU.
"""

import functools
import importlib.util
from collections.abc import Iterable

import torch
from torch import Tensor

from switchlora.errors import UserError

MAX_NUMEL = 2**30  # indices are int32, and the pair of products has twice as many numbers as a factor


def use_kernels(fused: bool | None, tensors: Iterable[Tensor]) -> bool:
    """Whether to step these tensors by kernels.

    Args:
        fused: None: on CUDA where they can run; True: they must; False: never.
        tensors: parameters and moments.

    Raises:
        UserError: `fused` is True and they cannot run; says why.
    """
    if fused is not None and not isinstance(fused, bool):
        raise UserError(f"fused={fused!r}: must be True, False, or None for kernels where they can run")
    if fused is False:
        return False
    tensors = list(tensors)
    if fused is None and not all(tensor.is_cuda for tensor in tensors):
        return False
    reason = reason_against(tensors)
    if fused and reason is not None:
        raise UserError(f"fused=True: {reason}; use fused=None, which takes the kernels where they can run")
    return reason is None


def reason_against(tensors: Iterable[Tensor]) -> str | None:
    """Why kernels cannot run on these tensors; None if they can."""
    if not _has_triton():
        return "the kernels need triton, which is not installed (torch for CUDA on Linux brings it)"
    for tensor in tensors:
        reason = _reason_against_device(tensor.device)
        if reason is None and tensor.dtype not in (torch.float32, torch.bfloat16):
            reason = f"the kernels are for float32 and bfloat16, not {tensor.dtype}"
        if reason is None and (hasattr(tensor, "__tensor_flatten__") or not tensor.is_contiguous()):
            reason = f"the kernels need contiguous plain tensors, not a {type(tensor).__name__} with other strides"
        if reason is None and tensor.numel() > MAX_NUMEL:
            reason = f"a tensor of {tensor.numel()} numbers is more than the kernels can index ({MAX_NUMEL})"
        if reason is not None:
            return reason
    return None


@functools.cache
def _has_triton() -> bool:
    return importlib.util.find_spec("triton") is not None


@functools.cache
def _reason_against_device(device: torch.device) -> str | None:
    if device.type == "cuda":
        if torch.version.hip is not None:
            return "the kernels were never tested on AMD GPUs"
        if torch.cuda.get_device_capability(device) < (8, 0):
            return f"the kernels need compute capability 8.0, which {torch.cuda.get_device_name(device)} has not"
        return "the kernels are in triton's interpreter, TRITON_INTERPRET=1" if _interpreted() else None
    if device.type == "cpu" and _interpreted():
        return None
    return f"the kernels are for CUDA, and a parameter is on {device}"


def _interpreted() -> bool:
    from switchlora.kernels.jit import bits

    return type(bits.mix).__name__ == "InterpretedFunction"
