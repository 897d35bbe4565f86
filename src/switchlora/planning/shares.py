"""Bytes on one device: which part of each tensor it holds, and what comes on top while a step runs.

DDP keeps everything everywhere. FSDP2 splits parameters, gradients and moments by rows and candidates by columns, in
blocks of ceil(size / devices); the first device never has less than another. It gathers one decoder layer at a time,
and the next one meanwhile; what is in no decoder layer (embeddings, head) stays gathered from forward to backward.
"""

import dataclasses
import math
from collections.abc import Iterable

from switchlora.planning.outline import (
    CANDIDATE,
    COLUMNS,
    GRADIENT,
    OPTIMIZER,
    ROWS,
    WEIGHT,
    Outline,
    Part,
    Piece,
)

GATHERED_BLOCKS = 2  # the one that computes, and the next


@dataclasses.dataclass(frozen=True)
class Memory:
    """Bytes of one device, and of its host, by kind."""

    weight_bytes: int
    gradient_bytes: int
    optimizer_bytes: int
    candidate_device_bytes: int
    candidate_host_bytes: int
    gathered_bytes: int  # by FSDP2: whole weights, and gradients on their way
    activation_bytes: int

    @property
    def device_bytes(self) -> int:
        """On the device at the end of a forward pass."""
        state = self.weight_bytes + self.gradient_bytes + self.optimizer_bytes + self.candidate_device_bytes
        return state + self.gathered_bytes + self.activation_bytes


def share_bytes(piece: Piece, num_devices: int, strategy: str) -> int:
    """Of a tensor, on the device that has most of it."""
    shape = list(piece.shape)
    if strategy == "fsdp" and piece.split in (ROWS, COLUMNS):
        dim = 0 if piece.split == ROWS else 1
        shape[dim] = -(-shape[dim] // num_devices)
    return math.prod(shape) * piece.item_bytes


def memory_of(
    outline: Outline, num_devices: int, strategy: str, *, checkpoint_activations: bool, gathered_item_bytes: int | None
) -> Memory:
    """What each device holds.

    Args:
        strategy: none, ddp or fsdp.
        checkpoint_activations: a block keeps what it was given, and one block is computed again at a time.
        gathered_item_bytes: of a number under FSDP2's mixed precision; None: as stored.
    """

    def of(kind: str, on_host: bool = False) -> int:
        def total(part: Part) -> int:
            return sum(
                share_bytes(piece, num_devices, strategy)
                for piece in part.pieces
                if piece.kind == kind and piece.on_host == on_host
            )

        return outline.num_layers * total(outline.block) + total(outline.rest)

    block, rest = outline.block, outline.rest
    kept = outline.num_layers * block.saved_bytes
    if checkpoint_activations:
        kept = outline.num_layers * outline.boundary_bytes + block.saved_bytes
    gathered = 0
    if strategy == "fsdp":
        gathered = GATHERED_BLOCKS * whole_bytes(block.pieces, gathered_item_bytes) + whole_bytes(
            rest.pieces, gathered_item_bytes
        )
    return Memory(
        weight_bytes=of(WEIGHT),
        gradient_bytes=of(GRADIENT),
        optimizer_bytes=of(OPTIMIZER),
        candidate_device_bytes=of(CANDIDATE),
        candidate_host_bytes=of(CANDIDATE, on_host=True),
        gathered_bytes=gathered,
        activation_bytes=kept + rest.saved_bytes,
    )


def whole_bytes(pieces: Iterable[Piece], item_bytes: int | None) -> int:
    """Of weights and of gradients, not shared out."""
    return sum(
        math.prod(piece.shape) * (item_bytes or piece.item_bytes)
        for piece in pieces
        if piece.kind in (WEIGHT, GRADIENT)
    )
