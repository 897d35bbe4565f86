"""Which device a process trains on, and with how many threads.

A process has one device; with several processes on a machine (`LaunchedRank`, `training.parallel`) each takes the GPU
of its number.
"""

import contextlib
import os
import re
import resource
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from switchlora.errors import UserError
from switchlora.machine import cpu_products

LAUNCH = "torchrun --nproc-per-node N -m -- switchlora pretrain"
THREADS_PER_CORE = 8  # more than that, and a run all but stands still


@dataclass(frozen=True)
class LaunchedRank:
    """Which process of how many this is, as torchrun says.

    rank: 0 to world_size - 1; local_rank: which of those on this machine; local_world_size: how many these are, 0: not
    known.
    """

    rank: int = 0
    world_size: int = 1
    local_rank: int = 0
    local_world_size: int = 0


def prepare(device: str, threads: int | None, products: str = cpu_products.TORCH) -> torch.device:
    """Make this process ready to train: `threads` CPU threads, the device chosen and set up.

    On the CPU, `products` says who multiplies matrices (`cpu_products`).

    On a GPU, torch's deterministic kernels are switched on, because a resumed run must repeat the same bits.

    Raises:
        UserError: see `choose_device`, `set_threads`, `ranks_from_environment` and `cpu_products.use`.
    """
    chosen = choose_device(device, ranks_from_environment(os.environ))
    set_threads(threads)
    use_products(chosen, products)
    if chosen.type == "cuda":
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        torch.cuda.set_device(chosen)
        torch.cuda.reset_peak_memory_stats(chosen)
    return chosen


def use_products(device: torch.device, products: str) -> None:
    """`cpu_products.use`; on a GPU torch's own."""
    cpu_products.use(products if device.type == "cpu" else cpu_products.TORCH)


def set_threads(threads: int | None) -> None:
    """Give torch so many CPU threads; None leaves its own choice.

    Raises:
        UserError: far more threads than this machine has cores.
    """
    if threads is None:
        return
    most = THREADS_PER_CORE * (os.cpu_count() or 1)
    if threads > most:
        raise UserError(f"--threads {threads}: would only wait for each other on this machine; use at most {most}")
    torch.set_num_threads(threads)


def choose_device(name: str, ranks: LaunchedRank = LaunchedRank()) -> torch.device:
    """The device for `--device auto|cpu|cuda|cuda:N`; auto: the current GPU if there is one, or that of this process.

    Raises:
        UserError: a device that is not supported, or not in this machine.
    """
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if name != "auto" and not re.fullmatch(r"cuda(:\d+)?", name):
        raise UserError(f"--device {name}: is not supported; use auto, cpu, cuda or cuda:N")
    if not torch.cuda.is_available():
        why = "this torch was built without CUDA" if torch.version.cuda is None else "no usable GPU is visible"
        raise UserError(f"--device {name}: cannot be used ({why}); use --device cpu or auto")
    _, _, index = name.partition(":")
    if ranks.world_size > 1 and index:
        raise UserError(f"--device {name}: {ranks.world_size} processes take one GPU each; use --device cuda")
    num_gpus = torch.cuda.device_count()
    num_here = max(ranks.local_world_size, ranks.local_rank + 1)
    if ranks.world_size > 1 and num_here > num_gpus:
        raise UserError(
            f"--device {name}: {num_here} processes on this machine take one GPU each, and it has {num_gpus}; start "
            f"{num_gpus}, or give --device cpu"
        )
    own = ranks.local_rank if ranks.world_size > 1 else torch.cuda.current_device()
    chosen = torch.device("cuda", int(index) if index else own)
    if chosen.index >= num_gpus:
        raise UserError(f"--device {name}: this machine has GPUs 0 to {num_gpus - 1}; use one of them, or cuda")
    return chosen


def ranks_from_environment(environment: Mapping[str, str]) -> LaunchedRank:
    """RANK, WORLD_SIZE, LOCAL_RANK and LOCAL_WORLD_SIZE as torchrun sets them.

    Raises:
        UserError: they are no numbers, or contradict each other.
    """
    found = []
    for name, default in (("RANK", "0"), ("WORLD_SIZE", "1"), ("LOCAL_RANK", "0"), ("LOCAL_WORLD_SIZE", "0")):
        text = environment.get(name) or default
        if not re.fullmatch(r"\d+", text):
            raise UserError(f"{name}={text}: must be a whole number; start with torchrun, or unset it")
        found.append(int(text))
    ranks = LaunchedRank(*found)
    if ranks.rank >= ranks.world_size:
        raise UserError(
            f"WORLD_SIZE={ranks.world_size}: must be above RANK={ranks.rank}; start with {LAUNCH}, or unset both"
        )
    return ranks


def autocast_for(dtype: str, device: torch.device) -> contextlib.AbstractContextManager[None]:
    """The context of forward passes for `--dtype`: bf16 arithmetic on fp32 weights for bf16-mixed, else nothing."""
    if dtype == "bf16-mixed":
        return torch.autocast(device.type, dtype=torch.bfloat16)
    return contextlib.nullcontext()


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory held so far: of tensors on a GPU since `prepare`, on the CPU of the whole process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    # getrusage's peak is inherited from the process that started this one, so Linux is asked directly.
    with contextlib.suppress(OSError):
        found = re.search(r"VmHWM:\s*(\d+) kB", Path("/proc/self/status").read_text(encoding="utf-8"))
        if found:
            return int(found[1]) * 1024
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def generator_states(device: torch.device) -> dict[str, torch.Tensor]:
    """The states of torch's global generators, which nothing of ours uses but a model's dropout may."""
    states = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        states["cuda"] = torch.cuda.get_rng_state(device)
    return states


def set_generator_states(device: torch.device, states: Mapping[str, torch.Tensor]) -> None:
    """Put back what `generator_states` returned; the GPU's only if both runs are on one."""
    torch.set_rng_state(states["cpu"])
    if device.type == "cuda" and "cuda" in states:
        torch.cuda.set_rng_state(states["cuda"], device)
