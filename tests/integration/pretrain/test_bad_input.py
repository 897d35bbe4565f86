"""Bad input gets one line that names the way out, exit code 2 or 3, and nothing on disk changes."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from switchlora.cli import main

Complain = Callable[..., str]


@pytest.fixture
def complain(tmp_path: Path, values: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> Complain:
    """Run the command with changed options; returns the one line it printed."""

    def run(*, code: int = 2, output: str = "run", **changes: Any) -> str:
        words = ["pretrain", "--output", str(tmp_path / output)]
        for name, value in {**values, **changes}.items():
            words += [
                "--" + name.replace("_", "-"),
                *([str(v) for v in value] if isinstance(value, tuple) else [str(value)]),
            ]
        assert main(words) == code
        captured = capsys.readouterr()
        assert captured.err.startswith("switchlora: error: ")
        assert captured.err.count("\n") == 1
        return captured.err

    return run


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"r": 0}, ["--r", "0"]),
        ({"r": 32}, ["--r", "32", "smaller"]),
        ({"r": 1}, ["--r", "1", "switch"]),
        ({"interval": 4}, ["--interval", "4", "--freeze-steps"]),
        ({"target_modules": "nonsense"}, ["--target-modules", "nonsense", "q_proj"]),
        ({"target_modules": "q_prj,v_proj"}, ["q_prj", "q_proj"]),
        ({"target_modules": "(["}, ["(["]),
        ({"model": "tinny"}, ["tinny", "tiny"]),
        ({"data": "no/such/file.txt"}, ["--data", "no/such/file.txt"]),
        ({"seq_len": 128}, ["--seq-len", "64"]),
        ({"steps": "many"}, ["--steps", "many"]),
        ({"batch_size": 4, "micro_batch_size": 3}, ["--micro-batch-size", "3"]),
        ({"device": "mps"}, ["--device", "mps"]),
        ({"device": "cuda"}, ["--device", "cuda"]),
        ({"resume": "no/such/checkpoint"}, ["--resume", "no/such/checkpoint"]),
        ({"tokenizer": "train:5"}, ["--tokenizer", "train:5"]),
    ],
    ids=str,
)
def test_bad_options(tmp_path: Path, complain: Complain, changes: dict[str, Any], words: list[str]) -> None:
    line = complain(**changes)
    for word in words:
        assert word in line
    assert not (tmp_path / "run").exists()


def test_bad_data(tmp_path: Path, complain: Complain) -> None:
    (tmp_path / "bad.jsonl").write_text('{"text": "one"}\n{"text": \n')
    assert "bad.jsonl" in (line := complain(data=str(tmp_path / "bad.jsonl"))) and "2" in line
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1") * 1000)
    assert "UTF-8" in complain(data=str(tmp_path / "latin.txt"))
    (tmp_path / "empty.txt").write_text("")
    assert "empty.txt" in complain(data=str(tmp_path / "empty.txt"))
    (tmp_path / "small.txt").write_text("too small")
    complain(data=str(tmp_path / "small.txt"))
    (tmp_path / "torn.txt.xz").write_bytes(b"\xfd7zXZ\x00 torn")
    assert "torn.txt.xz" in complain(data=str(tmp_path / "torn.txt.xz"))
    assert not (tmp_path / "run").exists()


def test_the_configuration_is_checked_before_the_data(complain: Complain) -> None:
    assert "nonsense" in complain(target_modules="nonsense", data="no/such/file.txt")


def test_a_folder_of_something_else(tmp_path: Path, complain: Complain) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "thesis.txt").write_text("years of work")
    assert "not empty" in complain()
    assert [item.name for item in (tmp_path / "run").iterdir()] == ["thesis.txt"]


def test_resume_path_that_is_no_checkpoint(tmp_path: Path, complain: Complain) -> None:
    (tmp_path / "folder").mkdir()
    assert "--resume" in complain(resume=str(tmp_path / "folder"))


def test_a_run_that_diverges_stops_with_3_and_names_the_checkpoint(tmp_path: Path, complain: Complain) -> None:
    line = complain(code=3, lr=1e17, clip=0, save_every=1, warmup=0)
    assert "step" in line and "checkpoint" in line
    assert not (tmp_path / "run" / "result.json").exists()
