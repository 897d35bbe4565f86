"""What can be counted rather than timed: FLOPs of matrix products, and bytes by kind.

Counted in one real step of each contestant, uncompiled, by `switchlora.flops` and `switchlora.memory`. FLOPs are those
of matrix products and attention; other work (norms, AdamW itself, GaLore's decomposition) is not in it, and a limit by
FLOPs is a limit for the products only.
"""

import dataclasses
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from switchlora.flops import count_flops
from switchlora.memory_report import memory
from switchlora.training.presets import Preset

if TYPE_CHECKING:
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
    with torch.compiler.set_stance("force_eager"):
        model_flops = count_flops(lambda: trainee.backward(tokens))
    optimizer_flops = count_flops(trainee.optimizer.step)
    num_bytes = dataclasses.asdict(memory(trainee.model, trainee.optimizer))
    trainee.optimizer.zero_grad(set_to_none=True)
    return Counts(model_flops, optimizer_flops, num_bytes)


def needed_flops(shape: Preset, num_tokens: int, seq_len: int) -> int:
    """FLOPs that a full-rank step needs by the usual formula, without recomputation: 6 per token for each number in a
    matrix, and 12 times layers, hidden size and sequence length per token for attention (as if it looked ahead, too).

    Its share of what the device can do is the model FLOP utilisation.
    """
    h, ffn = shape.hidden_size, shape.ffn_size
    num_weights = shape.num_layers * (4 * h * h + 3 * h * ffn) + h * shape.vocab_size
    return num_tokens * (6 * num_weights + 12 * shape.num_layers * h * seq_len)
