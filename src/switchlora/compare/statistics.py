"""Means over seeds, and differences between runs of the same seed.

Two runs with one seed have the same initial weights and the same batches, so their difference scatters less than
either: differences are taken seed by seed, and their mean gets Student's interval, which supposes that they scatter
normally. With three seeds that is wide (4.3 standard errors), as it should be.
"""

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

CONFIDENCE = 0.95
ROUNDING = 1e-9  # a relative spread below it is that of floating-point numbers
SAME_TIME = 1.05  # times nearer to each other than this factor are alike: two runs of one thing scatter as much


def spread(values: Sequence[float]) -> dict[str, Any]:
    """Mean, standard deviation (of a sample; None for one value) and their number."""
    if not values:
        return {"mean": None, "sd": None, "n": 0}
    sd = statistics.stdev(values) if len(values) > 1 else None
    return {"mean": statistics.fmean(values), "sd": sd, "n": len(values)}


def student(freedom: int) -> float:
    """How many standard errors the 95 % interval of a mean reaches to either side, with these degrees of freedom."""
    from scipy.stats import t

    return float(t.ppf((1 + CONFIDENCE) / 2, freedom))


def paired_difference(values: Mapping[int, float], baseline: Mapping[int, float]) -> dict[str, Any]:
    """Mean of value - baseline over the seeds that both have, and its 95 % interval.

    That is None below two seeds, and where the difference is the same with every seed: what does not scatter says
    nothing of how far it might.
    """
    differences = [values[seed] - baseline[seed] for seed in sorted(values.keys() & baseline.keys())]
    found = spread(differences)
    low = high = None
    if len(differences) > 1 and found["sd"] > ROUNDING * max(1.0, abs(found["mean"])):
        reach = student(len(differences) - 1) * found["sd"] / len(differences) ** 0.5
        low, high = found["mean"] - reach, found["mean"] + reach
    return {**found, "low": low, "high": high}


def dominated(rows: Sequence[tuple[float, float, float]]) -> list[int | None]:
    """For each row of (loss, bytes, seconds) the first other one that is nowhere dearer and somewhere cheaper, or None.

    Seconds count where they differ by more than `SAME_TIME`.
    """

    def beats(one: tuple[float, float, float], other: tuple[float, float, float]) -> bool:
        no_worse = one[0] <= other[0] and one[1] <= other[1] and one[2] <= other[2] * SAME_TIME
        return no_worse and (one[:2] != other[:2] or one[2] * SAME_TIME < other[2])

    return [next((i for i, one in enumerate(rows) if beats(one, row)), None) for row in rows]


def interpolated(xs: Sequence[float], ys: Sequence[float], x: float) -> float | None:
    """The value at x of the line through the points; None outside them."""
    import numpy as np

    if not xs or not xs[0] <= x <= xs[-1]:
        return None
    return float(np.interp(x, xs, ys))
