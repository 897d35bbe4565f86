"""A pretend GPU for machines without one; operations.cpp says what it shows and what it cannot.

`build` compiles it, `environment` is that of a process which has it. There it installs itself (`startup`), and
`torch.device("cuda")` is a device like any other: its numbers lie in host memory, its operations run on the CPU, and
Triton's kernels run in Triton's interpreter, which is given the very addresses.
"""

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parents[2]
LIBRARY = "SWITCHLORA_PRETEND_GPU"  # where the library lies, for the processes that have it
SKIP = "SWITCHLORA_PRETEND_KERNELS_SKIP"  # whether Triton's kernels are counted and not run


def why_not() -> str:
    """Why this machine cannot have one; "" if it can."""
    import torch

    if torch.version.cuda is not None or torch.version.hip is not None:
        return "this torch is made for GPUs, and would be for this one"
    if sys.platform != "linux":
        return "only made for Linux"
    missing = [name for name, found in {
        "g++": shutil.which("g++"), "triton": importlib.util.find_spec("triton"),
    }.items() if found is None]  # fmt: skip
    return f"{' and '.join(missing)} not there" if missing else ""


def build(target: Path) -> Path:
    """Compile it (10 seconds)."""
    import torch

    of_torch = Path(torch.__file__).parent
    options = ["-O1", "-std=c++20", "-fPIC", "-shared", f"-I{of_torch / 'include'}"]
    link = [f"-L{of_torch / 'lib'}", "-ltorch_cpu", "-lc10", f"-Wl,-rpath,{of_torch / 'lib'}"]
    subprocess.run(["g++", *options, str(HERE / "operations.cpp"), "-o", str(target), *link], check=True)
    return target


def environment(library: Path, *, kernels: bool = True) -> dict[str, str]:
    """Of a process that has a GPU, and of all that it starts.

    Args:
        kernels: whether Triton's are run, number by number. Without them nothing of a step that they are for is done:
            for launches and bytes.
    """
    path = [str(HERE / "startup"), str(ROOT), os.environ.get("PYTHONPATH", "")]
    preloaded = [str(library), os.environ.get("LD_PRELOAD", "")]
    return os.environ | {
        LIBRARY: str(library), "LD_PRELOAD": ":".join(filter(None, preloaded)),
        "PYTHONPATH": os.pathsep.join(filter(None, path)),
        "TORCH_AUTOGRAD_SHUTDOWN_WAIT_LIMIT": "0",  # at exit, for the thread of backward passes
        "TRITON_INTERPRET": "1", SKIP: "" if kernels else "1",
    }  # fmt: skip
