"""Numbers that the host has worked out, on their way to the model's device: nobody waits for them.

Choices are made on the host in numpy (`switching`), rules take coefficients, kernels take tables of addresses. A copy
from ordinary host memory would make the host wait for the device; one from pinned memory does not.
"""

from typing import Any

import numpy as np
import torch
from torch import Tensor

Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]


def on_device(numbers: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """The same numbers there; on the CPU the same memory."""
    on_host = torch.from_numpy(numbers)
    return on_host.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else on_host
