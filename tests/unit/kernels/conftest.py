"""Kernels run on a GPU where there is one, else in triton's interpreter, number by number on the CPU.

Triton decides for the interpreter when it is imported, which torch may do before any kernel is: `tests/conftest.py`
says so to the whole process, where there is no GPU.
"""

import contextlib
import importlib.util

import pytest
import torch

from switchlora import weight_update
from switchlora.kernels import weight_update as by_kernels


@pytest.fixture(scope="session")
def _triton():
    if importlib.util.find_spec("triton") is None:
        pytest.skip("triton is not installed (pip install triton, on Linux)")


@pytest.fixture(autouse=True)
def _kernels_can_run(_triton):
    """Every test of this folder needs triton."""


@pytest.fixture
def device():
    """Where kernels run here."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _float32_products(monkeypatch):
    """Kernels are held to the eager code to the last bits, and TF32 would make steps of those that differ."""
    for module in (weight_update, by_kernels):
        monkeypatch.setattr(module, "products_for", lambda W: contextlib.nullcontext())
