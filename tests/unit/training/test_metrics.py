"""metrics.jsonl holds each step once, whatever happened; the progress bar is readable with and without a terminal."""

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from switchlora.errors import UserError
from switchlora.training.metrics import MetricsLog, Progress, clock, read_metrics, summary, with_unit


def write(path: Path, first: int, last: int, **more: object) -> None:
    with MetricsLog(path, resume_step=first - 1) as log:
        for step in range(first, last + 1):
            log.append({"step": step, "loss": step / 3, **more})


def steps(path: Path) -> list[int]:
    return [row["step"] for row in read_metrics(path)]


def test_each_step_once_over_resumes(tmp_path: Path) -> None:
    path = tmp_path / "run" / "metrics.jsonl"
    assert read_metrics(path) == []
    write(path, 1, 7, run=1)
    write(path, 6, 9, run=2)  # went on from the checkpoint of step 5
    rows = read_metrics(path)
    assert [row["step"] for row in rows] == list(range(1, 10))
    assert [row["run"] for row in rows] == [1] * 5 + [2] * 4
    assert rows[6]["loss"] == 7 / 3, "floats come back exactly"
    write(path, 1, 2)
    assert steps(path) == [1, 2]


@given(cut=st.integers(0, 400), resumed=st.integers(0, 12))
def test_a_file_cut_anywhere(tmp_path_factory: pytest.TempPathFactory, cut: int, resumed: int) -> None:
    path = tmp_path_factory.mktemp("cut") / "metrics.jsonl"
    write(path, 1, 10)
    content = path.read_bytes()[:cut]
    path.write_bytes(content)
    num_whole = content.count(b"\n")
    write(path, resumed + 1, 12)
    assert steps(path) == [*range(1, min(num_whole, resumed) + 1), *range(resumed + 1, 13)]
    assert os.listdir(path.parent) == ["metrics.jsonl"]


def test_reading_skips_a_row_that_is_being_written(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo')
    assert read_metrics(path) == [{"step": 1}]


def test_damage_in_the_middle_is_said(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n\x00\x00\n[3]\n{"step": 4}\n')
    said: list[str] = []
    MetricsLog(path, resume_step=4, warn=said.append).close()
    assert steps(path) == [1, 4]
    assert said == [f"{path}: 2 of 4 lines are damaged and were dropped"]


def test_a_killed_process_loses_no_row(tmp_path: Path) -> None:
    program = (
        "import os, sys; from pathlib import Path; from switchlora.training.metrics import MetricsLog\n"
        "log = MetricsLog(Path(sys.argv[1]))\nfor s in (1, 2, 3): log.append({'step': s})\nos.kill(os.getpid(), 9)"
    )
    subprocess.run([sys.executable, "-c", program, str(tmp_path / "m.jsonl")], check=False)
    assert steps(tmp_path / "m.jsonl") == [1, 2, 3]


def test_a_row_is_valid_json_whatever_it_holds(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    with MetricsLog(path) as log:
        log.append(
            {"step": 1, "a": math.nan, "b": -math.inf, "c": torch.tensor(1.5), "d": np.float32(2), "e": [math.inf]}
        )
        log.sync()
    row = json.loads(path.read_text(), parse_constant=pytest.fail)
    assert row == {"step": 1, "a": None, "b": "-inf", "c": 1.5, "d": 2.0, "e": ["inf"]}


def test_a_step_twice_is_our_mistake(tmp_path: Path) -> None:
    with MetricsLog(tmp_path / "m.jsonl", resume_step=4) as log, pytest.raises(AssertionError):
        log.append({"step": 4})


def test_a_full_disk_is_a_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    log = MetricsLog.__new__(MetricsLog)
    log.path, log._last_step = Path("/dev/full"), 0
    log._handle = open("/dev/full", "a")  # noqa: SIM115
    with pytest.raises(UserError, match="no space left"):
        log.append({"step": 1})
    log.close()  # which would write again, and has nothing new to say
    assert log._handle.closed


ROW = {
    **{"step": 40, "loss": 3.21987, "lr": 0.02, "grad_norm": 0.512, "tokens_per_second": 15234.5},
    **{"switches_done": 4, "switches_done_total": 31, "peak_memory_bytes": 3 * 2**30},
}


def test_a_row_for_people() -> None:
    expected = "loss 3.2199, lr 2.00e-02, grad norm 0.51, 15.2k tok/s, switched 31, peak 3 GiB"
    assert summary(ROW) == expected
    assert summary({**ROW, "validation_loss": 3.0}).startswith("loss 3.2199, validation 3.0000, ")
    assert "switched" not in summary({key: ROW[key] for key in ROW if key != "switches_done_total"})


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (999, "999"), (1000, "1k"), (123456, "123k"), (2e12, "2000G")])
def test_units(value: float, text: str) -> None:
    assert with_unit(value, 1000, ("", "k", "M", "G")) == text


def test_clock() -> None:
    assert (clock(0), clock(59.6), clock(3725)) == ("0:00:00", "0:01:00", "1:02:05")


def test_without_a_terminal_a_line_now_and_then_and_at_the_end() -> None:
    stream = io.StringIO()
    with Progress(total=40, initial=30, stream=stream) as progress:
        for step in range(31, 41):
            progress.update({**ROW, "step": step})
    [line] = stream.getvalue().splitlines()
    assert line.startswith("step 40/40, loss 3.2199") and line.endswith("ETA 0:00:00")
    stream = io.StringIO()
    with Progress(total=40, stream=stream, seconds_between_lines=0) as progress:
        for step in (1, 2, 3):
            progress.update({**ROW, "step": step})
    assert len(stream.getvalue().splitlines()) == 3


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_on_a_terminal_a_bar() -> None:
    stream = Terminal()
    with Progress(total=40, initial=39, stream=stream) as progress:
        progress.update(ROW)
    last = stream.getvalue().split("\r")[-1]
    assert "40/40" in last and "loss 3.2199" in last
