"""Bytes that a device hands to collectives in one step, by kind: what `distributed.traffic` counts, by formula.

    ddp     all-reduce of the gradients of what trains, and of the loss (4 bytes), once, whatever the forward passes
    fsdp    in every forward and backward pass all-gather of the weights, twice those of a decoder layer and once the
            rest: of each its own share, rows rounded up; and reduce-scatter of the gradients. In every step, for each
            converted layer, all-gather of A' and of its change, ceil(r / devices) n numbers each, and two all-to-alls
            of the vectors of A that are switched, k n / devices numbers each; and an all-reduce of the loss, and of the
            norm of each tensor's gradient
    muon    under fsdp: five all-reduces of r x r numbers a factor, and two all-to-alls of A's update

Where A and B move in turn, A' or its change is gathered, not both, and one factor is moved by Muon's rule: given is the
mean of two steps.

The k of a step is drawn; given is its mean at the start, r / interval, and the schedule only lets it fall.
"""

import math

from switchlora.muon import STEPS
from switchlora.planning.outline import WEIGHT, Factors, Outline, Part, Piece

SCALAR_BYTES = 4


def traffic_of(
    outline: Outline,
    num_devices: int,
    strategy: str,
    *,
    passes: int = 1,
    interval: float = math.inf,
    muon: bool = False,
    alternate: bool = False,
    gathered_item_bytes: int | None = None,
    reduced_item_bytes: int | None = None,
) -> dict[str, float]:
    """Bytes by kind; empty for one device.

    Args:
        outline: of the model.
        num_devices, strategy: ddp or fsdp; none: nothing travels.
        passes: forward and backward passes in a step.
        interval: steps between switches of a vector, at the start.
        muon: whether factors are moved by Muon's rule.
        alternate: whether A and B move in turn.
        gathered_item_bytes, reduced_item_bytes: of a number that is gathered, and of a gradient that is summed, where
            it is not as stored (mixed precision, compression).
    """
    if num_devices == 1 or strategy == "none":
        return {}
    parts = ((outline.num_layers, 2, outline.block), (1, 1, outline.rest))
    if strategy == "ddp":
        numbers = sum(
            num * _numel(piece) * (reduced_item_bytes or piece.item_bytes)
            for num, _, part in parts
            for piece in _trained(part)
        )
        return {"all_reduce": numbers + SCALAR_BYTES}
    found = {"all_gather": 0.0, "reduce_scatter": 0.0, "all_to_all": 0.0, "all_reduce": float(SCALAR_BYTES)}
    for num, times, part in parts:
        for piece in part.pieces:
            if piece.kind == WEIGHT:
                own = _padded(piece, num_devices) // num_devices
                found["all_gather"] += num * passes * times * own * (gathered_item_bytes or piece.item_bytes)
        for piece in _trained(part):
            found["all_reduce"] += num * piece.item_bytes
            wide = reduced_item_bytes or piece.item_bytes
            found["reduce_scatter"] += num * passes * _padded(piece, num_devices) * wide
        for layer in part.factors:
            for kind, num_bytes in _of_layer(layer, num_devices, interval, muon, alternate).items():
                found[kind] += num * num_bytes
    return {kind: num_bytes for kind, num_bytes in found.items() if num_bytes}


def _of_layer(layer: Factors, num_devices: int, interval: float, muon: bool, alternate: bool) -> dict[str, float]:
    wide = max(layer.item_bytes, 4)
    own_rows = -(-layer.r // num_devices)
    switched = layer.r / interval  # of A, a step
    moved = 1 if alternate else 2  # factors, a step
    found = {
        "all_gather": float(moved) * own_rows * layer.n * wide,
        "all_to_all": 2 * switched * layer.n / num_devices * layer.item_bytes,
    }
    if muon:
        found["all_reduce"] = float(moved) * STEPS * layer.r**2 * wide
        found["all_to_all"] += float(moved) * layer.r * layer.n / num_devices * wide
    return found


def _trained(part: Part) -> list[Piece]:
    return [piece for piece in part.pieces if piece.kind == WEIGHT and piece.trains]


def _numel(piece: Piece) -> int:
    return math.prod(piece.shape)


def _padded(piece: Piece, num_devices: int) -> int:
    """Numbers of a tensor whose rows are rounded up to a multiple of the devices."""
    if not piece.shape:
        return num_devices
    return -(-piece.shape[0] // num_devices) * num_devices * math.prod(piece.shape[1:])
