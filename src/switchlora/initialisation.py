"""The initial distribution of the vectors of A and B, active ones and candidates alike.

The paper's choice makes |B dA| and |dB A|, the two halves of an update of W, equally large, with s B A as
large as a default nn.Linear weight. It is uniform with zero mean and

    std(B) = (r / sqrt(m n))^(1/4) g^(1/2),   std(A) = (sqrt(m) r / (n sqrt(n)))^(1/4) g^(1/2),   g = 1/sqrt(3)

(derived for lora_alpha = 1). LoRA's choice is B = 0 and A uniform in +-1/sqrt(n), as in PEFT.

Vector i of the candidates is row i of one endless table that (seed, layer name, side) names. The active
vectors start as its last rows, so a layer draws A and B without a pool, and the pool agrees with it.
"""

import math
from typing import Literal

import torch
from torch import Tensor

from switchlora import draws

GAIN = 1 / math.sqrt(3)  # leaky_relu with negative slope sqrt(5), nn.Linear's own
Init = Literal["switchlora", "lora"]


def num_candidates(m: int, n: int) -> int:
    """c, the number of candidates per side, the r active vectors included."""
    return min(m, n)


def vector_bounds(m: int, n: int, r: int, init: Init) -> dict[str, float]:
    """The largest absolute entry of a fresh vector of side "A" and of side "B"."""
    if init == "lora":
        return {"A": 1 / math.sqrt(n), "B": 0.0}
    return {
        "A": math.sqrt(3) * (math.sqrt(m) * r / (n * math.sqrt(n))) ** 0.25 * math.sqrt(GAIN),
        "B": math.sqrt(3) * (r / math.sqrt(m * n)) ** 0.25 * math.sqrt(GAIN),
    }


def initial_slots(m: int, n: int, r: int) -> dict[str, Tensor]:
    """Which candidate each active vector is at the start: int64, (r,) for side "A" and for side "B".

    The last r of the c candidates; B's are rotated by r // 2, where its slot cursor starts, so that candidate
    0 is the first to come in on both sides.
    """
    last = torch.arange(num_candidates(m, n) - r, num_candidates(m, n))
    return {"A": last, "B": last.roll(r // 2)}


def draw_candidates(
    seed: int, name: str, side: str, rows: Tensor, part: slice, bound: float, dtype: torch.dtype
) -> Tensor:
    """Rows of the table of one layer and side; see the module's text.

    Args:
        seed, name, side: which table.
        rows: (k,) int64.
        part: which of their entries, of n for side "A" and of m for side "B".
        bound: from `vector_bounds`.
        dtype: of the result.

    Returns:
        (k, length) on the device of `rows`.
    """
    key = draws.key(seed, name, f"candidates of {side}")
    return draws.uniform_vectors(key, rows, part.stop - part.start, bound, dtype, part.start)
