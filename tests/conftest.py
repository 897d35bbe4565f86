"""What every test gets: a quiet, offline, deterministic machine with one torch thread.

Set through the environment before anything imports torch, so that subprocesses started by tests get it as
well. One thread, because the tensors here are small (threads cost more than they bring) and two workers share
two cores.
"""

import os
import signal
import sys
from pathlib import Path

import hypothesis
import pytest

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MKL_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "Agg")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")  # a test that reaches for a hub is a mistake: fail at once
if not Path("/dev/nvidiactl").exists():  # kernels are then interpreted, which triton decides when it is first imported
    os.environ.setdefault("TRITON_INTERPRET", "1")

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # the tests were started in the background of a shell
    signal.signal(signal.SIGINT, signal.default_int_handler)

# No deadline: a first call compiles or imports. On CI the same examples every time; at a desk, new ones.
hypothesis.settings.register_profile("desk", deadline=None)
hypothesis.settings.register_profile("ci", deadline=None, derandomize=True, print_blob=True)
hypothesis.settings.load_profile("ci" if os.environ.get("CI") else "desk")


@pytest.fixture(autouse=True)
def _same_randomness_in_every_test():
    """Seed torch's global generator: a test's data must not depend on which tests ran before it."""
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)
