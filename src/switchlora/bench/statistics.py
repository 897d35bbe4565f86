"""Ratios of step times on a machine that is not quiet: pairs of one round, their median, and how sure it is.

The ratio of a round is time(method) / time(baseline) of two steps that ran seconds apart. Over the rounds: the
median, which a few disturbed rounds do not move; the 10th and 90th percentile, which say how much single rounds
scatter; and an interval for the median that supposes nothing about the distribution: the number of rounds below the
true median is binomial (n, 1/2), so two order statistics enclose it with a known probability. It does not cover a bias
that all rounds share, such as memory that one method leaves less of in the cache for its follower; the shuffled order
within the rounds is there for that.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Summary:
    """Of n numbers: median, 10th and 90th percentile, and [low, high], which holds the true median with probability
    `coverage` (at least 0.95 where n allows it, from n = 6 on)."""

    median: float
    p10: float
    p90: float
    low: float
    high: float
    coverage: float


def summarize(values: Sequence[float]) -> Summary:
    """The summary of at least one number."""
    ordered = np.sort(np.asarray(values, dtype=np.float64))
    first, coverage = median_ranks(len(ordered))
    p10, median, p90 = (float(np.quantile(ordered, share)) for share in (0.1, 0.5, 0.9))
    return Summary(median, p10, p90, float(ordered[first]), float(ordered[len(ordered) - 1 - first]), coverage)


def paired_ratios(times: Sequence[float], baseline: Sequence[float]) -> list[float]:
    """time / baseline, round by round. Both lists are of the same rounds."""
    return [time / base for time, base in zip(times, baseline, strict=True)]


def median_ranks(n: int) -> tuple[int, float]:
    """(i, coverage): of n sorted numbers, the i-th from either end (from 0) enclose the median that often.

    The narrowest pair that reaches 95 %; below n = 6 none does, and the extremes with their lower coverage are given.
    """
    assert n >= 1
    below, first, coverage = 0.0, 0, 0.0
    for i in range((n + 1) // 2):
        below += math.comb(n, i) / 2**n  # P(at most i of n lie below the median)
        reached = 1 - 2 * below
        if i == 0 or reached >= CONFIDENCE:
            first, coverage = i, reached
        else:
            break
    return first, max(coverage, 0.0)
