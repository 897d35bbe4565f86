"""Where the vectors wait that are not active at the moment.

`Pools` keep c = min(m, n) vectors per layer and side, each in one contiguous block, in host memory by default: they
are touched a few rows at a time, so they need not occupy the device. What is switched out goes back with its trained
value. The row of a vector that is live holds a stale copy until the vector is switched out.

`Fresh` stores nothing: what is switched in is drawn anew from the initial distribution, what is switched out is
dropped.

With the model on an accelerator and the pools in (pinned) host memory, every copy between them runs on one side
stream, in order: nobody waits but the exchange itself, for rows that were sent for one step earlier. What the next step
will take is known in advance (`prefetch`), because every choice is a function of seed and step.
"""

import itertools
from collections.abc import Iterator, Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from switchlora import draws
from switchlora.initialisation import draw_candidates, vector_bounds
from switchlora.layer import SwitchLoraLinear
from switchlora.transfers import Ints, on_device


class Candidates(Protocol):
    """A source of vectors for one side of L layers of one shape. K vectors are named by layer and row.

    is_remote: whether they lie elsewhere than the model, so that it pays to send for them early.
    """

    is_remote: bool

    def take(self, layers: Ints, slots: Ints, incoming: Ints, step: int) -> Tensor:
        """(K, length) the candidates that come in, on the model's device.

        Args:
            layers: (K,) ascending.
            slots: (K,) the slots that they will have.
            incoming: (K,) their rows.
            step: of the optimizer.
        """

    def put(self, layers: Ints, outgoing: Ints, rows: Tensor) -> None:
        """File what was switched out, rows (K, length), under the numbers `outgoing`."""

    def prefetch(self, layers: Ints, incoming: Ints) -> None:
        """Send for what the next step will take, if the pools lie elsewhere than the model."""

    def settle(self) -> None:
        """Wait until every row that is on its way has been filed."""


class Pools:
    """Candidates kept in tensors (c, length), one a layer, whose home is the optimizer's state."""

    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        self.tensors, self.device = tensors, device
        self.is_remote = device.type == "cuda" and not tensors[0].is_cuda
        self.stream = torch.cuda.Stream(device) if self.is_remote else None  # type: ignore[no-untyped-call]
        self._fetched: tuple[Ints, Ints, Tensor] | None = None  # layers, incoming, rows

    def take(self, layers: Ints, slots: Ints, incoming: Ints, step: int) -> Tensor:
        """See `Candidates`."""
        if self.stream is None:
            parts = by_layer(layers, on_device(incoming, self.device))
            return torch.cat([self.tensors[layer].index_select(0, rows) for layer, _, rows in parts])
        fetched, self._fetched = self._fetched, None
        if fetched is None or not (np.array_equal(fetched[0], layers) and np.array_equal(fetched[1], incoming)):
            self.prefetch(layers, incoming)
            fetched, self._fetched = self._fetched, None
        assert fetched is not None
        current = torch.cuda.current_stream(self.device)
        current.wait_stream(self.stream)
        fetched[2].record_stream(current)
        return fetched[2]

    def put(self, layers: Ints, outgoing: Ints, rows: Tensor) -> None:
        """See `Candidates`."""
        if self.stream is None:
            for layer, place, numbers in by_layer(layers, on_device(outgoing, self.device)):
                self.tensors[layer].index_copy_(0, numbers, rows[place])
            return
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            for layer, start, first, length in _runs(layers, outgoing):
                self.tensors[layer][first : first + length].copy_(rows[start : start + length], non_blocking=True)
        rows.record_stream(self.stream)

    def prefetch(self, layers: Ints, incoming: Ints) -> None:
        """See `Candidates`. On the side stream, behind the rows that this step files."""
        if self.stream is None or not len(layers):
            return
        with torch.cuda.stream(self.stream):
            like = self.tensors[0]
            rows = torch.empty(len(layers), like.shape[1], dtype=like.dtype, device=self.device)
            for layer, place, first, length in _runs(layers, incoming):
                rows[place : place + length].copy_(self.tensors[layer][first : first + length], non_blocking=True)
        self._fetched = layers, incoming, rows

    def settle(self) -> None:
        """See `Candidates`. What was fetched in advance is forgotten: the caller may be about to load a state."""
        self._fetched = None
        if self.stream is not None:
            self.stream.synchronize()


class Fresh:
    """Candidates drawn when they are needed, a function of (seed, layer name, side, step, slot)."""

    is_remote = False

    def __init__(self, layers: Sequence[SwitchLoraLinear], letter: str, seed: int) -> None:
        self.layers, self.letter, self.seed = layers, letter, seed

    def take(self, layers: Ints, slots: Ints, incoming: Ints, step: int) -> Tensor:
        """See `Candidates`; the candidates' numbers play no part."""
        names = [self.layers[i].name for i in layers.tolist()]
        purpose = f"fresh vectors of {self.letter}"
        keys = {name: draws.key(self.seed, name, purpose, step) for name in dict.fromkeys(names)}
        layer = self.layers[0]
        factor: Tensor = getattr(layer, f"lora_{self.letter}")
        length = layer.in_features if self.letter == "A" else layer.out_features
        bound = vector_bounds(layer.out_features, layer.in_features, layer.r, layer.init_lora_weights)[self.letter]
        rows = on_device(slots, factor.device)
        return draws.uniform_vectors([keys[name] for name in names], rows, length, bound, factor.dtype)

    def put(self, layers: Ints, outgoing: Ints, rows: Tensor) -> None:
        """See `Candidates`; they are dropped."""

    def prefetch(self, layers: Ints, incoming: Ints) -> None:
        """See `Candidates`; there is nothing to send for."""

    def settle(self) -> None:
        """See `Candidates`; nothing is ever on its way."""


def new_pool(layer: SwitchLoraLinear, side: str, num: int, slots: Tensor, device: torch.device) -> Tensor:
    """The pool of a layer's side at the start, (num, length): initial draws, and the active vectors in their slots.

    In host memory beside a model on an accelerator it is pinned, so that copies need not wait for the host.
    """
    vectors = (layer.lora_A if side == "A" else layer.lora_B.T).detach()
    bounds = vector_bounds(layer.out_features, layer.in_features, layer.r, layer.init_lora_weights)
    rows = torch.arange(num, device=device)
    pool = draw_candidates(layer.seed, layer.name, side, rows, vectors.shape[1], bounds[side], vectors.dtype)
    pool[slots.to(device)] = vectors.to(device)
    return pool.pin_memory() if vectors.is_cuda and device.type == "cpu" else pool


def by_layer(layers: Ints, rows: Tensor) -> Iterator[tuple[int, slice, Tensor]]:
    """The layers that occur in `layers` (K,), ascending, each with its place in the list and its part of `rows`."""
    starts = [0, *(np.flatnonzero(layers[1:] != layers[:-1]) + 1).tolist(), len(layers)]
    places = [slice(start, end) for start, end in itertools.pairwise(starts)]
    parts = rows.split([place.stop - place.start for place in places])  # type: ignore[no-untyped-call]
    return zip(layers[starts[:-1]].tolist(), places, parts, strict=True)


def _runs(layers: Ints, rows: Ints) -> Iterator[tuple[int, int, int, int]]:
    """Neighbouring rows of one layer together: layer, place in the list, first row, and how many. Copies go by runs."""
    breaks = (layers[1:] != layers[:-1]) | (rows[1:] != rows[:-1] + 1)
    starts = [0, *(np.flatnonzero(breaks) + 1).tolist(), len(layers)]
    for start, end in itertools.pairwise(starts):
        yield int(layers[start]), start, int(rows[start]), end - start
