"""The machine a run is on: device, threads, processes, memory, versions, and its signals.

Everything that asks which hardware this is stands here, so that the loop does not. A process has one device; with
several processes on a machine (`Ranks`, `parallel`) each takes the GPU of its number.

What a run computes, bit by bit, depends on the machine kind, the versions and the number of threads (they decide the
order of sums). `describe_machine` writes that down, and `same_machine` tells what differs when a run goes on.
"""

import contextlib
import importlib.metadata
import os
import platform
import re
import resource
import signal
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self

import torch

from switchlora.errors import Preempted, UserError
from switchlora.training import cpu_products

LAUNCH = "torchrun --nproc-per-node N -m -- switchlora pretrain"
THREADS_PER_CORE = 8  # more than that, and a run all but stands still
PACKAGES = ("switchlora", "torch", "transformers", "tokenizers", "numpy", "pytorch_optimizer")
# What can change the last bits of a run: everything that picks a kernel or an order of summation, and Python itself,
# whose standard library may be the data.
DECIDES_BITS = (
    *("device", "cpu", "cpu_capability", "cpu_products", "architecture", "gpu", "cuda", "cudnn", "threads"),
    *("python", *PACKAGES),
)


@dataclass(frozen=True)
class Ranks:
    """Which process of how many this is.

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


def choose_device(name: str, ranks: Ranks = Ranks()) -> torch.device:
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


def ranks_from_environment(environment: Mapping[str, str]) -> Ranks:
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
    ranks = Ranks(*found)
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


def describe_machine(device: torch.device | None = None) -> dict[str, Any]:
    """Versions and hardware, plain data for result.json. gpu, cuda, cudnn are None unless `device` is a GPU."""
    on_gpu = device is not None and device.type == "cuda"
    return {
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
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


def _version(package: str) -> str:
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


class StopRequest:
    """SIGTERM and Ctrl-C as a flag that the loop reads between steps, so that it can write a checkpoint first.

        with StopRequest() as stop:
            while not stop.requested: ...

    A second Ctrl-C interrupts at once. A signal that the caller's environment ignores (nohup) stays ignored, and the
    handlers are put back at the end. Outside the main thread, where Python allows no handlers, nothing happens.
    """

    def __init__(self) -> None:
        self.signal: signal.Signals | None = None
        self._previous: dict[signal.Signals, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether to stop after this step."""
        return self.signal is not None

    @property
    def interrupted(self) -> bool:
        """Whether it was Ctrl-C, and not SIGTERM."""
        return self.signal is signal.SIGINT

    def __enter__(self) -> Self:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGTERM, signal.SIGINT):
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._previous[number] = signal.signal(number, self._on_signal)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self.requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.signal = self.signal or signal.Signals(number)


@contextlib.contextmanager
def sigterm_raises() -> Iterator[None]:
    """A block that SIGTERM ends as `Preempted`, where `StopRequest` inside does not say otherwise.

    A signal that the caller's environment ignores stays ignored; outside the main thread nothing happens.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) is signal.SIG_IGN:
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        raise Preempted("terminated; the same command goes on from the last checkpoint, or begins")

    previous = signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL if previous is None else previous)
