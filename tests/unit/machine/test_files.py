"""Atomic writes, JSON without NaN, and one run per folder."""

import errno
import json
import math
import os
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from switchlora.errors import UserError
from switchlora.machine.console import speaks
from switchlora.machine.files import (
    alone_in,
    atomic_write_json,
    atomic_write_new,
    atomic_write_text,
    disk_refusal,
    require_writable,
    spelled,
    writing,
)


def test_a_text_is_replaced_whole(tmp_path: Path) -> None:
    path = tmp_path / "result.json"
    atomic_write_text(path, "old")
    atomic_write_text(path, "naïve\n")
    assert path.read_bytes() == "naïve\n".encode()
    assert os.listdir(tmp_path) == ["result.json"]


@pytest.mark.parametrize(
    ("rank", "world_size", "spoken"),
    [("0", "2", True), ("1", "2", False), ("", "", True), ("1", "", True), ("abc", "2", True), ("3", "2", True)],
)
def test_of_several_processes_the_first_speaks(
    rank: str, world_size: str, spoken: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", rank)
    monkeypatch.setenv("WORLD_SIZE", world_size)
    assert speaks() == spoken


def test_a_full_disk_is_named_whoever_met_it(tmp_path: Path) -> None:
    """safetensors and torch have errors of their own; those that speak of no disk stay."""
    named = rf"--output {tmp_path}: cannot write the results \(no space left\)"
    with pytest.raises(UserError, match=named), writing("the results", tmp_path):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
    with pytest.raises(UserError, match=named), writing("the results", tmp_path):
        try:
            raise OSError(errno.EFBIG, "File too large")
        except OSError as error:
            raise RuntimeError("unexpected pos 64 vs 0") from error
    with pytest.raises(UserError, match="once"), writing("the results", tmp_path):
        raise UserError("once") from OSError(errno.ENOSPC, "No space left on device")
    with pytest.raises(SafetensorError), writing("the results", tmp_path):
        raise SafetensorError("no such dtype")
    with pytest.raises(KeyError), writing("the results", tmp_path):
        try:
            raise FileNotFoundError(errno.ENOENT, "No such file")
        except FileNotFoundError:
            raise KeyError("a mistake of ours")  # noqa: B904


def test_a_failed_write_leaves_the_old_text_and_nothing_else(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "result.json"
    atomic_write_text(path, "old")

    def refuse(handle: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fsync", refuse)
    with pytest.raises(OSError, match="Input/output"):
        atomic_write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["result.json"]


@pytest.mark.parametrize("has_links", [True, False])
def test_a_new_file_takes_nobody_s_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_links: bool) -> None:
    def refuse(*given: object) -> None:
        raise OSError(errno.EPERM, "no links here")

    if not has_links:
        monkeypatch.setattr(os, "link", refuse)
    path = tmp_path / "new.json"
    atomic_write_new(path, "first")
    with pytest.raises(FileExistsError):
        atomic_write_new(path, "second")
    assert path.read_text() == "first" and list(tmp_path.iterdir()) == [path]


def test_json_is_valid_json(tmp_path: Path) -> None:
    value = {"a": [math.nan, 1.5], "b": {"c": (math.inf, -math.inf)}, "d": "é"}
    assert spelled(value) == {"a": [None, 1.5], "b": {"c": ["inf", "-inf"]}, "d": "é"}
    atomic_write_json(tmp_path / "x.json", value)
    assert json.loads((tmp_path / "x.json").read_text(), parse_constant=pytest.fail) == spelled(value)


def test_a_refusing_disk_is_named_in_one_line(tmp_path: Path) -> None:
    full = disk_refusal(OSError(errno.ENOSPC, "No space left on device"), "checkpoint", tmp_path, after="; more")
    assert str(full) == (
        f"--output {tmp_path}: cannot write checkpoint (no space left); free some space there and start again; more"
    )
    denied = disk_refusal(OSError(errno.EACCES, "Permission denied"), "x", tmp_path)
    assert "Permission denied" in str(denied) and "writable" in str(denied)


HOLD = """
import sys
from pathlib import Path
from switchlora.machine.files import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def test_one_run_per_folder_even_when_the_first_is_killed(tmp_path: Path) -> None:
    command = [sys.executable, "-c", HOLD, str(tmp_path / "run")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None and first.stdout.readline() == "held\n"
        with pytest.raises(UserError, match="another run is writing there"), alone_in(tmp_path / "run"):
            pass
        first.kill()
    with alone_in(tmp_path / "run"):
        pass


@pytest.mark.parametrize("place", ["/proc/results", "file/below"])
def test_a_place_that_cannot_be_written_is_refused(place: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--output .*: nothing can be written in .*; give a folder"):
        require_writable(tmp_path / place)


def test_a_place_that_can_be_written_is_left_as_it_is(tmp_path: Path) -> None:
    require_writable(tmp_path / "some" / "where")
    assert list(tmp_path.iterdir()) == []
