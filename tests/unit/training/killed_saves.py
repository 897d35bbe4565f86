"""Run by test_checkpoint_kill.py: saves checkpoints in forked children, kills them with SIGKILL, looks at what is left.

    python killed_saves.py lines|moments FOLDER

lines: a child is killed before each line of checkpoint.py, manifest.py and files.py that a save runs, one for each.
moments: children that save in a loop are killed after random times, each going on from what the last one left.
Prints how many children were killed; fails if what one left is not right, or if the kills proved nothing.
"""

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path
from types import FrameType
from typing import Any

import torch

from switchlora.machine import files
from switchlora.training import checkpoint, manifest
from switchlora.training.checkpoint import Checkpoint, CheckpointStore, inspect

TRACED = (checkpoint.__file__, files.__file__, manifest.__file__)


def state_of(step: int, num_values: int) -> dict[str, Any]:
    """A state that is a function of the step."""
    values = torch.arange(num_values, dtype=torch.float32) + step
    return {"model": {"w": values}, "optimizer": {"step": step, "m": values * 2}}


def fail(warning: str) -> None:
    raise AssertionError(f"a kill left something broken: {warning}")


def verified(root: Path, num_values: int) -> Checkpoint | None:
    """The latest checkpoint, after a start: every visible one is whole and nothing hidden is left."""
    store = CheckpointStore(root, keep=2, warn=fail)
    store.remove_leftovers()
    for path in root.iterdir():
        assert path.name.startswith("step-"), f"left over: {path}"
        found = inspect(path)
        expected, loaded = state_of(found.step, num_values), found.load()
        assert torch.equal(loaded["model"]["w"], expected["model"]["w"]), path
        assert loaded["optimizer"]["step"] == found.step and found.meta == {"at": found.step}, path
    return store.latest()


def die_before_line(number: int) -> None:
    """Arrange that this process is killed before the `number`-th traced line."""
    num_lines = 0

    def trace(frame: FrameType, event: str, argument: object) -> Any:
        nonlocal num_lines
        if frame.f_code.co_filename not in TRACED:
            return None
        num_lines += event == "line"
        if num_lines == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)


def kill_at_lines(folder: Path) -> None:
    template = folder / "template"
    store = CheckpointStore(template, keep=2)
    for step in (1, 2):
        store.save(step, state_of(step, 50), {"at": step})
    num_killed = num_new = 0
    for number in range(1, 10_000):
        root = folder / "root"
        shutil.copytree(template, root)
        child = os.fork()
        if child == 0:
            store = CheckpointStore(root, keep=2)
            die_before_line(number)
            store.save(3, state_of(3, 50), {"at": 3})
            os._exit(0)
        _, status = os.waitpid(child, 0)
        latest = verified(root, 50)
        assert latest is not None and latest.step in (2, 3)
        assert latest.step == 3 or inspect(root / "step-00000001").step == 1, "pruned before the new one was whole"
        shutil.rmtree(root)
        if not os.WIFSIGNALED(status):
            assert status == 0
            break
        num_killed += 1
        num_new += latest.step == 3
    assert 0 < num_new < num_killed, "kills on both sides of the rename were wanted"
    print(num_killed)


def kill_at_moments(folder: Path) -> None:
    root, num_values, num_rounds = folder / "root", 200_000, 25
    started = time.monotonic()
    CheckpointStore(root, keep=2).save(1, state_of(1, num_values), {"at": 1})
    save_seconds = time.monotonic() - started
    chance = random.Random(0)
    before, num_midway = 1, 0
    for _ in range(num_rounds):
        child = os.fork()
        if child == 0:
            store = CheckpointStore(root, keep=2, warn=fail)
            for step in range(before + 1, 1_000_000):
                store.save(step, state_of(step, num_values), {"at": step})
        time.sleep(chance.uniform(0, 4 * save_seconds))
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        num_midway += any(map(files.is_temporary, root.iterdir()))
        latest = verified(root, num_values)
        assert latest is not None and latest.step >= before, "a whole checkpoint was lost"
        before = latest.step
    assert before > 1 and num_midway > 0, "kills during and after saves were wanted"
    print(num_rounds)


if __name__ == "__main__":
    {"lines": kill_at_lines, "moments": kill_at_moments}[sys.argv[1]](Path(sys.argv[2]))
