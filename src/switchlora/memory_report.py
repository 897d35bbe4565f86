"""What a model and its optimizer hold, in exact bytes by kind: `switchlora.memory(model, optimizer)`.

Counted is what was allocated, not what was asked for: the storage behind a tensor, whole and once. Tied weights,
gradients that are views into one buffer, or state stacked over layers therefore count once, padding included, and
a test holds the sum against the allocator's own. A formula would say 3r(m+n) numbers a layer for gradients and
moments; this says what became of it.

Each storage has one kind, the first of: weight (a parameter), buffer (buffers and other tensors that modules hold),
gradient, candidates (SwitchLora's pools), optimizer (everything else that can be reached from the optimizer, also
through Python objects such as GaLore's projectors). Not counted are activations, gradients that do not exist yet, and
what wrappers keep for themselves (DDP's buckets); the peak, which has them, is the allocator's to tell.

Host and device are told apart for candidates and optimizer state, seen from the model's parameters. Beside a model on
an accelerator, what lies in host memory is "host". A model on the CPU has one memory for both, so there the
report says what the configuration means: pools with candidate_device="cpu" are "host", all else is "device".
"""

import collections
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import torch
from torch import Tensor, nn

from switchlora.errors import UserError
from switchlora.optimizer import SwitchLora


@dataclasses.dataclass(frozen=True)
class MemoryReport:
    """Bytes that are allocated, by kind; see the module for what belongs to which.

    Attributes:
        weight_bytes: parameters, trainable or not.
        buffer_bytes: buffers, and other tensors that modules hold.
        gradient_bytes: the parameters' `.grad`; 0 after `zero_grad()`.
        optimizer_device_bytes: moments, and whatever else lies beside the model.
        optimizer_host_bytes: counters, where the model is not on the CPU.
        candidate_device_bytes, candidate_host_bytes: SwitchLora's pools.
        device_bytes, host_bytes, total_bytes: sums of these.
    """

    weight_bytes: int
    buffer_bytes: int
    gradient_bytes: int
    optimizer_device_bytes: int
    optimizer_host_bytes: int
    candidate_device_bytes: int
    candidate_host_bytes: int

    @property
    def device_bytes(self) -> int:
        """All that lies beside the model."""
        state_bytes = self.optimizer_device_bytes + self.candidate_device_bytes
        return self.weight_bytes + self.buffer_bytes + self.gradient_bytes + state_bytes

    @property
    def host_bytes(self) -> int:
        """All that lies in host memory, by the rule of the module."""
        return self.optimizer_host_bytes + self.candidate_host_bytes

    @property
    def total_bytes(self) -> int:
        """Both together."""
        return self.device_bytes + self.host_bytes

    def __str__(self) -> str:
        rows = (
            ("weights", self.weight_bytes, 0),
            ("buffers", self.buffer_bytes, 0),
            ("gradients", self.gradient_bytes, 0),
            ("optimizer state", self.optimizer_device_bytes, self.optimizer_host_bytes),
            ("candidates", self.candidate_device_bytes, self.candidate_host_bytes),
            ("total", self.device_bytes, self.host_bytes),
        )
        head = f"{'bytes':16}{'device':>18}{'host':>18}"
        return "\n".join([head, *(f"{name:16}{device:>18,}{host:>18,}" for name, device, host in rows)])


def memory(model: nn.Module, optimizer: torch.optim.Optimizer) -> MemoryReport:
    """Bytes allocated for a model and its optimizer at this moment, by kind, each storage once.

    Works at any time: before the first step, where torch's optimizers have no state yet and there are no gradients,
    and after it; also in torch's FakeTensorMode and on the meta device, where it says what would be allocated.

    Args:
        model: any module, wrapped or not.
        optimizer: any torch optimizer of this model's parameters.

    Raises:
        UserError: (a ValueError) not a module, not an optimizer, or one that trains parameters of another model.
    """
    optimizer = _checked(model, optimizer)
    parameters = list(model.parameters())
    on_cpu = all(parameter.device.type == "cpu" for parameter in parameters)
    ledger = _Ledger(dict.fromkeys((field.name for field in dataclasses.fields(MemoryReport)), 0))
    for kind, tensors in (
        ("weight_bytes", parameters),
        ("buffer_bytes", [*model.buffers(), *_held_by_modules(model)]),
        ("gradient_bytes", [p.grad for p in parameters if p.grad is not None]),
    ):
        for tensor in tensors:
            ledger.add(kind, tensor)
    pooled_on_host = on_cpu and isinstance(optimizer, SwitchLora) and optimizer.config.candidate_device == "cpu"
    for pool in _pools(optimizer):
        host = pooled_on_host if on_cpu else pool.device.type == "cpu"
        ledger.add("candidate_host_bytes" if host else "candidate_device_bytes", pool)
    for tensor in _tensors(vars(optimizer), into_objects=True):
        host = not on_cpu and tensor.device.type == "cpu"
        ledger.add("optimizer_host_bytes" if host else "optimizer_device_bytes", tensor)
    return MemoryReport(**ledger.num_bytes)


class _Ledger:
    """Bytes by kind; a storage that was seen before counts no more."""

    def __init__(self, num_bytes: dict[str, int]) -> None:
        self.num_bytes = num_bytes
        self._seen: set[int] = set()

    def add(self, kind: str, tensor: Tensor) -> None:
        for part in _plain_parts(tensor):
            storage = part.untyped_storage()
            if storage._cdata not in self._seen:  # its address; that of the data is 0 where there are none
                self._seen.add(storage._cdata)
                self.num_bytes[kind] += storage.nbytes()


def _plain_parts(tensor: Tensor) -> Iterator[Tensor]:
    """The tensors with a storage that a tensor is made of: itself, or a DTensor's shard, or indices and values."""
    if tensor.layout is torch.sparse_coo:
        yield from (tensor._indices(), tensor._values())
    elif hasattr(tensor, "__tensor_flatten__"):
        parts = [getattr(tensor, name) for name in tensor.__tensor_flatten__()[0]]  # a DTensor lists its mesh too
        for part in parts:
            yield from _plain_parts(part) if isinstance(part, Tensor) else ()
    else:
        yield tensor


def _checked(model: nn.Module, optimizer: torch.optim.Optimizer) -> torch.optim.Optimizer:
    """The optimizer itself, out of a wrapper such as accelerate's."""
    for name, value, kind, remedy in (
        ("model", model, nn.Module, "give the model that the optimizer trains"),
        ("optimizer", optimizer, torch.optim.Optimizer, "give a torch.optim.Optimizer, such as SwitchLora"),
    ):
        if not isinstance(value, kind):
            raise UserError(f"{name}: is a {type(value).__name__}; {remedy}: memory(model, optimizer)")
    optimizer = getattr(optimizer, "optimizer", optimizer)
    own = set(model.parameters())
    for number, group in enumerate(optimizer.param_groups):
        strangers = sum(parameter not in own for parameter in group["params"])
        if strangers:
            raise UserError(
                f"optimizer: {strangers} of {len(group['params'])} parameters in its group {number} are not the "
                "model's; give the model it was made for, before to_dense, or one module that holds all it trains"
            )
    return optimizer


def _pools(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    if not isinstance(optimizer, SwitchLora):
        return []
    return [state["candidates"] for state in optimizer.state.values() if "candidates" in state]


def _held_by_modules(model: nn.Module) -> Iterator[Tensor]:
    """Tensors that are neither parameters nor buffers. Not through objects: a module may know its whole trainer."""
    for module in model.modules():
        own = {name: value for name, value in vars(module).items() if name not in ("_parameters", "_modules")}
        yield from _tensors(own, into_objects=False)


def _tensors(root: Any, *, into_objects: bool) -> Iterator[Tensor]:
    """Every tensor that can be reached through containers, and if asked for through the attributes of objects."""
    waiting, seen = [root], set()
    while waiting:
        value = waiting.pop()
        if isinstance(value, Tensor):
            yield value
        elif id(value) not in seen:
            seen.add(id(value))
            waiting += _inside(value, into_objects)


# Leaves of the walk. Modules too: the model's own are counted, and an optimizer may hold its layers.
_CLOSED = (str, bytes, int, float, type, ModuleType, FunctionType, MethodType, BuiltinFunctionType, nn.Module)


def _inside(value: Any, into_objects: bool) -> Iterable[Any]:
    if value is None or isinstance(value, _CLOSED):
        return ()
    parts: list[Any] = []
    if isinstance(value, Mapping):
        parts += [*value.keys(), *value.values()]
    elif isinstance(value, list | tuple | set | frozenset | collections.deque):
        parts += value
    if into_objects:
        parts += getattr(value, "__dict__", {}).values()
        slots = [name for kind in type(value).__mro__ for name in getattr(kind, "__slots__", ())]
        parts += [getattr(value, name) for name in slots if hasattr(value, name)]
    return parts
