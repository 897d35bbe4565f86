"""A process with a pretend GPU, for tests that ask for one; skipped where it cannot be made."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.accelerator import pretend_gpu


@pytest.fixture(scope="session")
def with_gpu(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The environment of a process that has one."""
    if reason := pretend_gpu.why_not():
        pytest.skip(f"no pretend GPU: {reason}")
    library = pretend_gpu.build(tmp_path_factory.mktemp("pretend-gpu") / "libpretend_gpu.so")
    return pretend_gpu.environment(library)


@pytest.fixture(scope="session")
def printed(with_gpu: dict[str, str]) -> Callable[[str], Any]:
    """Run a module of this folder there, and read what it prints."""

    def run(module: str) -> Any:
        words = [sys.executable, "-m", f"tests.accelerator.{module}"]
        root = Path(__file__).parents[2]
        ran = subprocess.run(words, env=with_gpu, cwd=root, capture_output=True, text=True, timeout=300)
        assert ran.returncode == 0, ran.stderr
        return json.loads(ran.stdout)

    return run
