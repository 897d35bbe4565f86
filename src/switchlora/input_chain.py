"""Layers that read the same input hand it on to each other, so that what they pass back to it is summed on the way.

q, k and v of an attention layer read one hidden state x, gate and up of an MLP another. Apart, each of them writes its
dX = dY W to memory, and autograd adds these up in passes over memory of their own, which no product hides. In a chain,
q reads x and returns, beside its output, an alias of x, its end; k reads that in place of x, and v the end that k made:

    x -> q -> k -> v        and backward        dX = dY_v W_v, then dX += dY_k W_k, then dX += dY_q W_q,

where each sum is the product's own. Under autocast x is cast once for all of them, and kept once.

No model has to be changed for that, nor say which layers these are: the end of its chain is remembered by x, for
whoever is called with it next, and kept alive by the output of the layer that made it. So a forward pass without a
backward pass holds on to nothing once its outputs are gone, and a layer that comes later begins a new chain; so does
one that is in the chain already, and every one after a backward pass.

There are no chains where nothing is passed back, in compiled graphs, where the compiler sees the sums itself, and from
a leaf, whose readers may be differentiated one by one in any order. From anything else that takes
`retain_graph=True`, as it does without chains wherever x needs what its own graph saved.
"""

import dataclasses
import weakref
from collections.abc import MutableMapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.weak import WeakTensorKeyDictionary


@dataclasses.dataclass(eq=False)
class Link:
    """A layer's place in a chain.

    Attributes:
        state: of the input, see `_state`.
        members: ids of the layers up to this one.
        end: what the next one reads; None before it exists.
        is_open: until a backward pass comes by.
    """

    state: tuple[Any, ...]
    members: frozenset[int]
    end: "weakref.ref[Tensor] | None" = None
    is_open: bool = True


class InputChains:
    """What inputs remember: beside the tensors, for what is written on a tensor is saved with it, and for as long as
    they live."""

    def __init__(self) -> None:
        self._last: MutableMapping[Tensor, Link] = WeakTensorKeyDictionary()  # of an input
        self._ends: MutableMapping[Tensor, Tensor] = WeakTensorKeyDictionary()  # by the output that keeps it alive

    def read(self, x: Tensor, layer: nn.Module) -> tuple[Tensor | None, Link]:
        """What a layer called with x (..., n) reads in its place, None if that is x itself; and its own link."""
        last, state = self._last.get(x), _state(x)
        if last is not None and last.is_open and last.state == state and id(layer) not in last.members:
            end = last.end() if last.end else None
            if end is not None:
                return end, Link(state, last.members | {id(layer)})
        return None, Link(state, frozenset([id(layer)]))

    def hand_on(self, x: Tensor, link: Link, y: Tensor, end: Tensor) -> None:
        """Have x remember the end (..., n) that a layer made together with its output y (..., m)."""
        link.end = weakref.ref(end)
        self._last[x], self._ends[y] = link, end


def can_chain(x: Tensor) -> bool:
    """Whether layers called with x (..., n) may sum what they pass back to it."""
    if torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return False
    return x.requires_grad and not x.is_leaf and type(x) is Tensor


def _state(x: Tensor) -> tuple[Any, ...]:
    """What an end depends on beside x: what was written into it, and the autocast mode."""
    device = x.device.type
    return x._version, torch.is_autocast_enabled(device), torch.get_autocast_dtype(device)
