"""Validation: the loss per token over packed blocks, weighted by tokens, and what follows from it.

Perplexity is exp(loss) and depends on the tokenizer; bits per byte, loss / ln 2 * tokens / bytes, does not. Every
block counts alike because every block has the same number of predicted tokens (seq_len - 1); a batch that is
smaller than the others is weighed by its size.
"""

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    import torch
    from torch import nn

    from switchlora.data import Blocks

PERIODIC_TOKENS = 65_536  # during training a prefix is enough to see the curve; at the end it is --eval-tokens


def evaluate(
    model: "nn.Module",
    blocks: "Blocks",
    *,
    batch_size: int,
    max_tokens: int,
    device: "torch.device",
    autocast: "AbstractContextManager[None]",
    rank: int = 0,
    world_size: int = 1,
) -> "torch.Tensor":
    """This rank's part of the mean loss, in nats per predicted token, over the first blocks: at most `max_tokens` (at
    least one block). The sum over ranks is the loss; float64 ().

    All ranks call the model equally often, as FSDP2 needs it: one that has no batch left repeats the last one, and does
    not count it. The model is left in the mode it was in.
    """
    import numpy as np
    import torch

    num_blocks = min(len(blocks), max(1, max_tokens // blocks.seq_len))
    was_training = model.training
    model.eval()
    total = torch.zeros((), dtype=torch.float64)
    with torch.no_grad(), autocast:
        starts = range(0, num_blocks, batch_size)
        for number in range(rank, -(-len(starts) // world_size) * world_size, world_size):
            first = starts[min(number, len(starts) - 1)]
            rows = [blocks[i] for i in range(first, min(first + batch_size, num_blocks))]
            tokens = torch.from_numpy(np.stack(rows)).to(device)
            loss = model(input_ids=tokens, labels=tokens).loss.double().cpu() * len(rows)
            total += loss if number < len(starts) else 0
    model.train(was_training)
    return total / num_blocks


def perplexity(loss: float) -> float:
    """exp(loss); infinite where that overflows."""
    return math.exp(loss) if loss < 700 else math.inf


def bits_per_byte(loss: float, blocks: "Blocks") -> float:
    """Bits per UTF-8 byte of the text behind the blocks, from the loss in nats per token."""
    return loss / math.log(2) * blocks.num_tokens / blocks.num_bytes
