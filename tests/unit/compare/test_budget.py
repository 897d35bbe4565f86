"""Runs and hours that are left."""

import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from switchlora.compare.budget import SECONDS_PER_RUN, Budget, budget
from switchlora.compare.options import CompareOptions
from switchlora.compare.plan import make_plan
from tests.unit.compare.records import finish
from tests.waiting import wait_for

ROOT = Path(__file__).resolve().parents[3]


def plan_of(**values):
    return make_plan(CompareOptions(pretrain={"model": "tiny", "steps": 100}, **values))


def test_without_a_search_it_is_exact():
    left = budget(plan_of(methods=("full", "lora"), seeds=(0, 1), tune=False), {}, jobs=2, step_seconds=3.6)
    assert (left.least_runs, left.most_runs) == (4, 4)
    hours = (400 * 3.6 + 4 * SECONDS_PER_RUN) / 2 / 3600  # two at a time
    assert left.hours == (hours, hours)
    assert "4 runs left" in str(left)


def test_a_search_lies_between_its_first_round_and_its_limit():
    plan = plan_of(methods=("full",), seeds=(0,), tune_steps=10, tune_runs=9)
    left = budget(plan, {}, jobs=1, step_seconds=1.0)
    assert (left.least_runs, left.most_runs) == (5 + 1, 9 + 1)
    assert (left.least_steps, left.most_steps) == (5 * 10 + 100, 9 * 10 + 100)


def test_what_is_done_is_not_left():
    plan = plan_of(methods=("full",), seeds=(0, 1), tune_runs=5)
    losses = {id: record["validation_loss"] for id, record in finish(plan, lambda run: math.log(run.lr) ** 2).items()}
    assert budget(plan, losses, jobs=1, step_seconds=1.0).most_runs == 0


@pytest.mark.parametrize(
    ("least", "most", "words"),
    [
        (60, 60, "1 minutes"),
        (90, 1800, "2 to 30 minutes"),
        (1800, 7200, "0.5 to 2.0 hours"),
        (36e4, 36e5, "100 to 1,000 hours"),
    ],
)
def test_it_is_said_in_minutes_or_hours(least, most, words):
    assert Budget(0, 0, least, most, 1.0, 1).time_left == words


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a process of its parent's end")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL])
def test_what_is_timed_apart_ends_with_the_comparison(tmp_path, number):
    """The process that times a few steps writes its number and sleeps; nobody waits for it any more."""
    mark = tmp_path / "pid"
    code = "from tests.unit.compare.test_budget import sleep_long; from switchlora.compare import budget\n"
    code += f"if __name__ == '__main__': budget.apart(sleep_long, {str(mark)!r})"
    script = tmp_path / "script.py"
    script.write_text(code)
    comparison = subprocess.Popen([sys.executable, script], env=os.environ | {"PYTHONPATH": str(ROOT)})
    try:
        wait_for(lambda: mark.exists() and mark.read_text())
        comparison.send_signal(number)
        comparison.wait()
        wait_for(lambda: is_over(mark.read_text()))
    finally:
        comparison.kill()


def is_over(pid):
    """Gone, or dead and not yet taken note of."""
    try:
        return Path("/proc", pid, "stat").read_text().split()[2] == "Z"
    except OSError:
        return True


def sleep_long(mark):
    Path(mark).write_text(str(os.getpid()))
    time.sleep(60)


def test_what_is_under_way_counts():
    plan = plan_of(methods=("full",), seeds=(0, 1), tune=False)
    left = budget(plan, {}, jobs=1, step_seconds=1.0, steps_under_way=150)
    assert left.hours[0] == (50 + 2 * SECONDS_PER_RUN) / 3600
