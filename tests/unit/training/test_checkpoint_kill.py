"""kill -9 at any moment leaves the old checkpoints alone or the new one whole: with real processes, really killed."""

import subprocess
import sys
from pathlib import Path

import pytest

DRIVER = Path(__file__).with_name("killed_saves.py")


@pytest.mark.parametrize(("how", "fewest_killed"), [("lines", 300), ("moments", 25)])
def test_a_killed_save_leaves_old_or_new(tmp_path: Path, how: str, fewest_killed: int) -> None:
    done = subprocess.run(
        [sys.executable, "-W", "error", str(DRIVER), how, str(tmp_path)], capture_output=True, text=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) >= fewest_killed
