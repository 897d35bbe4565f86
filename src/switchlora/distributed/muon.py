"""Muon's rule on sharded factors: its only sums across ranks are of r x r numbers.

Muon multiplies a whole matrix u by a polynomial of its Gram matrix. Of X (r, l) whose columns are shared out, the Gram
matrix is a sum over ranks, X X^T = sum of X_i X_i^T, and the product with it is each rank's own business. So a step of
Newton-Schulz costs one sum of r x r numbers, and the first one gives the norm, too, as its trace.

B^T (r, m) is split so. A (r, n) is split by rows, and its u is turned by one all-to-all of r n / ranks numbers, and
back by another. Momenta stay where they are, and none is ever whole anywhere.
"""

import dataclasses
import math

import numpy as np
import torch
from torch import Tensor

from switchlora.distributed.scattered import meet, part
from switchlora.muon import EPS, RMS, STEPS, Muon, newton_schulz
from switchlora.rules import Rule
from switchlora.shards import Ranks
from switchlora.transfers import Ints


def sharded_rules(rule: Rule, m: int, n: int, r: int, ranks: Ranks) -> dict[str, Rule]:
    """A rule for what a rank holds of A (r, n), and one for what it holds of B (m, r). Most need nothing else."""
    if not isinstance(rule, Muon):
        return {"A": rule, "B": rule}
    owners = np.arange(r) // ranks.block(r)
    return {
        "A": MuonOfRows(rule.momentum, ranks, n, owners),
        "B": MuonOfColumns(rule.momentum, ranks, m),
    }


@dataclasses.dataclass(frozen=True)
class MuonOfColumns(Muon):
    """Of B (m, r), which as B^T is split by columns.

    length: m, or n for A: entries of a vector.
    """

    ranks: Ranks
    length: int

    def scaled(self, update: Tensor) -> Tensor:
        """See `Muon`."""
        return orthogonalise_columns(update.T, self.ranks).T.mul_(RMS * math.sqrt(self.length))


@dataclasses.dataclass(frozen=True)
class MuonOfRows(MuonOfColumns):
    """Of A (r, n), which is split by rows.

    owners: (r,) which rank has each row.
    """

    owners: Ints

    def scaled(self, update: Tensor) -> Tensor:
        """See `Muon`."""
        columns = orthogonalise_columns(part(update, self.owners, self.length, self.ranks), self.ranks)
        return meet(columns, self.owners, self.length, self.ranks).mul_(RMS * math.sqrt(self.length))


def orthogonalise_columns(columns: Tensor, ranks: Ranks) -> Tensor:
    """`muon.orthogonalise` of a matrix (r, l), r <= l, of which each rank holds some columns (r, own columns)."""
    import torch.distributed as dist

    def gram_of(X: Tensor) -> Tensor:
        gram = X @ X.T
        dist.all_reduce(gram, group=ranks.group)
        return gram

    X = columns.to(torch.bfloat16) if columns.is_cuda else columns
    gram = gram_of(X.to(columns.dtype))
    norm = gram.trace().sqrt().clamp(min=EPS)
    X, gram = X / norm.to(X.dtype), (gram / norm.square()).to(X.dtype)
    for step in range(STEPS):
        X = newton_schulz(X, gram_of(X) if step else gram)
    return X.to(columns.dtype)
