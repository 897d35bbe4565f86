"""Rows -> token ids -> padded batches.

A causal model reads left to right, so its last token has seen all: `score` reads the class off there. Two texts stand
with the end-of-text token between them, as documents do in pre-training; none follows the last, for with many
tokenizers it is also what pads, and transformers looks for the last token that does not. A text that happens to spell a
special token holds its characters, as in pre-training.
"""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from switchlora.errors import UserError
from switchlora.finetuning.rows import Row

if TYPE_CHECKING:
    import torch

Example = tuple[list[int], float]


def encode(rows: Sequence[Row], tokenizer: Any, seq_len: int) -> tuple[list[Example], int]:
    """(token ids, label) of each row, at most seq_len tokens: of two texts the longer one is cut first.

    Args:
        tokenizer: has an end-of-text token.

    Returns:
        the examples, and how many of them were cut.

    Raises:
        UserError: seq_len has no room for two texts.
    """
    separator = [tokenizer.eos_token_id]
    begin = [tokenizer.bos_token_id] if tokenizer.bos_token_id is not None else separator
    num_texts = len(rows[0].texts)
    room = seq_len - len(begin) - len(separator) * (num_texts - 1)
    if room < num_texts:
        raise UserError(f"--seq-len {seq_len}: has no room for {num_texts} texts; use more")
    texts = [text for row in rows for text in row.texts]
    flat = tokenizer(texts, add_special_tokens=False, split_special_tokens=True)["input_ids"]
    examples, num_cut = [], 0
    for number, row in enumerate(rows):
        whole = flat[number * num_texts : (number + 1) * num_texts]
        parts = _cut(whole, room)
        num_cut += sum(map(len, parts)) < sum(map(len, whole))
        ids = list(begin)
        for place, part in enumerate(parts):
            ids += (separator if place else []) + part
        examples.append((ids, row.label))
    return examples, num_cut


def _cut(parts: Sequence[list[int]], room: int) -> list[list[int]]:
    lengths = [len(part) for part in parts]
    while sum(lengths) > room:
        longest = lengths.index(max(lengths))
        others = max((length for i, length in enumerate(lengths) if i != longest), default=0)
        lengths[longest] -= min(sum(lengths) - room, max(1, lengths[longest] - others))
    return [list(part[:length]) for part, length in zip(parts, lengths, strict=True)]


def batches(
    examples: Sequence[Example], order: Sequence[int], batch_size: int, pad: int, device: "torch.device"
) -> "Iterator[tuple[dict[str, torch.Tensor], torch.Tensor]]":
    """The model's input (B, longest of the batch), padded on the right, and the labels (B,) float32."""
    import torch

    for first in range(0, len(order), batch_size):
        some = [examples[i] for i in order[first : first + batch_size]]
        length = max(len(ids) for ids, _ in some)
        tokens = torch.full((len(some), length), pad)
        mask = torch.zeros(len(some), length, dtype=torch.long)
        for i, (ids, _) in enumerate(some):
            tokens[i, : len(ids)] = torch.tensor(ids)
            mask[i, : len(ids)] = 1
        labels = torch.tensor([label for _, label in some])
        yield {"input_ids": tokens.to(device), "attention_mask": mask.to(device)}, labels.to(device)
