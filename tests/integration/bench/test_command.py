"""The command from outside: a small run leaves table, JSON and chart; mistakes are one line and leave nothing."""

import errno
import json
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from switchlora.bench import command, contestants, room
from switchlora.bench.contestants import Contestant, installed
from switchlora.bench.options import BenchOptions
from switchlora.bench.peak import peak_bytes
from switchlora.cli import main

SMALL = ["bench", "--model", "tiny", "--seq-len", "8", "--ranks", "8", "--warmup-steps", "1", "--threads", "1"]
RATIO = {"median", "p10", "p90", "low", "high", "coverage"}


def test_a_small_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "results"
    assert main([*SMALL, "--sequences", "1", "--steps", "6", "--output", str(output)]) == 0
    assert "tiny, 1 sequences of 8, fp32" in capsys.readouterr().out
    assert (output / "bench.png").read_bytes().startswith(b"\x89PNG")
    result = json.loads((output / "bench.json").read_text())
    assert result["machine"]["threads"] == 1 and result["options"]["seed"] == 0
    (workload,) = result["workloads"]
    rows = {row["name"]: row for row in workload["contestants"]}
    measured = {name for name, row in rows.items() if "seconds" in row}
    assert {"full", "switchlora r=8", "switchlora-dense r=8", "lora-adapter r=8"} <= measured
    assert ("peft r=8" in measured) == installed("peft")
    assert ("galore r=8" in measured) == (installed("galore_torch") and installed("bitsandbytes"))
    assert all(row["absence"] for name, row in rows.items() if name not in measured)
    assert len(workload["order"]) == 6 and all(set(order) == measured for order in workload["order"])
    for name in measured:
        row = rows[name]
        assert len(row["seconds"]["step"]) == 6 and row["ratio_to_full"].keys() == RATIO
        assert row["model_flops"] > 0 and row["total_bytes"] == sum(row["bytes"].values()) > 0
    assert rows["full"]["ratio_to_full"]["median"] == 1
    assert rows["switchlora r=8"]["num_switches"] > 0


def test_every_batch_size_is_a_table(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "some" / "where.json"
    words = ["--methods", "full", "--sequences", "1", "2", "--steps", "3", "--output", str(output)]
    assert main([*SMALL, *words]) == 0
    text = capsys.readouterr().out
    assert "tiny, 1 sequences of 8, fp32" in text and "tiny, 2 sequences of 8, fp32" in text
    assert [workload["num_tokens"] for workload in json.loads(output.read_text())["workloads"]] == [8, 16]
    assert output.with_suffix(".png").exists()


def test_nothing_is_overwritten(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    kept = tmp_path / "bench.json"
    kept.write_text("{}")
    assert main([*SMALL, "--output", str(kept)]) == 2
    assert "is there already" in capsys.readouterr().err
    assert kept.read_text() == "{}"


def test_what_appears_meanwhile_is_not_overwritten_either(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    kept, measure = tmp_path / "bench.json", command.run_rounds

    def write_and_measure(*arguments: Any) -> Any:
        kept.write_text("precious")
        (tmp_path / "bench-2.png").write_text("precious, too")
        return measure(*arguments)

    monkeypatch.setattr(command, "run_rounds", write_and_measure)
    words = ["--methods", "full", "--sequences", "1", "2", "--steps", "3", "--output", str(kept)]
    assert main([*SMALL, *words]) == 0
    assert "written by somebody else meanwhile" in capsys.readouterr().out
    assert kept.read_text() == "precious" and (tmp_path / "bench-2.png").read_text() == "precious, too"
    assert len(json.loads((tmp_path / "bench-3.json").read_text())["workloads"]) == 2
    assert (tmp_path / "bench-3.png").exists() and len(list(tmp_path.iterdir())) == 4


def test_what_a_full_disk_refuses_is_shown_at_least(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*given: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fail)
    words = ["--methods", "full", "--sequences", "1", "--steps", "3", "--output", str(tmp_path / "bench.json")]
    assert main([*SMALL, *words]) == 2
    assert list(tmp_path.iterdir()) == []
    shown = capsys.readouterr()
    assert "to full" in shown.out and "no space left" in shown.err


def test_ctrl_c_in_a_later_table_tells_where_the_earlier_one_is(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure, done = command.run_rounds, list[int]()

    def interrupted(*arguments: Any) -> Any:
        done.append(1)
        if len(done) == 2:
            raise KeyboardInterrupt
        return measure(*arguments)

    monkeypatch.setattr(command, "run_rounds", interrupted)
    output = tmp_path / "bench.json"
    words = ["--methods", "full", "--sequences", "1", "2", "--steps", "3", "--output", str(output)]
    assert main([*SMALL, *words]) == 130
    assert f"results: {output}" in capsys.readouterr().out
    assert len(json.loads(output.read_text())["workloads"]) == 1


def test_what_cannot_work_is_known_before_anything_is_measured(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(command, "base_model", None)
    assert main([*SMALL, "--output", "/proc/results/here.json"]) == 2
    assert "nothing can be written in /proc" in capsys.readouterr().err
    monkeypatch.setattr(room, "host_memory_bytes", lambda: 10**9)
    assert main(["bench", "--model", "1.3b", "--output", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "1.0 GB; give fewer --methods or --ranks" in line


@pytest.mark.parametrize(
    ("words", "parts"),
    [
        (["--steps", "2"], ["--steps 2", "3 rounds"]),
        (["--ranks", "512"], ["--ranks 512", "smaller than the hidden size"]),
        (["--methods", "loar"], ["--methods loar", "must be full"]),
        (["--device", "cuda:99"], ["--device cuda:99"]),
        (["--threads", "1000"], ["--threads 1000", "at most"]),
        (["--stps", "3"], ["unknown option --stps", "did you mean --steps?"]),
    ],
)
def test_a_mistake_is_one_line(
    words: list[str], parts: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bench", "--output", str(tmp_path / "out"), *words]) == 2
    line = capsys.readouterr().err
    assert line.startswith("switchlora: error: ") and line.count("\n") == 1
    for part in parts:
        assert part in line
    assert list(tmp_path.iterdir()) == []


def test_a_missing_package_is_a_line_and_a_mistake_only_by_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(contestants, "installed", lambda package: False)
    assert main([*SMALL, "--methods", "peft", "--output", str(tmp_path / "out")]) == 2
    assert (
        "--methods peft: not installed (peft), in the checkout: .venv/bin/pip install -c constraints.txt -e '.[bench]'"
        in capsys.readouterr().err
    )
    monkeypatch.setattr(contestants, "METHODS", ("full", "peft"), raising=False)
    monkeypatch.setattr(BenchOptions, "all_methods", ("full", "peft"))
    assert main([*SMALL, "--sequences", "1", "--steps", "3", "--output", str(tmp_path / "out")]) == 0
    text = capsys.readouterr().out
    assert "peft r=8: not installed (peft), in the checkout: .venv/bin/pip install" in text
    rows = json.loads((tmp_path / "out" / "bench.json").read_text())["workloads"][0]["contestants"]
    assert [("seconds" in row, row["absence"] != "") for row in rows] == [(True, False), (False, True)]


def test_a_package_that_cannot_be_imported_is_a_line_as_well(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """In whatever way: here it misses something of another package, as where versions do not fit."""
    (tmp_path / "peft.py").write_text("import torch\ntorch.no_such_name\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    for name in [name for name in sys.modules if name.split(".")[0] == "peft"]:
        monkeypatch.delitem(sys.modules, name)
    assert main([*SMALL, "--methods", "peft", "--output", str(tmp_path / "out")]) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1 and "cannot be imported (peft: module 'torch' has no attribute" in line
    monkeypatch.setattr(BenchOptions, "all_methods", ("full", "peft"))
    assert main([*SMALL, "--sequences", "1", "--steps", "3", "--output", str(tmp_path / "out")]) == 0
    assert "peft r=8: its package cannot be imported" in capsys.readouterr().out
    rows = json.loads((tmp_path / "out" / "bench.json").read_text())["workloads"][0]["contestants"]
    assert [("seconds" in row, row["absence"] != "") for row in rows] == [(True, False), (False, True)]


def test_memory_that_ends_in_a_later_table_leaves_and_shows_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    measure = command.run_rounds

    def run_rounds(trainees: Any, options: Any, sequences: int, *others: Any) -> Any:
        if sequences == 2:
            raise MemoryError
        return measure(trainees, options, sequences, *others)

    monkeypatch.setattr(command, "run_rounds", run_rounds)
    words = ["--methods", "full", "--sequences", "1", "2", "--steps", "3", "--output", str(tmp_path / "out")]
    assert main([*SMALL, *words]) == 2
    told = capsys.readouterr()
    assert "--sequences 2 --seq-len 8: 1 methods do not fit into the memory" in told.err
    assert f"results: {tmp_path / 'out' / 'bench.json'}" in told.out
    assert len(json.loads((tmp_path / "out" / "bench.json").read_text())["workloads"]) == 1


def test_the_peak_is_measured_alone() -> None:
    options = BenchOptions(model="60m", seq_len=8, threads=1, ranks=64)
    peak, note = peak_bytes(Contestant("lora-adapter", 64), options, 1)
    assert note == ""
    weights = 58_000_000 * 4
    assert peak is not None and weights < peak < 4 * weights, "with a quarter of the parameters trainable"


def test_a_peak_that_fails_says_why() -> None:
    peak, note = peak_bytes(Contestant("no-such-method", 8), BenchOptions(model="tiny", device="cuda:99"), 1)
    assert peak is None and "cuda:99" in note
