"""Several processes and what happens to them: killed, told to stop, slow, out of numbers or of disk, files gone bad."""

import errno
import json
import os
import re
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from switchlora.errors import NonFiniteError, Preempted, UserError
from switchlora.machine.files import writing
from switchlora.training import loop
from switchlora.training.checkpoint import CheckpointStore
from switchlora.training.loop import pretrain
from switchlora.training.metrics import MetricsLog
from switchlora.training.options import PretrainOptions
from tests.distributed.ranks import on_ranks, warm
from tests.distributed.runs import as_words, assert_same_bits, torchrun_words
from tests.waiting import wait_for

warm()
MakeOptions = Callable[..., PretrainOptions]
Undisturbed = Callable[[str], Path]
FAULTY = str(Path(__file__).parents[2] / "distributed" / "faulty.py")

SHORT = {"method": FAULTY, "eval_tokens": 500}


@pytest.fixture(scope="module")
def finished() -> dict[str, Path]:
    """Undisturbed runs of this module by strategy, as they come."""
    return {}


@pytest.fixture
def undisturbed(
    finished: dict[str, Path], options: MakeOptions, tmp_path_factory: pytest.TempPathFactory
) -> Undisturbed:
    """The folder of an undisturbed run of a strategy."""

    def run(strategy: str) -> Path:
        if strategy not in finished:
            finished[strategy] = tmp_path_factory.mktemp("undisturbed") / strategy
            done = on_ranks(attempt, options(finished[strategy], **SHORT, parallel=strategy), group=False)
            assert done == [None, None]
        return finished[strategy]

    return run


def attempt(options: PretrainOptions, fault: str = "", mark: str = "") -> tuple[str, str] | None:
    """Train; the kind and the message of what stopped it."""
    if fault:
        os.environ |= {"FAULT": fault, "FAULT_MARK": mark}
    try:
        pretrain(options)
    except (UserError, NonFiniteError, Preempted) as error:
        return type(error).__name__, str(error)
    except SystemExit as error:  # the first process has spoken
        return "SystemExit", str(error.code)
    return None


def torchrun(values: dict[str, Any], output: Path, *launch: str, **changes: Any) -> subprocess.Popen[str]:
    words = [*torchrun_words(*launch), "--output", str(output), *as_words({**values, **SHORT, **changes})]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))


@pytest.mark.parametrize(
    ("fault", "strategy"),
    [("forward:7:1", "ddp"), ("step:30:0", "fsdp"), ("write:20:1", "fsdp"), ("publish:1:0", "ddp")],
)
def test_a_killed_rank_is_started_again_and_nothing_is_lost(
    tmp_path: Path,
    options: MakeOptions,
    undisturbed: Undisturbed,
    values: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
    strategy: str,
) -> None:
    monkeypatch.setenv("FAULT", fault)
    monkeypatch.setenv("FAULT_MARK", str(tmp_path / "mark"))
    if fault.startswith(("write", "publish")):
        monkeypatch.setenv("FAULT_AFTER", str(tmp_path / "run" / "checkpoints" / "step-00000004"))
    run = torchrun(values, tmp_path / "run", "--max-restarts", "1", parallel=strategy)
    out, err = run.communicate(timeout=180)
    assert run.returncode == 0, err
    assert (tmp_path / "mark").exists()
    assert "Signal 9" in err or "-9" in err
    assert_same_bits(tmp_path / "run", undisturbed(strategy))
    if fault.startswith(("write", "publish")):
        assert "going on after step 4 from" in out  # the second checkpoint was never whole
    assert not [path for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.startswith(".")]


def test_sigterm_to_torchrun_leaves_a_checkpoint_and_a_mark(tmp_path: Path, values: dict[str, Any]) -> None:
    run = torchrun(values, tmp_path / "run", steps=400, save_every=0, eval_every=0)
    metrics = tmp_path / "run" / "metrics.jsonl"
    wait_for(lambda: metrics.exists() and metrics.read_bytes().count(b"\n") > 3, run)
    run.send_signal(signal.SIGTERM)
    out, err = run.communicate(timeout=120)
    assert run.returncode == 1  # torchrun's own
    match = re.search(r"stopped after step (\d+), with a checkpoint", out)
    assert match, err
    step = int(match[1])
    assert json.loads((tmp_path / "run" / "preempted").read_text()) == {"step": step}
    assert (tmp_path / "run" / "checkpoints" / f"step-{step:08d}" / "manifest.json").exists()
    assert err.count("switchlora: error: terminated after step") == 1


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_sigterm_to_one_process_stops_all_and_they_go_on(
    tmp_path: Path, options: MakeOptions, undisturbed: Undisturbed, strategy: str
) -> None:
    chosen = options(tmp_path / "run", **SHORT, parallel=strategy, save_every=0)
    stopped = on_ranks(attempt, chosen, "terminate:5:1", str(tmp_path / "mark"), group=False)
    assert [kind for kind, _ in stopped] == ["Preempted", "Preempted"]
    assert (tmp_path / "run" / "preempted").exists()
    assert on_ranks(attempt, chosen, group=False) == [None, None]
    assert not (tmp_path / "run" / "preempted").exists()
    assert_same_bits(tmp_path / "run", undisturbed(strategy))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_nan_on_one_rank_stops_all_and_is_traced_to_it(tmp_path: Path, options: MakeOptions, strategy: str) -> None:
    chosen = options(tmp_path / "run", **SHORT, parallel=strategy)
    for kind, message in on_ranks(attempt, chosen, "nan:6:1", str(tmp_path / "mark"), group=False):
        assert kind == "NonFiniteError"
        assert message.startswith("step 6: gradient norm nan, from rank 1; the last good checkpoint is ")
        assert "step-00000004" in message
    assert on_ranks(attempt, chosen, group=False) == [None, None]


def test_a_slow_rank_changes_nothing(tmp_path: Path, options: MakeOptions, undisturbed: Undisturbed) -> None:
    chosen = options(tmp_path / "run", **SHORT, parallel="fsdp")
    assert on_ranks(attempt, chosen, "slow:5:1", str(tmp_path / "mark"), group=False) == [None, None]
    assert (tmp_path / "mark").exists()
    assert_same_bits(tmp_path / "run", undisturbed("fsdp"))


@pytest.mark.parametrize("rank", [0, 1])
def test_a_full_disk_stops_all_and_the_checkpoint_before_is_used(
    tmp_path: Path, options: MakeOptions, undisturbed: Undisturbed, monkeypatch: pytest.MonkeyPatch, rank: int
) -> None:
    """No file may grow beyond 10 kB once the first checkpoint is there, so the next cannot be written."""
    monkeypatch.setenv("FAULT_AFTER", str(tmp_path / "run" / "checkpoints" / "step-00000004"))
    chosen = options(tmp_path / "run", **SHORT, parallel="fsdp")
    answers = on_ranks(attempt, chosen, f"disk:1:{rank}", str(tmp_path / "mark"), group=False)
    for kind, message in answers:
        assert kind == "UserError"
        assert "cannot write checkpoint step-00000008 (no space left)" in message
        assert message.endswith("it will go on from step-00000004")
    assert sorted(path.name for path in (tmp_path / "run" / "checkpoints").iterdir()) == ["step-00000004"]
    assert on_ranks(attempt, chosen, group=False) == [None, None]
    assert_same_bits(tmp_path / "run", undisturbed("fsdp"))


def test_a_write_that_failed_stops_the_run_before_the_next_is_due(
    tmp_path: Path, options: MakeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wait(self: CheckpointStore) -> None:
        raise UserError("no space left")

    monkeypatch.setattr(CheckpointStore, "has_failed", True)
    monkeypatch.setattr(CheckpointStore, "wait", wait)
    with pytest.raises(UserError, match="no space left"):
        pretrain(options(tmp_path / "run", save_every=0))
    assert len((tmp_path / "run" / "metrics.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("name", "how"), [("__1_0.distcp", "truncated"), ("__0_0.distcp", "flipped"), (".metadata", "flipped")]
)
def test_a_damaged_file_is_named_and_the_checkpoint_before_is_used(
    tmp_path: Path,
    options: MakeOptions,
    undisturbed: Undisturbed,
    capfd: pytest.CaptureFixture[str],
    name: str,
    how: str,
) -> None:
    chosen = options(tmp_path / "run", **SHORT, parallel="fsdp", keep=9)
    on_ranks(attempt, chosen, "terminate:10:0", str(tmp_path / "mark"), group=False)
    file = tmp_path / "run" / "checkpoints" / "step-00000010" / name
    content = bytearray(file.read_bytes())
    if how == "truncated":
        del content[-10:]
    else:
        content[len(content) // 2] ^= 1
    file.write_bytes(content)
    capfd.readouterr()
    assert on_ranks(attempt, chosen, group=False) == [None, None]
    captured = capfd.readouterr()
    assert captured.err.count("step-00000010 is broken and not used") == 1
    assert name in captured.err
    assert "going on after step 8 from" in captured.out
    assert_same_bits(tmp_path / "run", undisturbed("fsdp"))


def attempt_where_a_row_cannot_be_written(options: PretrainOptions) -> tuple[str, str] | None:
    """The disk is full from the sixth row of metrics.jsonl on, which only the first process writes."""
    append = MetricsLog.append

    def refused(log: MetricsLog, row: dict[str, Any]) -> None:
        if row["step"] == 6:
            with writing(log.path.name, log.path.parent):
                raise OSError(errno.ENOSPC, "No space left on device")
        append(log, row)

    MetricsLog.append = refused  # type: ignore[method-assign]  # in a process of its own
    return attempt(options)


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_a_disk_that_is_full_for_one_row_stops_all(
    tmp_path: Path, options: MakeOptions, undisturbed: Undisturbed, strategy: str
) -> None:
    chosen = options(tmp_path / "run", **SHORT, parallel=strategy)
    first, second = on_ranks(attempt_where_a_row_cannot_be_written, chosen, group=False)
    assert first[0] == "UserError"
    assert f"--output {tmp_path / 'run'}: cannot write metrics.jsonl (no space left)" in first[1]
    assert second == ("SystemExit", "2")
    assert on_ranks(attempt, chosen, group=False) == [None, None]
    assert_same_bits(tmp_path / "run", undisturbed(strategy))


def attempt_where_rank_1_misses(name: str, options: PretrainOptions) -> tuple[str, str] | None:
    """On one machine of several something is not there that the others have."""
    if os.environ["RANK"] == "1":

        def missing(*_: Any) -> Any:
            raise UserError(f"{name}: not on this machine")

        setattr(loop, name, missing)
    return attempt(options)


@pytest.mark.parametrize("name", ["check_model", "load_data"])
def test_what_one_rank_alone_misses_is_said_by_the_first(tmp_path: Path, options: MakeOptions, name: str) -> None:
    chosen = options(tmp_path / "run", **SHORT, parallel="ddp")
    message = ("UserError", f"{name}: not on this machine")
    assert on_ranks(attempt_where_rank_1_misses, name, chosen, group=False) == [message, message]
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("place", ["check_model", "export"])
def test_sigterm_where_no_step_is_taken(
    tmp_path: Path, options: MakeOptions, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Before the first step, and while the model is written: nothing to save, but no crash either."""
    own = {"eval_tokens": 500}  # in this process, in which FAULTY must not be loaded yet
    chosen = options(tmp_path / "run", **own)

    def told_to_stop(*_: Any) -> None:
        os.kill(os.getpid(), signal.SIGTERM)

    with monkeypatch.context() as patch:
        patch.setattr(loop, place, told_to_stop)
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(Preempted, match="terminated; the same command goes on"):
            pretrain(chosen)
        assert signal.getsignal(signal.SIGTERM) == before
    assert (tmp_path / "run" / "preempted").exists() == (place == "export")
    pretrain(chosen)
    pretrain(options(tmp_path / "whole", **own))
    assert not (tmp_path / "run" / "preempted").exists()
    assert_same_bits(tmp_path / "run", tmp_path / "whole")
