"""The benchmark's chart: a bar for each row that was measured, from the plain dictionary of the JSON file."""

import copy
import sys
from typing import Any

import numpy as np
import pytest

from switchlora.report.bench_chart import bars, bench_chart_png
from tests.unit.report.pictures import pixels

RATIO = {"median": 1.0, "p10": 0.9, "p90": 1.2, "low": 0.95, "high": 1.1, "coverage": 0.95}
ROW = {"seconds": {"step": [1.0]}, "ratio_to_full": RATIO, "flops_ratio": 0.9, "amortised": None}
RESULT: dict[str, Any] = {
    "options": {"model": "bench", "dtype": "fp32"},
    "machine": {"gpu": None, "cpu": "a CPU", "threads": 2},
    "workloads": [
        {
            "sequences": 4,
            "seq_len": 256,
            "contestants": [
                {**ROW, "name": "full", "method": "full"},
                {**ROW, "name": "switchlora r=64", "method": "switchlora"},
                {**ROW, "name": "galore r=64", "method": "galore", "amortised": {"ratio_to_full": RATIO}},
                {"name": "peft r=64", "method": "peft", "absence": "not installed"},
            ],
        }
    ],
}
BLUE, GREY = (33, 102, 172), (85, 85, 85)


def num_columns(image: np.ndarray, colour: tuple[int, int, int]) -> int:
    """How wide the bar of a colour is, in dots."""
    widths = (np.abs(image * 255 - colour).max(-1) < 20).sum(axis=1)
    return int(np.median(widths[widths > 100]))  # of its many rows: letters are narrower, axes are single rows


def test_bars_are_of_what_was_measured() -> None:
    names = [bar["name"] for bar in bars(RESULT["workloads"][0])]
    assert names == ["full", "switchlora r=64", "galore r=64, without SVD", "galore r=64, with SVD"]


@pytest.mark.parametrize("median", [0.5, 1.1])
def test_a_bar_is_as_long_as_its_ratio(median: float) -> None:
    result = copy.deepcopy(RESULT)
    ours = result["workloads"][0]["contestants"][1]
    ours["ratio_to_full"] = {**RATIO, "median": median, "p10": median, "p90": median}
    image = pixels(bench_chart_png(result))
    assert num_columns(image, BLUE) / num_columns(image, GREY) == pytest.approx(median, rel=0.05)


def test_every_batch_size_gets_a_panel() -> None:
    result = {**RESULT, "workloads": RESULT["workloads"] * 3}
    assert pixels(bench_chart_png(result)).shape[0] > 2 * pixels(bench_chart_png(RESULT)).shape[0]


def test_no_figure_stays_open() -> None:
    bench_chart_png(RESULT)
    if "matplotlib.pyplot" in sys.modules:
        import matplotlib.pyplot

        assert matplotlib.pyplot.get_fignums() == []
