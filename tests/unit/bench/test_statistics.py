"""The statistics on made-up numbers: pairs take out what a round shares, and the interval holds what it promises."""

import numpy as np
import pytest

from switchlora.bench.statistics import median_ranks, paired_ratios, summarize


def test_a_ratio_is_of_one_round() -> None:
    assert paired_ratios([2.0, 30.0], [1.0, 10.0]) == [2.0, 3.0]
    with pytest.raises(ValueError):
        paired_ratios([1.0], [1.0, 2.0])


def test_pairs_take_out_what_slows_a_whole_round() -> None:
    machine = np.random.default_rng(0).uniform(1, 5, size=30)  # a shared machine, five times slower at times
    baseline, method = (1.0 * machine).tolist(), (0.9 * machine).tolist()
    paired = summarize(paired_ratios(method, baseline))
    assert paired.median == pytest.approx(0.9) and paired.high - paired.low < 1e-9
    unpaired = [time / base for time, base in zip(method, baseline[::-1], strict=True)]
    assert summarize(unpaired).p90 - summarize(unpaired).p10 > 0.5


def test_the_summary_of_known_numbers() -> None:
    summary = summarize([float(i) for i in range(11)][::-1])
    assert (summary.median, summary.p10, summary.p90) == (5.0, 1.0, 9.0)
    assert (summary.low, summary.high) == (1.0, 9.0)  # P(at most 1 of 11 below) = 12/2048
    assert summary.coverage == pytest.approx(1 - 2 * 12 / 2048)


def test_a_few_disturbed_rounds_do_not_move_the_median() -> None:
    assert summarize([1.0] * 20 + [50.0] * 5).median == 1.0


@pytest.mark.parametrize(("n", "first"), [(1, 0), (2, 0), (3, 0), (5, 0), (6, 0), (8, 0), (9, 1), (30, 9), (100, 39)])
def test_which_order_statistics_enclose_the_median(n: int, first: int) -> None:
    """The usual table of distribution-free intervals at 95 %, counted from 0."""
    found, coverage = median_ranks(n)
    assert found == first
    assert 0 <= coverage <= 1
    assert (coverage >= 0.95) == (n >= 6)


def test_the_interval_holds_the_median_as_often_as_it_says() -> None:
    generator = np.random.default_rng(0)
    n, trials = 15, 2000
    samples = np.exp(generator.normal(size=(trials, n)))  # skewed; its median is 1
    summaries = [summarize(sample) for sample in samples]
    share = np.mean([summary.low <= 1.0 <= summary.high for summary in summaries])
    assert share == pytest.approx(summaries[0].coverage, abs=0.015)
