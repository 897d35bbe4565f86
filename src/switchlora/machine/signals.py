"""SIGTERM and Ctrl-C, as flags and exceptions that a run can end well by."""

import contextlib
import ctypes
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any, Self

from switchlora.errors import Preempted

PR_SET_PDEATHSIG = 1  # of prctl(2)
_LIBC = ctypes.CDLL(None) if sys.platform == "linux" else None  # between fork and exec it is too late to load it


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


def stop_with_parent() -> None:
    """In a child, on Linux: get SIGTERM when the parent dies, however it does. Elsewhere nothing."""
    if _LIBC is not None:
        _LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGTERM)
