"""The Python side of the pretend GPU, in a process that has one: what torch.cuda says of it, and what it counted."""

import atexit
import contextlib
import ctypes
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tests.accelerator.pretend_gpu import LIBRARY, SKIP

if TYPE_CHECKING:
    import torch


class Counts:
    """What the device was given so far."""

    def __init__(self) -> None:
        self._library = ctypes.CDLL(os.environ[LIBRARY])
        self._library.pretend_counts.restype = ctypes.c_char_p
        self._library.pretend_bytes.restype = self._library.pretend_given.restype = ctypes.c_long
        self._library.pretend_pass.argtypes = [ctypes.c_int, ctypes.c_long]
        self._library.pretend_see.argtypes = [ctypes.c_char_p, ctypes.c_void_p]
        self._library.pretend_see_all.argtypes = [ctypes.c_char_p, ctypes.c_void_p, ctypes.c_long]
        self._library.pretend_wait.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long]
        self._library.pretend_record_stream.argtypes = [ctypes.c_void_p, ctypes.c_int]
        self.kernels: list[str] = []  # Triton's, in their order

    def reset(self) -> None:
        self._library.pretend_reset()
        self.kernels.clear()

    def begin_kernel(self, name: str, tensors: "Sequence[torch.Tensor]") -> None:
        self.kernels.append(name)
        self._library.pretend_begin_kernel()
        for tensor in tensors:
            self._library.pretend_see(name.encode(), tensor.untyped_storage().data_ptr())
            if tensor.element_size() == 8:  # a table, of addresses among others
                self._library.pretend_see_all(name.encode(), tensor.data_ptr(), tensor.numel())

    def _read(self, which: int) -> dict[str, int]:
        lines = self._library.pretend_counts(which).decode().splitlines()
        return {name: int(number) for name, number in (line.split("\t") for line in lines)}

    @property
    def launches(self) -> dict[str, int]:
        """Operations by name, copies among them, without Triton's kernels."""
        return self._read(0)

    @property
    def waits(self) -> dict[str, int]:
        """What makes the host wait for the device, by kind."""
        return self._read(1)

    @property
    def hazards(self) -> dict[str, int]:
        """What one stream uses and another may not have finished, or the host writes and a copy may be reading."""
        return self._read(2)


counts = Counts()


class Stream:
    """See torch.cuda.Stream; 0 is the default one."""

    made = 0

    def __init__(self, device: object = None, number: int | None = None) -> None:
        if number is None:
            Stream.made += 1
        self.number = Stream.made if number is None else number

    def wait_stream(self, other: "Stream") -> None:
        counts._library.pretend_wait_stream(self.number, other.number)

    def synchronize(self) -> None:
        counts._library.pretend_wait(b"synchronize", self.number, counts._library.pretend_given(self.number))


class Event:
    """See torch.cuda.Event. Unless somebody waits for it, it has been passed when it is asked for the third time: some
    steps later, so that rows are on their way meanwhile."""

    def __init__(self, enable_timing: bool = False) -> None:
        self.num_asked, self.is_passed = 0, False

    def record(self, stream: Stream | None = None) -> None:
        self.stream = current_stream().number if stream is None else stream.number
        self.number = counts._library.pretend_given(self.stream)

    def query(self) -> bool:
        self.num_asked += 1
        if self.num_asked == 3:
            self.is_passed = True
            counts._library.pretend_pass(self.stream, self.number)
        return self.is_passed

    def synchronize(self) -> None:
        if not self.is_passed:
            self.is_passed = True
            counts._library.pretend_wait(b"synchronize", self.stream, self.number)

    def elapsed_time(self, other: "Event") -> float:
        return 1.0


def current_stream(device: object = None) -> Stream:
    return Stream(number=counts._library.pretend_stream())


@contextlib.contextmanager
def inside(stream: Stream):
    before = counts._library.pretend_stream()
    counts._library.pretend_set_stream(stream.number)
    try:
        yield
    finally:
        counts._library.pretend_set_stream(before)


def synchronize(device: object = None) -> None:
    for number in range(Stream.made + 1):
        Stream(number=number).synchronize()


class Properties:
    name, total_memory, major, minor = "pretend GPU", 141 * 10**9, 9, 0


def install() -> None:
    """Show this process its GPU. The times of events and the states of its random generator say nothing."""
    import torch

    num_bytes = counts._library.pretend_bytes
    for name, value in {
        "_lazy_init": lambda: None, "is_available": lambda: True, "is_initialized": lambda: True,
        "device_count": lambda: 1, "current_device": lambda: 0, "set_device": lambda device: None,
        "device": lambda device: contextlib.nullcontext(), "synchronize": synchronize,
        "Stream": Stream, "Event": Event, "current_stream": current_stream, "stream": inside,
        "get_device_capability": lambda device=None: (9, 0), "get_device_name": lambda device=None: Properties.name,
        "get_device_properties": lambda device=None: Properties,
        "manual_seed": lambda seed: None, "manual_seed_all": lambda seed: None,
        "get_rng_state": lambda device=None: torch.zeros(16, dtype=torch.uint8),
        "set_rng_state": lambda state, device=None: None,
        "memory_allocated": lambda device=None: num_bytes(0), "max_memory_allocated": lambda device=None: num_bytes(1),
        "reset_peak_memory_stats": lambda device=None: counts._library.pretend_forget_peak(),
    }.items():  # fmt: skip
        setattr(torch.cuda, name, value)
    torch.Tensor.record_stream = lambda self, stream: counts._library.pretend_record_stream(  # type: ignore[assignment]
        self.untyped_storage().data_ptr(), stream.number
    )
    torch._C._cuda_getCurrentRawStream = lambda index: 0  # bitsandbytes, which peft imports, wants it to be there
    _clone_storages()
    _interpret_kernels()
    atexit.register(_tell_hazards)


def _tell_hazards() -> None:
    """At the end of a process that may not have looked, on stderr."""
    synchronize()
    if counts.hazards:
        print(f"hazards: {counts.hazards}", file=sys.stderr)


def _clone_storages() -> None:
    """deepcopy of a tensor clones its storage, which torch cannot make without CUDA."""
    import torch

    clone = torch.storage._StorageBase.clone

    def cloned(self):
        if self.device.type != "cuda":
            return clone(self)
        return torch.empty(self.nbytes(), dtype=torch.uint8, device="cuda").untyped_storage().copy_(self)

    torch.UntypedStorage.clone = cloned  # type: ignore[method-assign]


def _interpret_kernels() -> None:
    """Triton's interpreter is not to copy what it is given, for tables of addresses point to the originals."""
    import torch
    from triton.runtime.interpreter import GridExecutor

    from switchlora.kernels import availability

    launch = GridExecutor.__call__

    def launched(self, *arguments, **named):
        name, tensors = self.fn.__name__, [t for t in (*arguments, *named.values()) if isinstance(t, torch.Tensor)]
        assert all(t.is_cuda for t in tensors), f"{name} is given a CPU tensor"
        counts.begin_kernel(name, tensors)
        if not os.environ[SKIP]:
            launch(self, *arguments, **named)

    GridExecutor.__call__ = launched
    GridExecutor._init_args_hst = lambda self, arguments, named: (list(arguments), dict(named))
    GridExecutor._restore_args_dev = lambda *arguments: None
    availability._interpreted = lambda: False  # so that kernels are taken for what they are on a GPU
