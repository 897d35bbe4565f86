"""Runs side by side, each a `switchlora pretrain` of its own: started, watched, stopped with a checkpoint.

A process per run keeps runs apart (threads, memory, a crash), makes its peak memory its own, and gives it a command
that anybody can type again. On a machine with GPUs each run gets one to itself.
"""

import fcntl
import os
import re
import shlex
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from switchlora.compare.plan import PlannedRun
from switchlora.errors import NonFiniteError, Preempted, UserError
from switchlora.machine.files import LOCK
from switchlora.machine.signals import stop_with_parent
from switchlora.options.fields import flag
from switchlora.training.folder import METRICS
from switchlora.training.metrics import read_metrics
from switchlora.training.options import PretrainOptions

DIVERGED = NonFiniteError.exit_code
ERROR = "switchlora: error: "
PATIENCE_SECONDS = 60.0  # with a run that an earlier comparison left, until it has written its checkpoint
STOPPED = (Preempted.exit_code, 130, -signal.SIGTERM)  # the last: before it had begun


@dataclass
class Running:
    """A run that was started, its folder, and its process."""

    run: PlannedRun
    folder: Path
    log: Path
    log_start: int
    place: int
    process: "subprocess.Popen[bytes]"
    launched: bool = False  # by torchrun

    @property
    def code(self) -> int:
        """The exit code of a run that is over. torchrun's own is 1; it writes down that of the process at fault."""
        code: int = self.process.returncode
        if not self.launched or code != 1:
            return code
        if "SignalException" in self._said():  # it was told to stop, and told the others
            return Preempted.exit_code
        said = re.findall(r"exitcode\s*:\s*(-?\d+)", self._said())
        return int(said[-1]) if said else code

    def _said(self) -> str:
        return self.log.read_bytes()[self.log_start :].decode("utf-8", "replace")

    def fraction(self) -> float:
        """Of its steps, how many are done."""
        rows = read_metrics(self.folder / METRICS)
        return rows[-1]["step"] / self.run.steps if rows else 0.0

    def ask_to_stop(self) -> None:
        """It writes a checkpoint and ends; the next start goes on from there."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)

    def last_line(self) -> str:
        """The last thing it said: of a run that failed, the reason."""
        lines = [line for line in self._said().splitlines() if line.strip()]
        ours = [line for line in lines if line.startswith(ERROR)]  # torchrun adds a page of its own
        return (ours or lines or ["it said nothing"])[-1]

    def error(self) -> str:
        """Its last line without the program's name."""
        return self.last_line().removeprefix(ERROR)

    def reason(self) -> str:
        """Why it diverged, without the way out, which is for those who started it by hand."""
        return self.error().split("; ", 1)[0]


def start(
    run: PlannedRun, output: Path, *, place: int, num_gpus: int, threads: int | None, processes: int = 1
) -> Running:
    """Start a run, or go on with it.

    Args:
        output: of the comparison; the run's folder and its log are in runs/ there.
        place: which of the jobs it is, from 0; the GPUs it gets.
        processes: how many train it together.
        threads: of torch, where the options do not say.
    """
    folder = output / "runs" / run.id
    folder.parent.mkdir(parents=True, exist_ok=True)
    log = folder.parent / f"{run.id}.log"
    _wait_until_free(folder)
    environment = dict(os.environ)
    if num_gpus:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(number) for number in range(num_gpus)]
        own = [names[(place * processes + number) % num_gpus] for number in range(processes)]
        environment["CUDA_VISIBLE_DEVICES"] = ",".join(own)
    with log.open("ab") as handle:
        log_start = handle.tell()
        process = _launch(command(run, folder, threads), environment, handle, processes)
    return Running(run, folder, log, log_start, place, process, launched=processes > 1)


def command(run: PlannedRun, folder: Path, threads: int | None) -> list[str]:
    """The words of a run's command line, with what differs from pretrain's own defaults."""
    options, defaults = run.options(), PretrainOptions()
    words = ["pretrain", "--output", str(folder)]
    for name in PretrainOptions.specs():
        value = getattr(options, name)
        if name == "threads" and value is None:
            value = threads
        if name == "output" or value == getattr(defaults, name) or (name == "parallel" and value == "none"):
            continue  # the strategy is the launch's own, where nobody has said one
        if isinstance(value, bool):
            words.append(flag(name) if value else flag(name).replace("--", "--no-", 1))
        elif name == "target_modules" and isinstance(value, tuple):
            words += [flag(name), ",".join(value)]
        else:
            words += [flag(name), *map(_word, value if isinstance(value, tuple) else (value,))]
    return words


def shown(words: list[str]) -> str:
    """A command line to be typed."""
    return shlex.join(["switchlora", *words])


def stop_all(running: list[Running]) -> None:
    """Ask all to stop and wait for their checkpoints."""
    for one in running:
        one.ask_to_stop()
    for one in running:
        one.process.wait()


def failure(one: Running) -> UserError:
    """The error for a run that ended as no run should."""
    code = one.code
    if code < 0:  # whatever it said last, it was not this
        memory = ", by somebody or for want of memory" if code == -signal.SIGKILL else ""
        how = f"killed by signal {-code}{memory}"
    else:
        how = f"exit code {code}: {one.error()[:300]}"
    go_on = f"then give the same command to go on (without {one.folder} the run begins anew)"
    return UserError(f"{one.run.id}: {how}; see {one.log}, {go_on}")


def _word(value: object) -> str:
    return (
        "none"
        if value is None
        else f"{value:g}"
        if isinstance(value, float) and float(f"{value:g}") == value
        else str(value)
    )


def _launch(words: list[str], environment: dict[str, str], log: IO[bytes], processes: int) -> "subprocess.Popen[bytes]":
    """In a session of its own, so that Ctrl-C reaches us alone and we stop the runs in order.

    Should we be killed, it is asked to stop.
    """
    launch = []
    if processes > 1:
        launch = ["torch.distributed.run", "--standalone", "--nproc-per-node", str(processes), "-m", "--"]
    return subprocess.Popen(
        [sys.executable, "-m", *launch, "switchlora", *words],
        stdin=subprocess.DEVNULL,
        stdout=log,
        stderr=log,
        env=environment,
        start_new_session=True,
        preexec_fn=stop_with_parent,  # a run that goes on alone would hold its folder
    )


def _wait_until_free(folder: Path) -> None:
    """Let a run of an earlier comparison, which was killed, write its checkpoint first."""
    lock = folder / LOCK
    deadline = time.monotonic() + PATIENCE_SECONDS
    while lock.exists() and time.monotonic() < deadline:
        with lock.open("a") as handle:
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError:
                time.sleep(0.2)
