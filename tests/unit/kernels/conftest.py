"""Kernels run on a GPU where there is one, else in triton's interpreter, number by number on the CPU.

Triton decides for the interpreter when a kernel is defined. So triton and all kernels are imported here, with
TRITON_INTERPRET set for that moment only, before any test has run; what the variable says to others stays as it was.
"""

import importlib
import importlib.util
import os
import sys

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KERNELS = ("bits", "adamw", "moving", "weight_update", "exchange", "ordinary")
INSTALLED = importlib.util.find_spec("triton") is not None
NO_TRITON = "triton is not installed (pip install triton, on Linux)"


def _import_kernels() -> None:
    interpret, before = DEVICE.type == "cpu", os.environ.get("TRITON_INTERPRET")
    if interpret:
        assert "triton" not in sys.modules, (
            "triton was imported before the kernels' tests could ask for its interpreter"
        )
        os.environ["TRITON_INTERPRET"] = "1"
    try:
        for name in KERNELS:
            importlib.import_module(f"switchlora.kernels.jit.{name}")
    finally:
        if interpret:
            os.environ.pop("TRITON_INTERPRET")
            os.environ.update({} if before is None else {"TRITON_INTERPRET": before})


if INSTALLED:
    _import_kernels()


@pytest.fixture(autouse=True)
def _kernels_can_run():
    if not INSTALLED:
        pytest.skip(NO_TRITON)


@pytest.fixture
def device():
    """Where kernels run here."""
    return DEVICE
