"""What can be counted rather than timed: FLOPs of matrix products, and bytes by kind.

Counted in one real step of each contestant, uncompiled, with torch's own counter. It knows matrix products and
attention; other work (norms, AdamW itself, GaLore's decomposition) is not in it, and a limit by FLOPs is a limit for
the products only.
"""

import dataclasses
import math
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.utils import flop_counter

from switchlora.training.presets import Preset

if TYPE_CHECKING:
    from torch.optim import Optimizer

    from switchlora.bench.trainee import Trainee


@dataclasses.dataclass(frozen=True)
class Counts:
    """Of one training step: FLOPs of forward and backward pass, of the optimizer; bytes by kind at its end, when
    gradients and state are there."""

    model_flops: int
    optimizer_flops: int
    num_bytes: dict[str, int]

    @property
    def flops(self) -> int:
        """Of the whole step."""
        return self.model_flops + self.optimizer_flops


def count(trainee: "Trainee", tokens: Tensor) -> Counts:
    """Train one step on tokens (sequences, seq_len), counting; it moves the weights as any step does."""
    trainee.stopwatch.start()
    model_flops = flops_of(lambda: trainee.backward(tokens, eager=True))
    optimizer_flops = flops_of(trainee.optimizer.step)
    num_bytes = bytes_by_kind(trainee.model, trainee.optimizer)
    trainee.optimizer.zero_grad(set_to_none=True)
    return Counts(model_flops, optimizer_flops, num_bytes)


def flops_of(work: Callable[[], Any]) -> int:
    """FLOPs of the matrix products in `work`, as `torch.utils.flop_counter` counts them, and what it leaves out."""
    with flop_counter.FlopCounterMode(display=False, custom_mapping=_left_out_by_torch()) as counter:
        work()
    return int(counter.get_total_flops())


def _left_out_by_torch() -> dict[Any, Any]:
    """The rules for what torch does not count: products into a given tensor (addmm_), and attention on the CPU."""
    aten = torch.ops.aten
    rules = {
        aten.addmm_: _product,
        aten.baddbmm_: _product,
        aten._scaled_dot_product_flash_attention_for_cpu: _attention,
        aten._scaled_dot_product_flash_attention_for_cpu_backward: _attention_backward,
    }
    return {operator: rule for operator, rule in rules.items() if operator not in flop_counter.flop_registry}


# torch hands over shapes in place of tensors.
def _product(into: Any, left: Any, right: Any, **_: Any) -> int:
    return int(2 * math.prod(left) * right[-1])


def _attention(query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(flop_counter.sdpa_flop_count(query, key, value))  # type: ignore[no-untyped-call]


def _attention_backward(grad: Any, query: Any, key: Any, value: Any, *_: Any, **__: Any) -> int:
    return int(flop_counter.sdpa_backward_flop_count(grad, query, key, value))  # type: ignore[no-untyped-call]


def bytes_by_kind(model: nn.Module, optimizer: "Optimizer") -> dict[str, int]:
    """Bytes allocated at this moment, by kind, each storage once.

    To be replaced by `dataclasses.asdict(switchlora.memory(model, optimizer))`, whose names these are.
    """
    on_cpu = next(model.parameters()).device.type == "cpu"
    pooled = [state["candidates"] for state in optimizer.state.values() if "candidates" in state]
    candidates_on_host = on_cpu and getattr(getattr(optimizer, "config", None), "candidate_device", "") == "cpu"
    seen: set[int] = set()

    def size(tensors: Iterable[Tensor]) -> int:
        total = 0
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage.data_ptr() not in seen:
                seen.add(storage.data_ptr())
                total += storage.nbytes()
        return total

    parameters = list(model.parameters())
    state = list(_tensors(list(optimizer.state.values())))
    return {
        "weight_bytes": size(parameters),
        "buffer_bytes": size(model.buffers()),
        "gradient_bytes": size(p.grad for p in parameters if p.grad is not None),
        "candidate_device_bytes": size(t for t in pooled if not candidates_on_host and (on_cpu or not _on_host(t))),
        "candidate_host_bytes": size(pooled),
        "optimizer_device_bytes": size(t for t in state if on_cpu or not _on_host(t)),
        "optimizer_host_bytes": size(state),
    }


def _on_host(tensor: Tensor) -> bool:
    return tensor.device.type == "cpu"


def _tensors(value: Any) -> Iterable[Tensor]:
    """Tensors in nested containers, and in plain objects such as GaLore's projectors."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, dict):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    elif hasattr(value, "__dict__") and not isinstance(value, type):
        yield from _tensors(vars(value))


def full_rank_flops(shape: Preset, num_tokens: int, seq_len: int) -> int:
    """FLOPs that a full-rank step needs by the usual formula, without recomputation: 6 per token for each number in a
    matrix, and 12 times layers, hidden size and sequence length per token for attention (as if it looked ahead, too).

    Its share of what the device can do is the model FLOP utilisation.
    """
    h, ffn = shape.hidden_size, shape.ffn_size
    num_weights = shape.num_layers * (4 * h * h + 3 * h * ffn) + h * shape.vocab_size
    return num_tokens * (6 * num_weights + 12 * shape.num_layers * h * seq_len)
