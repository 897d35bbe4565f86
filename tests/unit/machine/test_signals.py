"""SIGTERM ends a run that has begun as told to make room, also where libraries take every Exception for their own."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from switchlora.errors import Preempted
from switchlora.machine.signals import sigterm_raises
from tests.waiting import wait_for

# Sends SIGTERM to itself when a module is about to be imported, once `sigterm_raises` is there.
INTERRUPTED = """
import os, signal, sys

class Sender:
    def find_spec(self, name, path=None, target=None):
        if name == sys.argv[1] and signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
            sys.meta_path.remove(self)
            os.kill(os.getpid(), signal.SIGTERM)

from switchlora.cli import main

sys.meta_path.insert(0, Sender())
sys.exit(main(["pretrain", "--model", "tiny", "--data", "stdlib", "--output", sys.argv[2]]))
"""


PARENT = """
import subprocess, sys, time
from switchlora.machine.signals import stop_with_parent

child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], preexec_fn=stop_with_parent)
print(child.pid, flush=True)
time.sleep(600)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child")
@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL], ids=lambda how: how.name)
def test_a_child_ends_with_its_parent(how):
    with subprocess.Popen([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout is not None
        child = Path("/proc") / parent.stdout.readline().strip()
        assert child.exists()
        parent.send_signal(how)
    wait_for(lambda: not child.exists() or "(zombie)" in (child / "status").read_text())


def test_no_library_takes_it_for_a_failure_of_its_own():
    with pytest.raises(Preempted, match="terminated"), sigterm_raises():
        try:
            os.kill(os.getpid(), signal.SIGTERM)
        except Exception:
            pytest.fail("taken for an Exception")


@pytest.mark.parametrize("module", ["transformers.models.llama.configuration_llama", "sympy", "scipy", "torchao"])
def test_a_run_that_is_told_to_end_while_libraries_are_imported_says_try_again(tmp_path, module):
    words = [sys.executable, "-c", INTERRUPTED, module, str(tmp_path / "run")]
    environment = os.environ | {"SWITCHLORA_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == Preempted.exit_code, done.stderr
    assert done.stderr.splitlines()[-1].startswith("switchlora: error: terminated; the same command goes on")
