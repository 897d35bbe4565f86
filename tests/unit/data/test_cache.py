"""A cached folder is whole or absent, whoever is killed, damages it, or builds it at the same time."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from switchlora.data.cache import ensure_folder, locked, read_json, read_seal, write_json, writing
from switchlora.data.store import TokenReader, TokenWriter, shard_path
from switchlora.errors import UserError


def build(folder: Path) -> dict[str, Any]:
    (folder / "payload").write_text("x" * 1000)
    return {"answer": 42}


def refuse(folder: Path) -> dict[str, Any]:
    raise AssertionError("this must not be built again")


def test_built_once(tmp_path: Path) -> None:
    folder = tmp_path / "built"
    assert ensure_folder(folder, build) == {"answer": 42}
    assert ensure_folder(folder, refuse) == {"answer": 42}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["built", "built.lock"]


@pytest.mark.parametrize("damage", ["shorter", "longer", "missing", "manifest"])
def test_damage_is_rebuilt(tmp_path: Path, damage: str) -> None:
    folder = tmp_path / "built"
    ensure_folder(folder, build)
    if damage == "missing":
        (folder / "payload").unlink()
    elif damage == "manifest":
        (folder / "manifest.json").write_text('{"about": {"ans')
    else:
        (folder / "payload").write_text("x" * (999 if damage == "shorter" else 1001))
    assert read_seal(folder) is None
    assert ensure_folder(folder, build) == {"answer": 42}
    assert (folder / "payload").read_text() == "x" * 1000
    assert sorted(path.name for path in tmp_path.iterdir()) == ["built", "built.lock"]


def test_a_failed_build_leaves_nothing(tmp_path: Path) -> None:
    def fail(folder: Path) -> dict[str, Any]:
        build(folder)
        raise UserError("a bad line")

    with pytest.raises(UserError, match="a bad line"):
        ensure_folder(tmp_path / "built", fail)
    assert [path.name for path in tmp_path.iterdir()] == ["built.lock"]


def test_a_killed_build_is_swept_away(tmp_path: Path) -> None:
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom switchlora.data.cache import ensure_folder\n"
        "def build(folder):\n (folder / 'payload').write_text('half')\n print('half', flush=True)\n time.sleep(60)\n"
        "ensure_folder(Path(sys.argv[1]), build)"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-c", code, str(tmp_path / "built")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as process:
        assert process.stdout is not None
        process.stdout.readline()
        process.send_signal(signal.SIGKILL)
    assert not (tmp_path / "built").exists()
    assert len(list(tmp_path.glob(".built.*"))) == 1
    assert ensure_folder(tmp_path / "built", build) == {"answer": 42}
    assert list(tmp_path.glob(".built.*")) == []


def _slow_build(folder: Path) -> dict[str, Any]:
    time.sleep(0.3)
    (folder / "payload").write_text(str(os.getpid()))
    return {"pid": os.getpid()}


def _ensure(folder: Path, results: Any) -> None:
    results.put(ensure_folder(folder, _slow_build)["pid"])


def test_two_processes_build_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    results = context.Queue()
    workers = [context.Process(target=_ensure, args=(tmp_path / "built", results)) for _ in range(3)]
    for worker in workers:
        worker.start()
    pids = {results.get(timeout=60) for _ in workers}
    for worker in workers:
        worker.join()
    results.close()
    assert len(pids) == 1
    assert (tmp_path / "built" / "payload").read_text() == str(pids.pop())


def test_without_a_lock_the_first_builder_wins(tmp_path: Path) -> None:
    folder = tmp_path / "built"

    def overtaken(temporary: Path) -> dict[str, Any]:  # as on a file system that ignores locks
        other = tmp_path / "other"
        ensure_folder(other, build)
        other.rename(folder)
        return {"answer": "late"}

    ensure_folder(folder, overtaken)
    assert read_seal(folder) == {"answer": 42}


def test_a_lock_that_is_taken(tmp_path: Path) -> None:
    with locked(tmp_path / "lock") as first, locked(tmp_path / "lock", wait=False) as second:
        assert first
        assert not second
    with locked(tmp_path / "lock", wait=False) as third:
        assert third


def test_json_is_replaced_whole(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"a": 1})
    write_json(tmp_path / "a.json", {"a": 2})
    assert read_json(tmp_path / "a.json") == {"a": 2}
    assert [path.name for path in tmp_path.iterdir()] == ["a.json"]


@pytest.mark.parametrize("num_tokens", [10, 100_000])  # found out when closing, and when writing
def test_a_full_disk_names_the_folder(tmp_path: Path, num_tokens: int) -> None:
    shard_path(tmp_path, "train", 0).symlink_to("/dev/full")  # writes there fail with ENOSPC, as on a full disk
    with (
        pytest.raises(UserError, match="free some space") as caught,
        writing(tmp_path),
        TokenWriter(tmp_path, "train", dtype="<u2") as writer,
    ):
        writer.append(np.arange(num_tokens))
    assert str(tmp_path) in str(caught.value)
    assert isinstance(caught.value.__cause__, OSError)
    assert caught.value.__cause__.errno == errno.ENOSPC


def test_a_file_where_the_cache_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="make that folder writable"):
        ensure_folder(tmp_path / "file" / "built", build)


@pytest.mark.parametrize("dtype", ["<u2", "<u4"])
def test_shards_read_back_across_their_ends(tmp_path: Path, dtype: str) -> None:
    tokens = np.random.default_rng(0).integers(0, 60_000, 1000)
    writer = TokenWriter(tmp_path, "train", dtype=dtype, shard_tokens=64)
    for chunk in np.split(tokens, [1, 63, 64, 300]):
        writer.append(chunk)
    writer.close()
    assert len(list(tmp_path.iterdir())) == 16
    reader = TokenReader(tmp_path, "train", dtype=dtype, shard_tokens=64)
    for start, stop in [(0, 1000), (63, 65), (64, 128), (990, 1000), (5, 5)]:
        assert reader.read(start, stop).tolist() == tokens[start:stop].tolist()


@pytest.mark.parametrize("kept", [0, 50, 64, 100])
def test_writing_goes_on_where_the_count_says(tmp_path: Path, kept: int) -> None:
    first = TokenWriter(tmp_path, "train", dtype="<u2", shard_tokens=64)
    first.append(np.full(150, 7))
    first.close()
    again = TokenWriter(tmp_path, "train", dtype="<u2", shard_tokens=64, num_tokens=kept)
    again.append(np.full(30, 9))
    again.close()
    reader = TokenReader(tmp_path, "train", dtype="<u2", shard_tokens=64)
    assert reader.read(0, kept + 30).tolist() == [7] * kept + [9] * 30
