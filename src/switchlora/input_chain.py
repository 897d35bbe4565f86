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

There are no chains where nothing is passed back, in compiled graphs, where the compiler sees the sums itself, under
torch.func, and from a leaf, whose readers may be differentiated one by one in any order.

What a chain costs: a backward pass from one output goes through the layers before it. So to differentiate outputs of
one x one after the other, the later ones first, or down to the outputs and from there, takes `retain_graph=True`, as
torch's error says; and hooks on a layer's parameters or output are called with None where that output takes no part but
a later one's does (on an output with a bias and more than two dimensions, which is a view, not at all). Writing through
`x.data` between two calls is not seen.
"""

import dataclasses
import functools
import itertools
import weakref

import torch
from torch import Tensor, nn


@dataclasses.dataclass(eq=False, slots=True)
class Link:
    """A layer's place in a chain.

    Attributes:
        number: of the link; none has the same.
        version: of the input, which counts what was written into it.
        autocast: the dtype it was cast to, if any.
        members: ids of the layers up to this one.
        is_open: until a backward pass comes by.
    """

    number: int
    version: int
    autocast: torch.dtype | None
    members: tuple[int, ...]
    is_open: bool = True


class InputChains:
    """What inputs remember: beside the tensors, for what is written on a tensor is saved with it, and for as long as
    they live. Entries hold a weak reference that takes them out when its tensor goes, without a line of Python: while
    products empty the caches, every line costs microseconds."""

    def __init__(self) -> None:
        self._last: dict[int, tuple[weakref.ref[Tensor], Link]] = {}  # by the id of an input
        self._ends: dict[int, tuple[weakref.ref[Tensor], Tensor]] = {}  # by a link's number, while its output lives
        self._numbers = itertools.count()

    def read(self, x: Tensor, autocast: torch.dtype | None, layer: nn.Module) -> tuple[Tensor | None, Link]:
        """What a layer called with x (..., n) reads in its place, None if that is x itself; and its own link."""
        number, version, members = next(self._numbers), x._version, (id(layer),)
        found = self._last.get(id(x))
        if found is not None:
            last = found[1]
            fits = last.is_open and last.version == version and last.autocast == autocast
            held = self._ends.get(last.number) if fits and members[0] not in last.members else None
            if held is not None:
                return held[1], Link(number, version, autocast, last.members + members)
        return None, Link(number, version, autocast, members)

    def hand_on(self, x: Tensor, link: Link, y: Tensor, end: Tensor) -> None:
        """Have x remember the end (..., n) that a layer made together with its output y (..., m), or what y views."""
        y = y if y._base is None else y._base
        self._last[id(x)] = weakref.ref(x, functools.partial(self._last.pop, id(x))), link
        self._ends[link.number] = weakref.ref(y, functools.partial(self._ends.pop, link.number)), end


def can_chain(x: Tensor) -> bool:
    """Whether layers called with x (..., n) may sum what they pass back to it."""
    if is_transformed() or not torch.is_grad_enabled():
        return False
    return x.requires_grad and type(x) is Tensor and not x.is_leaf


def is_transformed() -> bool:
    """Whether a transform of torch.func, or the compiler, sees what is called now."""
    active = getattr(torch._C, "_are_functorch_transforms_active", None)
    return torch.compiler.is_compiling() or active is None or active()
