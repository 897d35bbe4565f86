"""Move the factors of sharded layers, and W with them: `moving_layers`, on the rows that this rank holds.

    own rows of W  +=  s (own rows of dB  A'  +  own rows of B  dA)

B is split as W is, so its rows are here; A' and dA, (r, n) each, are gathered from all ranks: 2 r n numbers a layer
and step, where gathering W for the forward pass takes m n. They are wanted only now, in the product, and dropped
after it; where A and B move in turn, one of them is. Moments never leave their rank. While one layer's rows travel
the next layer's are moved.

Gathered blocks are all as long as the first rank's, so where r does not divide, the last rows are padding: zeros, which
meet zeros on the other side of the product.
"""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from switchlora.distributed.muon import sharded_rules
from switchlora.layer import SwitchLoraLinear
from switchlora.moving import Change, Turn, move_factors_
from switchlora.moving_layers import Coefficients, KeyOf, State
from switchlora.precision import wide_dtype
from switchlora.rules import Rule
from switchlora.shards import Ranks, local, locals_of, own_rows
from switchlora.weight_update import half_of, operands, product_buffers, update_weight_

if TYPE_CHECKING:
    from torch.distributed import Work


def move_sharded_layers_(
    layers: Sequence[SwitchLoraLinear],
    states: Mapping[str, Sequence[State]],
    coefficients: Mapping[str, Coefficients],
    rule: Rule,
    decay: float,
    key_of: KeyOf,
    turn: Turn,
    ranks: Ranks,
) -> None:
    """See `moving_layers.move_layers_`; the layers, and their moments, are shared out among `ranks`."""
    first = layers[0]
    rules = sharded_rules(rule, first.out_features, first.in_features, first.r, ranks)
    under_way: tuple[SwitchLoraLinear, _Product] | None = None
    for i, layer in enumerate(layers):
        product = _Product.of(layer, ranks)
        of_layer = {
            "A": coefficients["A"].of_layer(i, "A", own_rows(layer.lora_A)),
            "B": coefficients["B"].of_layer(i, "B"),
        }
        move_factors_(
            local(layer.lora_A),
            local(layer.lora_B),
            {letter: locals_of(states[letter][i]) for letter in ("A", "B")},
            of_layer,
            rules,
            {letter: key_of(layer.name, f" of {letter}") for letter in ("A", "B")},
            product.change,
            turn,
            {"A": own_rows(layer.lora_A).start, "B": own_rows(layer.lora_B).start},
        )
        product.gather(ranks, turn)
        if under_way is not None:
            _finish(*under_way, decay, key_of, turn)
        under_way = layer, product
    if under_way is not None:
        _finish(*under_way, decay, key_of, turn)


def _finish(layer: SwitchLoraLinear, product: "_Product", decay: float, key_of: KeyOf, turn: Turn) -> None:
    product.wait()
    W, first_row = local(layer.weight), own_rows(layer.weight).start
    factors = operands(product.left, product.right, turn)
    update_weight_(W, *factors, layer.scaling, decay, key_of(layer.name, ""), first_row)


@dataclasses.dataclass
class _Product:
    """The operands of one layer's product; P is r, rounded up to a multiple of the ranks.

    left: (own m, 2P) = (own rows of dB, B); right: (2P, n) = (A', dA) of all ranks; own: this rank's part of it.
    """

    left: Tensor
    right: Tensor
    own: Tensor  # (2, P / ranks, n)
    change: Change
    works: "list[Work]" = dataclasses.field(default_factory=list)

    @classmethod
    def of(cls, layer: SwitchLoraLinear, ranks: Ranks) -> "_Product":
        """Buffers, zero where they are padding."""
        r, rows_of_A, rows_of_W = layer.r, own_rows(layer.lora_A), own_rows(layer.weight)
        num, block = rows_of_A.stop - rows_of_A.start, ranks.block(r)
        padded, dtype, device = block * ranks.num, wide_dtype(layer.lora_A.dtype), layer.weight.device
        left, right = product_buffers(rows_of_W.stop - rows_of_W.start, layer.in_features, padded, dtype, device)
        own = torch.empty(2, block, layer.in_features, dtype=dtype, device=device)
        if num < block:
            own[:, num:] = 0
        if r < padded:
            left[:, r:padded] = left[:, padded + r :] = 0
        change = Change(dB=left[:, :r], B=left[:, padded : padded + r], A=own[0, :num], dA=own[1, :num])
        return cls(left, right, own, change)

    def gather(self, ranks: Ranks, turn: Turn) -> None:
        """Send for the other ranks' rows of A' and dA; where only one factor moves, of that which it meets."""
        import torch.distributed as dist

        gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor  # its name before torch 2.13
        wanted = half_of(turn, 1)
        for half, own in zip(self.right.chunk(2)[wanted], self.own[wanted], strict=True):
            self.works.append(gather(half, own, group=ranks.group, async_op=True))

    def wait(self) -> None:
        """Until all are there."""
        for work in self.works:
            work.wait()
