"""Every kernel compiles for sm_80 and sm_90, ptxas included, which needs no GPU; and reads as widely as it can."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("compile_all.py")
REPOSITORY = PROGRAM.parents[3]


@pytest.fixture(scope="module")
def lines(_triton, tmp_path_factory):
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path_factory.mktemp("triton")), "PYTHONPATH": str(REPOSITORY)}
    if "PYTHONPATH" in os.environ:
        environment["PYTHONPATH"] += os.pathsep + os.environ["PYTHONPATH"]
    done = subprocess.run([sys.executable, PROGRAM], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@pytest.mark.parametrize("capability", ["sm_80", "sm_90"])
def test_every_kernel_compiles(lines, capability):
    compiled = [line.split()[1] for line in lines if line.startswith(capability)]
    assert set(compiled) == {"factor_step", "weight_update", "exchange", "ordinary_step"}
    assert len(compiled) == 19


def test_aligned_tensors_are_read_16_bytes_at_a_time(lines):
    aligned = [line for line in lines if "ALIGNED=True" in line]
    assert len(aligned) == 2 * 13
    assert all(" load=16 " in line for line in aligned)
