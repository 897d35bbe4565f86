"""Switch vectors of A where each rank holds some rows of A and some columns of the candidates.

A row of A is whole on one rank, its owner, and trains there. A candidate is whole nowhere: every rank holds its own
entries of all of them, so that none stores a pool. Coming in, a vector's entries meet at the owner of its slot; going
out, they part again. Each is one all-to-all of the switched vectors of all layers of a shape: for K vectors of length n
a rank sends and gets K n / ranks numbers each time, whatever the size of the pools.

B needs none of this: b_k is a column, so every rank holds entries of it, and just those of its candidates, too.
"""

import dataclasses

import numpy as np
import torch
from torch import Tensor

from switchlora.candidates import Candidates
from switchlora.shards import Ranks
from switchlora.switching import Chosen
from switchlora.transfers import Ints, by_layer, on_device


@dataclasses.dataclass
class ScatteredVectors:
    """See `switching.Vectors`: A of some layers, of which this rank holds some rows."""

    factors: list[Tensor]  # each (own rows, n)
    candidates: Candidates | None  # own columns; None: this side is never switched
    first: int  # the number of the first of these layers in its group
    r: int
    n: int
    ranks: Ranks

    def exchange(self, chosen: Chosen, step: int) -> None:
        """See `switching.Vectors`."""
        assert self.candidates is not None
        layers = chosen.layers + self.first
        arriving = self.candidates.take(layers, chosen.slots, chosen.incoming, step)  # (K, own columns)
        owners = chosen.slots // self.ranks.block(self.r)
        mine = owners == self.ranks.rank
        own_layers, own_slots = chosen.layers[mine], chosen.slots[mine] - self.ranks.part(self.r).start
        leaving = arriving.new_empty(len(own_slots), self.n)
        places = list(by_layer(own_layers, own_slots, arriving.device))
        for layer, place, slots in places:
            leaving[place] = self.factors[layer][slots]
        coming = meet(arriving, owners, self.n, self.ranks)
        for layer, place, slots in places:
            self.factors[layer][slots] = coming[place]
        self.candidates.put(layers, chosen.outgoing, part(leaving, owners, self.n, self.ranks))


def meet(columns: Tensor, owners: Ints, n: int, ranks: Ranks) -> Tensor:
    """Bring vectors together of which every rank holds some entries: one all-to-all.

    Args:
        columns: (K, own columns), of vectors that are nowhere whole.
        owners: (K,) which rank gets each of them.
        n: entries of a vector.
        ranks: that hold them.

    Returns:
        (own K, n), in their order.
    """
    import torch.distributed as dist

    counts, widths = np.bincount(owners, minlength=ranks.num).tolist(), ranks.sizes(n)
    by_owner = columns.index_select(0, on_device(np.argsort(owners, kind="stable"), columns.device))
    own = counts[ranks.rank]
    got = columns.new_empty(own * n)
    sent = [count * widths[ranks.rank] for count in counts]
    dist.all_to_all_single(got, by_owner.view(-1), [own * width for width in widths], sent, group=ranks.group)
    parts = got.split([own * width for width in widths])  # type: ignore[no-untyped-call]
    return torch.cat([part.view(own, width) for part, width in zip(parts, widths, strict=True)], dim=1)


def part(rows: Tensor, owners: Ints, n: int, ranks: Ranks) -> Tensor:
    """Give every rank its entries of vectors that ranks hold whole: `meet` backwards.

    Args:
        rows: (own K, n), in their order.
        owners, n, ranks: as in `meet`.

    Returns:
        (K, own columns).
    """
    import torch.distributed as dist

    counts, widths = np.bincount(owners, minlength=ranks.num).tolist(), ranks.sizes(n)
    width = widths[ranks.rank]
    got = rows.new_empty(len(owners), width)
    sent = torch.cat([columns.reshape(-1) for columns in rows.split(widths, dim=1)])  # type: ignore[no-untyped-call]
    sizes = [len(rows) * wide for wide in widths]
    dist.all_to_all_single(got.view(-1), sent, [count * width for count in counts], sizes, group=ranks.group)
    columns = torch.empty_like(got)
    columns[on_device(np.argsort(owners, kind="stable"), rows.device)] = got  # they came by owner
    return columns
