"""A run that is stopped or killed at any point goes on, and ends with the bits of the one that was not."""

import json
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

from switchlora.errors import NonFiniteError, UserError
from switchlora.training.loop import pretrain
from switchlora.training.options import PretrainOptions
from tests import waiting

MakeOptions = Callable[..., PretrainOptions]
Start = Callable[..., subprocess.Popen[str]]


def wait_for(condition: Callable[[], object], process: subprocess.Popen[str]) -> None:
    """Until the condition holds, seen at once: steps are short."""
    waiting.wait_for(condition, process, poll_seconds=0.0005)


def lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def stop(process: subprocess.Popen[str], number: int) -> str:
    """Send a signal; returns what the run had printed to stderr."""
    process.send_signal(number)
    return process.communicate(timeout=60)[1]


def losses(folder: Path) -> list[tuple[int, float, float, int]]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(row["step"], row["loss"], row["grad_norm"], row["switches_done"]) for row in rows]


def assert_same(a: Path, b: Path) -> None:
    assert losses(a) == losses(b)
    assert (a / "model.safetensors").read_bytes() == (b / "model.safetensors").read_bytes()
    results = [json.loads((folder / "result.json").read_text()) for folder in (a, b)]
    for key in ("validation_loss", "switches_done", "switches_requested", "tokens", "steps"):
        assert results[0][key] == results[1][key], key


@pytest.mark.parametrize("candidates", ["pool", "fresh"])
@pytest.mark.parametrize("after", [1, 5, 9])
def test_kill_9_in_training(
    tmp_path: Path, options: MakeOptions, start: Start, after: int, candidates: str, capfd: pytest.CaptureFixture[str]
) -> None:
    pretrain(options(tmp_path / "whole", candidates=candidates))
    killed = start(tmp_path / "killed", candidates=candidates)
    wait_for(lambda: lines(tmp_path / "killed" / "metrics.jsonl") >= after, killed)
    stop(killed, signal.SIGKILL)
    assert not (tmp_path / "killed" / "result.json").exists()
    capfd.readouterr()
    pretrain(options(tmp_path / "killed", candidates=candidates))
    if after > 4:
        assert "going on after step" in capfd.readouterr().out
    assert_same(tmp_path / "whole", tmp_path / "killed")


def test_kill_9_while_a_checkpoint_is_written(tmp_path: Path, options: MakeOptions, start: Start) -> None:
    pretrain(options(tmp_path / "whole", save_every=1))
    checkpoints = tmp_path / "killed" / "checkpoints"

    def half_written() -> set[str]:
        return {name for name in os.listdir(checkpoints) if ".tmp" in name} if checkpoints.exists() else set()

    num_interrupted = 0
    for _ in range(4):
        killed, left_over = start(tmp_path / "killed", save_every=1), half_written()
        waiting.wait_for(
            lambda known=left_over, run=killed: half_written() - known or run.poll() is not None, poll_seconds=0.0005
        )
        stop(killed, signal.SIGKILL)
        num_interrupted += killed.returncode == -signal.SIGKILL
    assert num_interrupted > 0
    pretrain(options(tmp_path / "killed", save_every=1))
    assert_same(tmp_path / "whole", tmp_path / "killed")
    assert not [name for name in os.listdir(checkpoints) if ".tmp" in name]


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 75), (signal.SIGINT, 130)])
def test_a_signal_writes_a_checkpoint_first(
    tmp_path: Path, options: MakeOptions, start: Start, number: int, code: int
) -> None:
    pretrain(options(tmp_path / "whole", steps=60))
    stopped = start(tmp_path / "stopped", steps=60, save_every=0)
    wait_for(lambda: lines(tmp_path / "stopped" / "metrics.jsonl") >= 3, stopped)
    stderr = stop(stopped, number)
    assert stopped.returncode == code, stderr
    assert "Traceback" not in stderr
    assert len(list((tmp_path / "stopped" / "checkpoints").glob("step-*"))) == 1
    pretrain(options(tmp_path / "stopped", steps=60, save_every=0))
    assert_same(tmp_path / "whole", tmp_path / "stopped")


def test_killed_while_exporting(tmp_path: Path, options: MakeOptions) -> None:
    pretrain(options(tmp_path / "whole"))
    pretrain(options(tmp_path / "again"))
    for name in ("result.json", "model.safetensors", "loss.png"):
        (tmp_path / "again" / name).unlink()
    pretrain(options(tmp_path / "again"))
    assert_same(tmp_path / "whole", tmp_path / "again")


def test_a_broken_last_checkpoint_is_skipped(tmp_path: Path, options: MakeOptions) -> None:
    pretrain(options(tmp_path / "whole"))
    pretrain(options(tmp_path / "again"))
    (tmp_path / "again" / "result.json").unlink()
    last = sorted((tmp_path / "again" / "checkpoints").glob("step-*"))[-1]
    file = last / "optimizer.pt"
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    pretrain(options(tmp_path / "again"))
    assert_same(tmp_path / "whole", tmp_path / "again")


def test_where_no_checkpoint_is_whole_nothing_is_begun_anew(tmp_path: Path, options: MakeOptions) -> None:
    pretrain(options(tmp_path / "run"))
    (tmp_path / "run" / "result.json").unlink()
    for file in (tmp_path / "run" / "checkpoints").glob("step-*/optimizer.pt"):
        file.write_bytes(file.read_bytes()[:-10])
    before = {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()}
    with pytest.raises(UserError, match=r"none of its 2 checkpoints is whole.*put one back.*--overwrite"):
        pretrain(options(tmp_path / "run"))
    assert {path: path.read_bytes() for path in (tmp_path / "run").rglob("*") if path.is_file()} == before
    pretrain(options(tmp_path / "run", overwrite=True))


def test_a_finished_run_is_left_alone(tmp_path: Path, options: MakeOptions, capsys: pytest.CaptureFixture[str]) -> None:
    first = pretrain(options(tmp_path / "run"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    capsys.readouterr()
    again = pretrain(options(tmp_path / "run"))
    assert "finished" in capsys.readouterr().out
    assert again == json.loads(json.dumps(first))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_other_options_are_refused_and_nothing_is_touched(tmp_path: Path, options: MakeOptions) -> None:
    pretrain(options(tmp_path / "run"))
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")}
    with pytest.raises(UserError, match="--steps 12 there, 13 here"):
        pretrain(options(tmp_path / "run", steps=13))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*")} == before


def test_resume_from_a_named_checkpoint_into_another_folder(tmp_path: Path, options: MakeOptions) -> None:
    pretrain(options(tmp_path / "whole", keep=9))
    middle = tmp_path / "whole" / "checkpoints" / "step-00000008"
    pretrain(options(tmp_path / "branch", resume=str(middle)))
    assert_same(tmp_path / "whole", tmp_path / "branch")


def test_data_that_changed_meanwhile_are_refused(tmp_path: Path, options: MakeOptions, corpus: Path) -> None:
    data = tmp_path / "data.txt"
    text = (corpus / "ast.txt").read_bytes()
    data.write_bytes(text)
    pretrain(options(tmp_path / "run", data=(str(data),)))
    (tmp_path / "run" / "result.json").unlink()
    data.write_bytes(text[2000:])
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").rglob("*")}
    with pytest.raises(UserError, match=r"--data .*not what the run began with"):
        pretrain(options(tmp_path / "run", data=(str(data),)))
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "checkpoints").rglob("*")} == before
    data.write_bytes(text)  # the same text again, with another time stamp
    pretrain(options(tmp_path / "run", data=(str(data),)))


def test_another_model_of_the_same_shapes_is_refused(tmp_path: Path, values: dict, options: MakeOptions) -> None:
    model = tmp_path / "config.json"
    text = Path(values["model"]).read_text()
    model.write_text(text)
    pretrain(options(tmp_path / "run", model=str(model)))
    (tmp_path / "run" / "result.json").unlink()
    model.write_text(text.replace('"num_attention_heads": 2', '"num_attention_heads": 4'))
    with pytest.raises(
        UserError, match=r"--model .*\(head_dim 16 before, 8 now, num_attention_heads 2 before, 4 now.*bring it back"
    ):
        pretrain(options(tmp_path / "run", model=str(model)))
    model.write_text(text)
    pretrain(options(tmp_path / "run", model=str(model)))


def test_weights_that_are_not_finite_are_never_saved(tmp_path: Path, options: MakeOptions) -> None:
    with pytest.raises(NonFiniteError, match="step 1: a weight is not finite; no checkpoint had been written"):
        pretrain(options(tmp_path / "run", lr=1e18, lora_alpha=1e6, clip=0, save_every=1, warmup=0))
    assert not list((tmp_path / "run" / "checkpoints").glob("step-*"))


def test_stepping_inside_the_backward_pass_changes_no_bit_and_resumes(
    tmp_path: Path, options: MakeOptions, start: Start
) -> None:
    """bf16 storage of everything, too: the run with its gradients freed at once, killed, and the plain one."""
    stored = {"clip": 0.0, "dtype": "bf16", "factor_dtype": "bf16", "moment_dtype": "bf16"}
    pretrain(options(tmp_path / "plain", **stored))
    killed = start(tmp_path / "fused", fused_backward=True, **stored)
    wait_for(lambda: lines(tmp_path / "fused" / "metrics.jsonl") >= 6, killed)
    stop(killed, signal.SIGKILL)
    pretrain(options(tmp_path / "fused", fused_backward=True, **stored))
    rows = [json.loads(line) for line in (tmp_path / "fused" / "metrics.jsonl").read_text().splitlines()]
    plain = [json.loads(line) for line in (tmp_path / "plain" / "metrics.jsonl").read_text().splitlines()]
    assert [row["loss"] for row in rows] == [row["loss"] for row in plain]
    assert "grad_norm" not in rows[0]
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("plain", "fused")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("method", ["galore", "fira", "stable-spam", "racs", "switchlora-polar"])
def test_other_methods_that_were_killed_end_with_the_same_bits(
    tmp_path: Path, options: MakeOptions, start: Start, method: str
) -> None:
    """Their checkpoints are read with weights_only=True, projectors and counts included."""
    own = {"method": method, "projection_gap": 5, "steps": 30}
    pretrain(options(tmp_path / "whole", **own))
    killed = start(tmp_path / "killed", **own)
    wait_for(lambda: lines(tmp_path / "killed" / "metrics.jsonl") >= 6, killed)
    stop(killed, signal.SIGKILL)
    assert not (tmp_path / "killed" / "result.json").exists()
    pretrain(options(tmp_path / "killed", **own))
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "killed")]
    assert weights[0] == weights[1]
