"""Versions and hardware, as results keep them, and whether two runs had the same.

What a run computes, bit by bit, depends on the machine kind, the versions and the number of threads (they decide the
order of sums). `describe_machine` writes that down, and `same_machine` tells what differs when a run goes on.
"""

import contextlib
import importlib.metadata
import os
import platform
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from switchlora.machine import cpu_products

PACKAGES = ("switchlora", "torch", "transformers", "tokenizers", "numpy", "pytorch_optimizer")
# What can change the last bits of a run: everything that picks a kernel or an order of summation, and Python itself,
# whose standard library may be the data.
DECIDES_BITS = (
    *("device", "cpu", "cpu_capability", "cpu_products", "architecture", "gpu", "cuda", "cudnn", "threads"),
    *("python", *PACKAGES),
)


def describe_machine(device: torch.device | None = None) -> dict[str, Any]:
    """Versions and hardware, plain data for result.json. gpu, cuda, cudnn are None unless `device` is a GPU."""
    on_gpu = device is not None and device.type == "cuda"
    return {
        "python": platform.python_version(),
        **{package: version_of(package) for package in PACKAGES},
        "platform": platform.platform(),
        "architecture": platform.machine(),
        "cpu": _cpu_model(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "cpu_products": cpu_products.in_use(),
        "num_cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "threads": torch.get_num_threads(),
        "device": "cpu" if device is None else device.type,
        "gpu": torch.cuda.get_device_name(device) if on_gpu else None,
        "cuda": torch.version.cuda if on_gpu else None,
        "cudnn": torch.backends.cudnn.version() if on_gpu else None,  # type: ignore[no-untyped-call]
    }


def machine_record(device: torch.device) -> dict[str, Any]:
    """`describe_machine` as results keep it: threads, versions, and under "hardware" all else."""
    machine = describe_machine(device)
    threads, versions = machine.pop("threads"), {name: machine.pop(name) for name in ("python", *PACKAGES)}
    return {"threads": threads, "versions": versions, "hardware": machine}


def same_machine(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two descriptions and may change the last bits: 'threads 4 before, 2 now'."""
    return [
        f"{key} {before.get(key)} before, {now.get(key)} now" for key in DECIDES_BITS if before.get(key) != now.get(key)
    ]


def version_of(package: str) -> str:
    """Of an installed package; "not installed"."""
    if package == "torch":
        return str(torch.__version__)  # with the build (+cpu, +cu130), which the package's own version lacks
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _cpu_model() -> str:
    with contextlib.suppress(OSError):
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
        if found:
            return found[1].strip()
    return platform.processor() or platform.machine()
