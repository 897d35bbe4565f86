"""The picture of a run: it is drawn from what there is, and shows it."""

import sys
from pathlib import Path

import numpy as np
import pytest

from switchlora.report.loss_curve import loss_curve_png, moving_average, points, write_loss_curve
from tests.unit.report.pictures import pixels


def rows_of(num_steps: int) -> list[dict[str, float]]:
    rows = [{"step": t, "loss": 3 + 4 * 0.97**t, "lr": 0.02 * t / num_steps} for t in range(1, num_steps + 1)]
    for row in rows[9::10]:
        row["validation_loss"] = row["loss"] + 0.1
    return rows


def count(image: np.ndarray, colour: tuple[int, int, int]) -> int:
    return int((np.abs(image * 255 - colour).max(-1) < 20).sum())


@pytest.mark.parametrize("num_steps", [0, 1, 2, 60])
def test_it_shows_what_there_is(tmp_path: Path, num_steps: int) -> None:
    write_loss_curve(tmp_path / "loss.png", rows_of(num_steps), title="tiny, switchlora, r = 32, 60 steps")
    image = pixels((tmp_path / "loss.png").read_bytes())
    assert image.shape[0] > 600 and image.shape[1] > 1000
    blue, red = count(image, (33, 102, 172)), count(image, (178, 24, 43))
    assert (blue > 85) == (num_steps > 0), "the training loss (its key in the legend is 80 dots)"
    assert (red > 100) == (num_steps >= 10), "the validation loss"


def test_gaps_are_left_out() -> None:
    rows = [{"step": 1, "loss": None}, {"step": 2, "loss": float("inf")}, {"step": 3}, {"step": 4, "loss": 2.0}]
    steps, values = points(rows, "loss")
    assert (steps.tolist(), values.tolist()) == ([4.0], [2.0])
    assert loss_curve_png(rows, title="x").startswith(b"\x89PNG")


@pytest.mark.parametrize(("num_values", "window"), [(0, 5), (1, 5), (7, 1), (10, 4), (100, 21)])
def test_the_average_of_a_line_is_the_line(num_values: int, window: int) -> None:
    line = 3.0 * np.arange(num_values) - 1
    np.testing.assert_allclose(moving_average(line, window), line, atol=1e-9)


def test_the_average_takes_out_noise() -> None:
    noise = np.random.default_rng(0).normal(size=1000)
    assert moving_average(noise, 101)[50:-50].std() < 0.15


def test_no_figure_stays_open_and_no_backend_is_chosen() -> None:
    loss_curve_png(rows_of(3), title="x")
    if "matplotlib.pyplot" in sys.modules:
        import matplotlib.pyplot

        assert matplotlib.pyplot.get_fignums() == []
