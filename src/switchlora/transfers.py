"""Numbers that the host has worked out, on their way to the model's device: nobody waits for them.

Choices are made on the host in numpy (`switching`), rules take coefficients, kernels take tables of addresses. A copy
from ordinary host memory would make the host wait for the device; one from pinned memory does not.
"""

import contextlib
import itertools
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

Ints = np.ndarray[tuple[int, ...], np.dtype[np.int64]]
Where = slice | Tensor  # numbers along a dimension
HOST = torch.device("cpu")


def on_device(numbers: np.ndarray[Any, Any], device: torch.device) -> Tensor:
    """The same numbers there; on the CPU the same memory."""
    if device.type != "cuda":
        return torch.from_numpy(numbers)
    in_one_piece = np.require(
        numbers, requirements="C"
    )  # else torch would lay it out anew, in memory that is not pinned
    return torch.from_numpy(in_one_piece).pin_memory().to(device, non_blocking=True)


def along(dimension: int, where: Where) -> tuple[Where, ...]:
    """The index that takes these numbers along a dimension of a matrix."""
    return (where,) if dimension == 0 else (slice(None), where)


def by_layer(layers: Ints, rows: Ints, device: torch.device) -> Iterator[tuple[int, slice, Where]]:
    """The layers that occur in `layers` (K,), ascending, each with its place in the list and its part of `rows`.

    That is a slice where the numbers follow each other, as in cyclic order they do but for where it begins again: what
    is indexed so costs half as much as with a tensor of indices.
    """
    if not len(layers):
        return
    starts = [0, *(np.flatnonzero(layers[1:] != layers[:-1]) + 1).tolist(), len(layers)]
    breaks = np.concatenate(([0], (rows[1:] != rows[:-1] + 1).cumsum())).tolist()
    there, here = on_device(rows, device), rows.tolist()
    for start, end in itertools.pairwise(starts):
        follow = breaks[end - 1] == breaks[start]
        place = slice(start, end)
        yield int(layers[start]), place, slice(here[start], here[start] + end - start) if follow else there[place]


class Done(Protocol):
    """A mark that a stream passes, such as torch.cuda.Event."""

    def query(self) -> bool:
        """Whether it has been passed."""

    def synchronize(self) -> None:
        """Wait until it is."""


class SideStream:
    """Copies beside the stream that computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    def inside(self) -> contextlib.AbstractContextManager[Any]:
        """What is given to the device in here runs on this stream."""
        return torch.cuda.stream(self._stream)

    def take_over(self, tensor: Tensor) -> None:
        """Wait for what the current stream has been given so far, and use its `tensor`."""
        self._stream.wait_stream(torch.cuda.current_stream(self._device))
        tensor.record_stream(self._stream)

    def hand_over(self, tensor: Tensor) -> None:
        """The current stream waits for what this one has been given so far, and uses our `tensor`."""
        current = torch.cuda.current_stream(self._device)
        current.wait_stream(self._stream)
        tensor.record_stream(current)

    def mark(self) -> Done:
        """What is passed when all that was given so far is done."""
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record(self._stream)
        return event
