"""The stopwatch, on a clock that the test moves."""

import time

import pytest
import torch

from switchlora.bench.stopwatch import Stopwatch


class Clock:
    """What `time.perf_counter` is replaced by."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    return clock


def test_parts_add_up_to_the_step(clock: Clock) -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    stopwatch.start()
    for part, seconds in (("forward", 1.0), ("backward", 2.0), ("optimizer", 4.0)):
        clock.now += seconds
        stopwatch.mark(part)
    clock.now += 1000.0  # reading is nobody's time
    assert stopwatch.read() == {"forward": 1.0, "backward": 2.0, "optimizer": 4.0, "switch": 0.0, "step": 7.0}


def test_switching_is_taken_out_of_the_part_it_happens_in(clock: Clock) -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    stopwatch.start()
    clock.now += 1.0
    stopwatch.mark("backward")
    for seconds in (0.25, 0.5):
        with stopwatch.switching():
            clock.now += seconds
        clock.now += 2.0
    stopwatch.mark("optimizer")
    assert stopwatch.read() == {"backward": 1.0, "optimizer": 4.0, "switch": 0.75, "step": 5.75}


def test_a_step_begins_anew(clock: Clock) -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    for seconds in (5.0, 1.0):
        stopwatch.start()
        with stopwatch.switching():
            clock.now += seconds
        stopwatch.mark("optimizer")
        assert stopwatch.read() == {"optimizer": 0.0, "switch": seconds, "step": seconds}


def test_switching_before_any_step_is_nobodys() -> None:
    stopwatch = Stopwatch(torch.device("cpu"))
    with stopwatch.switching():
        pass


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_events_on_a_gpu() -> None:
    device = torch.device("cuda")
    x = torch.randn(4096, 4096, device=device)
    stopwatch = Stopwatch(device)
    stopwatch.start()
    with stopwatch.switching():
        for _ in range(20):
            x = x @ x
    stopwatch.mark("optimizer")
    seconds = stopwatch.read()
    assert seconds["switch"] > 1e-4 and seconds["optimizer"] < seconds["switch"]
