"""Some layers of one shape in one step: `moving_layers.move_layers_`, by a number of launches that hardly knows them.

The operands of the weight update, (dB, B) and (A', dA), exist for several layers at a time. To bound what that takes
(`CHUNK_BYTES`, or one layer where that is more), layers go in chunks. A chunk is one launch for A and one for B; then
one batched product and one launch for bfloat16 weights, or one product a layer for float32 ones. Addresses and keys of
all layers are one table, sent once.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from switchlora.kernels.moving import move_factors_
from switchlora.kernels.tables import (
    PARAMETER_FIELDS,
    aligned,
    as_table,
    current_device,
    gradient,
    parameter_fields,
)
from switchlora.kernels.weight_update import update_weights_
from switchlora.layer import SwitchLoraLinear
from switchlora.moving import Turn
from switchlora.moving_layers import Coefficients, KeyOf, State
from switchlora.rules import AdamW, Rule
from switchlora.transfers import on_device
from switchlora.weight_update import operands

CHUNK_BYTES = 64 * 2**20


def layers_per_chunk(m: int, n: int, r: int, narrow_weight: bool) -> int:
    """How many layers' operands fit into `CHUNK_BYTES`; at least one.

    Args:
        m, n, r: of a layer.
        narrow_weight: whether W is bfloat16, so that the product itself is kept too.
    """
    layer_bytes = 4 * (2 * r * (m + n) + (m * n if narrow_weight else 0))
    return max(1, CHUNK_BYTES // layer_bytes)


def move_layers_(
    layers: Sequence[SwitchLoraLinear],
    states: Mapping[str, Sequence[State]],
    coefficients: Mapping[str, Coefficients],
    rule: Rule,
    decay: float,
    key_of: KeyOf,
    turn: Turn = "AB",
) -> None:
    """See `moving_layers.move_layers_`; the rule is AdamW. What does not move has coefficients of 0."""
    assert isinstance(rule, AdamW)
    first, weights = layers[0], [layer.weight for layer in layers]
    (m, n), r, device = first.weight.shape, first.r, first.weight.device
    factors = {"A": [layer.lora_A for layer in layers], "B": [layer.lora_B for layer in layers]}
    grads = {letter: [gradient(factor) for factor in of_side] for letter, of_side in factors.items()}
    narrow = first.weight.dtype == torch.bfloat16
    rows = []
    for i, layer in enumerate(layers):
        sides = (
            parameter_fields(factors[side][i], grads[side][i], states[side][i], key_of(layer.name, f" of {side}"))
            for side in ("A", "B")
        )
        of_weight = [layer.weight.data_ptr(), key_of(layer.name, "")("rounding of W") if narrow else 0]
        rows.append([*(field for side in sides for field in side), *of_weight])
    on_host = as_table(rows)
    places = {"A": 0, "B": PARAMETER_FIELDS, "W": 2 * PARAMETER_FIELDS}
    is_aligned = {side: aligned(on_host[:, places[side] : places[side] + 4]) for side in ("A", "B")}
    table = on_device(on_host, device)
    size = min(len(layers), layers_per_chunk(m, n, r, narrow))
    left, right, product = _buffers(size, m, n, r, narrow, device)
    with current_device(device):
        for start in range(0, len(layers), size):
            chunk = slice(start, min(start + size, len(layers)))
            num = chunk.stop - start
            for letter, buffer in (("A", right), ("B", left)):
                move_factors_(
                    factors[letter][0], grads[letter][0], states[letter][0]["exp_avg"], letter == "A",
                    table[chunk, places[letter] :], coefficients[letter].table[chunk], buffer[:num], rule.betas,
                    is_aligned[letter],
                )  # fmt: skip
            update_weights_(
                weights[chunk], *operands(left[:num], right[:num], turn), None if product is None else product[:num],
                first.scaling, decay, table[chunk, places["W"] :], aligned(on_host[:, places["W"]]),
            )  # fmt: skip


def _buffers(
    num: int, m: int, n: int, r: int, narrow: bool, device: torch.device
) -> tuple[Tensor, Tensor, Tensor | None]:
    left = torch.empty(num, m, 2 * r, dtype=torch.float32, device=device)
    right = torch.empty(num, 2 * r, n, dtype=torch.float32, device=device)
    return left, right, torch.empty(num, m, n, dtype=torch.float32, device=device) if narrow else None
