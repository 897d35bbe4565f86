"""Where the seconds of a step go: forward, backward, optimizer, switch.

On the CPU a time stamp is `perf_counter`. On a GPU, where Python runs ahead of the device, it is an event that the
device stamps when it gets there; the host waits once per step, at its end, so that measuring one part does not slow
another. Time in which the device waits for the host counts, as it does for a user.
"""

import contextlib
import time
from collections.abc import Iterator
from typing import Any

import torch

SWITCH = "switch"


class Stopwatch:
    """Start, mark the end of each part, and read: `start(); ...; mark("forward"); ...; read()`.

    What happens inside `switching()` is taken out of the part it happens in, and counted as "switch".
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._marks: list[tuple[str, Any]] = []
        self._spans: list[tuple[int, Any, Any]] = []

    def start(self) -> None:
        """Begin a step; what the device still had to do is not part of it."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        self._spans = []
        self._marks = [("", self._stamp())]

    def mark(self, part: str) -> None:
        """The part that ran since the last mark ends here."""
        self._marks.append((part, self._stamp()))

    @contextlib.contextmanager
    def switching(self) -> Iterator[None]:
        """Around the exchange of vectors."""
        began = self._stamp()
        yield
        self._spans.append((len(self._marks) - 1, began, self._stamp()))

    def read(self) -> dict[str, float]:
        """Seconds of each part and of the whole "step", once the device has done them. "switch" is always there."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        seconds: dict[str, float] = {SWITCH: 0.0}
        inside = [0.0] * len(self._marks)
        for place, began, ended in self._spans:
            if place < len(inside):
                inside[place] += self._between(began, ended)
        for place, ((_, began), (part, ended)) in enumerate(zip(self._marks, self._marks[1:], strict=False)):
            seconds[part] = seconds.get(part, 0.0) + self._between(began, ended) - inside[place]
            seconds[SWITCH] += inside[place]
        seconds["step"] = self._between(self._marks[0][1], self._marks[-1][1])
        return seconds

    def _stamp(self) -> Any:
        if self._device.type != "cuda":
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def _between(self, began: Any, ended: Any) -> float:
        if self._device.type != "cuda":
            return float(ended - began)
        return float(began.elapsed_time(ended)) / 1000
