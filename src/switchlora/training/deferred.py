"""Build a model without memory for its parameters now, and give each rank its rows of the very same model later.

A model that is shared out among ranks may be too large for any one of them, so it is built on the meta device. But it
must not depend on how it is trained: from a seed come the weights that one process would draw. torch draws in the
order in which a model is built, so what is done to parameters while they have no memory (draw, fill, copy) is written
down: each operation, and for draws the state of the generator, 5 kB. A parameter's operations, done again on one
tensor of its size, give its values at any time (`Recorded.value`), and no more than one parameter is ever whole.

What looks at values cannot be recorded (truncated normals, which draw until all fit; orthogonal matrices): that is
`NotRecordable`, and such a model has to be built as usual. Buffers are small and always are.

To move the generator on, each draw is made twice in all.
"""

import contextlib
import dataclasses
import sys
from collections.abc import Iterator, Mapping
from typing import Any, Protocol
from unittest import mock

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_parameter_registration_hook
from torch.utils._python_dispatch import TorchDispatchMode

# These do nothing to a tensor without memory, in silence.
PASS_OVER = ("_no_grad_trunc_normal_", "trunc_normal_", "orthogonal_", "sparse_", "dirac_")


class NotRecordable(Exception):
    """A parameter is initialised by something that looks at its values."""


@dataclasses.dataclass(frozen=True)
class Operation:
    """Something done in place to a parameter, or to a part of it, and the generator's state before, if it drew."""

    function: Any
    geometry: tuple[Any, Any, Any]  # size, stride and offset of what it was done to
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    generator: Tensor | None

    def repeat_(self, whole: Tensor) -> None:
        """Do it again."""
        if self.generator is not None:
            torch.set_rng_state(self.generator)
        self.function(whole.as_strided(*self.geometry), *self.args, **self.kwargs)


@dataclasses.dataclass(frozen=True)
class Recorded:
    """How to make one parameter: what it was before it was registered (None: anything), and what was done since."""

    start: Tensor | None
    operations: tuple[Operation, ...]

    def value(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """The whole parameter, on the CPU, drawn in fp32 as it was then and rounded to `dtype`."""
        whole = torch.empty(shape) if self.start is None else self.start.clone()
        with torch.random.fork_rng(devices=[]):
            for operation in self.operations:
                operation.repeat_(whole)
        return whole.to(dtype)


class Recipe(Protocol):
    """How to make one parameter."""

    def value(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """The whole parameter, on the CPU, rounded to `dtype`."""


Recipes = Mapping[str, Recipe]


class Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Parameters that are registered inside come to lie on the meta device; `of` tells how each is made."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._untouched: set[int] = set()
        self._kept: list[Tensor] = []  # so that no address of theirs is used again
        self._starts: dict[int, Tensor | None] = {}
        self._operations: dict[int, list[Operation]] = {}

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = function(*args, **kwargs)
        target = args[0] if args and isinstance(args[0], Tensor) else None
        if function in (torch.ops.aten.empty.memory_format, torch.ops.aten.empty_like.default):
            self._untouched.add(_storage(result))
        elif target is not None and function._schema.is_mutable:
            self._untouched.discard(_storage(target))
            if target.is_meta and _storage(target) in self._starts:
                self._note(function, target, args[1:], kwargs)
        elif not function.is_view:
            for made in result if isinstance(result, tuple | list) else (result,):
                if isinstance(made, Tensor):
                    self._untouched.discard(_storage(made))  # an address that was used before
        return result

    def _note(self, function: Any, target: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        if any(isinstance(arg, Tensor) and arg.is_meta for arg in args):
            raise NotRecordable
        draws = torch.Tag.nondeterministic_seeded in function.tags
        generator = torch.get_rng_state() if draws else None
        geometry = target.size(), target.stride(), target.storage_offset()
        kept = tuple(arg.clone() if isinstance(arg, Tensor) else arg for arg in args)
        self._operations.setdefault(_storage(target), []).append(Operation(function, geometry, kept, kwargs, generator))
        if draws:  # a tensor without memory leaves the generator where it was
            function(torch.empty(target.size(), dtype=target.dtype), *args, **kwargs)

    def take(self, module: nn.Module, name: str, parameter: nn.Parameter | None) -> nn.Parameter | None:
        """The hook: another parameter in the place of one that is being registered."""
        if parameter is None or parameter.is_meta:
            return None
        start = None if _storage(parameter) in self._untouched else parameter.detach().clone()
        self._untouched.discard(_storage(parameter))  # for when its address is used again
        light = nn.Parameter(torch.empty_like(parameter, device="meta"), parameter.requires_grad)
        self._starts[_storage(light)] = start
        self._kept.append(light)
        return light

    def of(self, parameter: Tensor) -> Recorded:
        """How a parameter of the model is made.

        Raises:
            NotRecordable: it was put into its module without being registered.
        """
        key = _storage(parameter)
        if key not in self._starts:
            raise NotRecordable
        return Recorded(self._starts[key], tuple(self._operations.get(key, ())))


@contextlib.contextmanager
def recording() -> Iterator[Recorder]:
    """Models that are built inside have no memory for parameters.

    Raises:
        NotRecordable: see the module's text.
    """
    recorder = Recorder()
    hook: Any = recorder.take  # its type in torch knows no result
    handle = register_module_parameter_registration_hook(hook)
    try:
        with contextlib.ExitStack() as patched:
            refuse = mock.Mock(side_effect=NotRecordable)
            for name in PASS_OVER:
                patched.enter_context(mock.patch.object(nn.init, name, refuse, create=True))
            # transformers keeps the originals in a table of its own
            table = getattr(sys.modules.get("transformers.initialization"), "TORCH_INIT_FUNCTIONS", {})
            patched.enter_context(mock.patch.dict(table, {name: refuse for name in PASS_OVER if name in table}))
            patched.enter_context(recorder)
            yield recorder
    finally:
        handle.remove()


def _storage(tensor: Tensor) -> int:
    return int(tensor.untyped_storage()._cdata)
