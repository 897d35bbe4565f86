"""Where the vectors wait that are not active at the moment.

`Pools` keep c = min(m, n) vectors per layer and side, each in one contiguous block, in host memory by default: they
are touched a few rows at a time, so they need not occupy the device. What is switched out goes back with its trained
value. The row of a vector that is live holds a stale copy until the vector is switched out.

`Fresh` stores nothing: what is switched in is drawn anew from the initial distribution, what is switched out is
dropped.

`StagedPools` are pools in (pinned) host memory beside a model on an accelerator. What the next step will take is known
in advance (`prefetch`), because every choice is a function of seed and step; so rows are on their way while the model
computes, and nobody waits for them but the exchange itself.
"""

import collections
import dataclasses
from collections.abc import Sequence
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from switchlora import draws
from switchlora.initialisation import draw_candidates, vector_bounds
from switchlora.layer import SwitchLoraLinear
from switchlora.shards import local, ranks_of, spread_vectors, vector_part
from switchlora.transfers import HOST, Done, Ints, SideStream, by_layer, on_device


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

    def prefetch(self, layers: Ints, incoming: Ints, step: int) -> None:
        """Send for what the next step, `step`, will take, if the pools lie elsewhere than the model."""

    def settle(self) -> None:
        """Wait until every row that is on its way has been filed."""


class Pools:
    """Candidates kept in tensors (c, length), one a layer, whose home is the optimizer's state."""

    is_remote = False

    def __init__(self, tensors: Sequence[Tensor], device: torch.device) -> None:
        self.tensors, self.device = tensors, device

    def take(self, layers: Ints, slots: Ints, incoming: Ints, step: int) -> Tensor:
        """See `Candidates`."""
        return torch.cat([self.tensors[layer][rows] for layer, _, rows in by_layer(layers, incoming, self.device)])

    def put(self, layers: Ints, outgoing: Ints, rows: Tensor) -> None:
        """See `Candidates`."""
        for layer, place, numbers in by_layer(layers, outgoing, self.device):
            self.tensors[layer][numbers] = rows[place]

    def prefetch(self, layers: Ints, incoming: Ints, step: int) -> None:
        """See `Candidates`; they are here."""

    def settle(self) -> None:
        """See `Candidates`; nothing is ever on its way."""


@dataclasses.dataclass(frozen=True)
class Returning:
    """K rows on their way back to the pools: whose they are, where they left, where they arrive, and when."""

    layers: Ints  # (K,) ascending
    numbers: Ints  # (K,)
    there: Tensor  # (K, length) on the device
    here: Tensor  # the same on the host, once `done`
    done: Done


@dataclasses.dataclass(frozen=True)
class Fetched:
    """K rows that a step was expected to take."""

    layers: Ints  # (K,) ascending
    incoming: Ints  # (K,)
    rows: Tensor  # (K, length) on the device
    step: int

    def part(self, layers: Ints, incoming: Ints, step: int) -> Tensor | None:
        """Those of some neighbouring layers, as they come with `fused_backward`; None if not as expected."""
        first = int(np.searchsorted(self.layers, layers[0]))
        part = slice(first, first + len(layers))
        as_expected = np.array_equal(self.layers[part], layers) and np.array_equal(self.incoming[part], incoming)
        return self.rows[part] if as_expected and step == self.step else None


class StagedPools(Pools):
    """Pools in host memory beside a model elsewhere. However many the vectors and scattered their rows, one copy goes
    to the device and one comes back: the host gathers rows into a block before the one, and files them after the other.

    Copies run on one side stream, in order, and the host waits for none. A block that has come back is filed when the
    host next passes by; a row that is wanted earlier is taken from the device, where it left.
    """

    is_remote = True

    def __init__(self, tensors: Sequence[Tensor], device: torch.device, stream: SideStream) -> None:
        super().__init__(tensors, device)
        self.stream = stream
        self._fetched: Fetched | None = None
        self._returning: collections.deque[Returning] = collections.deque()

    def take(self, layers: Ints, slots: Ints, incoming: Ints, step: int) -> Tensor:
        """See `Candidates`."""
        rows = self._fetched.part(layers, incoming, step) if self._fetched else None
        if rows is None:
            rows = self._fetch(layers, incoming)
        self.stream.hand_over(rows)
        return rows

    def put(self, layers: Ints, outgoing: Ints, rows: Tensor) -> None:
        """See `Candidates`."""
        self._file()
        here = self._block(len(rows))
        self.stream.take_over(rows)
        with self.stream.inside():
            here.copy_(rows, non_blocking=True)
            self._returning.append(Returning(layers, outgoing, rows, here, self.stream.mark()))

    def prefetch(self, layers: Ints, incoming: Ints, step: int) -> None:
        """See `Candidates`."""
        if len(layers):
            self._fetched = Fetched(layers, incoming, self._fetch(layers, incoming), step)

    def settle(self) -> None:
        """See `Candidates`. What was fetched in advance is forgotten: the caller may be about to load a state."""
        self._fetched = None
        for back in self._returning:
            back.done.synchronize()
        self._file()

    def _fetch(self, layers: Ints, incoming: Ints) -> Tensor:
        self._file()
        block = self._block(len(layers))
        for layer, place, numbers in by_layer(layers, incoming, HOST):
            block[place] = self.tensors[layer][numbers]
        with self.stream.inside():
            rows = torch.empty_like(block, device=self.device, pin_memory=False)
            rows.copy_(block, non_blocking=True)
            for back in self._returning:  # the oldest first: a row may have left twice
                wanted, left_with = self._keys(layers, incoming), self._keys(back.layers, back.numbers)
                _, to, of = np.intersect1d(wanted, left_with, assume_unique=True, return_indices=True)
                if len(to):
                    left = back.there.index_select(0, on_device(of, self.device))
                    rows.index_copy_(0, on_device(to, self.device), left)
        return rows

    def _file(self) -> None:
        while self._returning and self._returning[0].done.query():
            back = self._returning.popleft()
            for layer, place, numbers in by_layer(back.layers, back.numbers, HOST):
                self.tensors[layer][numbers] = back.here[place]

    def _keys(self, layers: Ints, numbers: Ints) -> Ints:
        keys: Ints = layers * len(self.tensors[0]) + numbers
        return keys

    def _block(self, num: int) -> Tensor:
        like = self.tensors[0]
        return torch.empty(num, like.shape[1], dtype=like.dtype, pin_memory=self.device.type == "cuda")


def pools_of(tensors: Sequence[Tensor], device: torch.device) -> Pools:
    """The pools of one side of some layers of a model on `device`, wherever they lie."""
    if device.type == "cuda" and not tensors[0].is_cuda:
        return StagedPools(tensors, device, SideStream(device))
    return Pools(tensors, device)


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
        part = vector_part(layer.weight, self.letter)
        bound = vector_bounds(layer.out_features, layer.in_features, layer.r, layer.init_lora_weights)[self.letter]
        rows = on_device(slots, factor.device)
        length = part.stop - part.start
        return draws.uniform_vectors([keys[name] for name in names], rows, length, bound, factor.dtype, part.start)

    def put(self, layers: Ints, outgoing: Ints, rows: Tensor) -> None:
        """See `Candidates`; they are dropped."""

    def prefetch(self, layers: Ints, incoming: Ints, step: int) -> None:
        """See `Candidates`; there is nothing to send for."""

    def settle(self) -> None:
        """See `Candidates`; nothing is ever on its way."""


def new_pool(layer: SwitchLoraLinear, side: str, num: int, slots: Tensor, device: torch.device) -> Tensor:
    """The pool of a layer's side at the start, (num, length): initial draws, and the active vectors in their slots.

    For host memory beside a model on an accelerator it is drawn there, which is faster, and laid into pinned memory;
    later copies go through pinned blocks of their own. Of a sharded layer's pool every rank draws its own columns; it
    has none of most of A's active vectors, whose rows here nobody reads before they are switched out.
    """
    factor = layer.lora_A if side == "A" else layer.lora_B
    part, length = vector_part(layer.weight, side), layer.in_features if side == "A" else layer.out_features
    bounds = vector_bounds(layer.out_features, layer.in_features, layer.r, layer.init_lora_weights)
    at = factor.device if factor.is_cuda else device
    rows = torch.arange(num, device=at)
    pool = draw_candidates(layer.seed, layer.name, side, rows, part, bounds[side], factor.dtype)
    if side == "B" or ranks_of(layer.weight) is None:
        vectors = local(factor.detach()).to(at)
        pool[slots.to(at)] = vectors if side == "A" else vectors.T
    if at != device:
        pool = torch.empty(pool.shape, dtype=pool.dtype, pin_memory=True).copy_(pool)
    return spread_vectors(pool, layer.weight, length)
