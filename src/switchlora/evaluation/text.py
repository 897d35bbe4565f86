"""Loss per token on a text: perplexity exp(loss), and bits per byte, which does not depend on the tokenizer.

Documents are packed as in training: one end-of-text token after each, cut into windows of seq_len, each predicted from
its own beginning, so that every token but the first of a window counts, and all alike. The last window may be shorter.
"""

import dataclasses
import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from switchlora.trained.loading import require_tokens
from switchlora.training.evaluate import perplexity

if TYPE_CHECKING:
    import numpy as np
    import torch

    from switchlora.data.store import Tokens


@dataclasses.dataclass(frozen=True)
class OnText:
    """What was found: loss in nats per predicted token; tokens read, and of these predicted; bytes of the text that was
    read, the end of a cut document in proportion."""

    loss: float
    perplexity: float
    bits_per_byte: float
    num_tokens: int
    num_predicted: int
    num_bytes: int
    seq_len: int


def measure(
    model: Any,
    tokens: "Tokens",
    *,
    seq_len: int,
    batch_size: int,
    device: "torch.device",
    max_tokens: int | None = None,
    whole_windows: bool = False,
) -> OnText:
    """Evaluate a causal language model on a stream of tokens.

    Args:
        model: of transformers, in evaluation mode, on `device`.
        seq_len: tokens in a window; batch_size: windows at a time.
        tokens: two or more; with whole_windows, seq_len or more.
        max_tokens: read so many at most; None: all.
        whole_windows: leave out a last one that is shorter, as training's validation does, but read one.

    Raises:
        UserError: the text has tokens that the model does not know.
    """
    import torch

    total, num_tokens, num_predicted = 0.0, 0, 0
    with torch.no_grad():
        for rows in _batches(tokens, seq_len, batch_size, max_tokens, whole_windows):
            require_tokens(model, int(rows.max()))
            batch = torch.from_numpy(rows).to(device)
            predicted = batch.shape[0] * (batch.shape[1] - 1)
            total += float(model(input_ids=batch, labels=batch).loss.double()) * predicted
            num_tokens += batch.numel()
            num_predicted += predicted
    loss, num_bytes = total / num_predicted, round(num_tokens * tokens.bytes_per_token)
    bits = loss / math.log(2) * num_tokens / num_bytes
    return OnText(loss, perplexity(loss), bits, num_tokens, num_predicted, num_bytes, seq_len)


def _batches(
    tokens: "Tokens", seq_len: int, batch_size: int, max_tokens: int | None, whole_windows: bool
) -> "Iterator[np.ndarray[Any, Any]]":
    """(windows, length) int64: full windows, then at most one of a shorter one."""
    end = tokens.num_tokens if max_tokens is None else min(tokens.num_tokens, max_tokens)
    end = max(end, seq_len) if whole_windows else end
    num_windows = end // seq_len
    for first in range(0, num_windows, batch_size):
        last = min(first + batch_size, num_windows)
        yield tokens.read(first * seq_len, last * seq_len).reshape(last - first, seq_len)
    if end - num_windows * seq_len >= 2 and not whole_windows:
        yield tokens.read(num_windows * seq_len, end)[None]
