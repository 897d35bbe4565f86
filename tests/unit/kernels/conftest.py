"""Kernels run on a GPU where there is one, else in triton's interpreter, number by number on the CPU.

Triton decides for the interpreter when a kernel is defined. So triton and all kernels are imported here, before any
test has run, with TRITON_INTERPRET set. It is set for these imports and these tests alone.
"""

import importlib
import importlib.util
import sys

import pytest
import torch

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
KERNELS = ("bits", "adamw", "moving", "weight_update", "exchange", "ordinary")
INSTALLED = importlib.util.find_spec("triton") is not None


def _import_kernels() -> None:
    with pytest.MonkeyPatch.context() as patch:
        if DEVICE.type == "cpu":
            assert "triton" not in sys.modules, "triton came before the kernels' tests could ask for its interpreter"
            patch.setenv("TRITON_INTERPRET", "1")
        for name in KERNELS:
            importlib.import_module(f"switchlora.kernels.jit.{name}")


if INSTALLED:
    _import_kernels()


@pytest.fixture(scope="session")
def _triton():
    if not INSTALLED:
        pytest.skip("triton is not installed (pip install triton, on Linux)")


@pytest.fixture(autouse=True)
def _kernels_can_run(_triton, monkeypatch):
    if DEVICE.type == "cpu":
        monkeypatch.setenv("TRITON_INTERPRET", "1")


@pytest.fixture
def device():
    """Where kernels run here."""
    return DEVICE
