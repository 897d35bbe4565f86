"""Checkpoints: whole or absent, checked when read, honest about a full disk."""

import json
import math
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from switchlora.errors import UserError
from switchlora.training.checkpoint import CheckpointStore


def state_of(step: int) -> dict[str, Any]:
    return {
        "model": {"w": torch.arange(300.0) + step, "half": torch.ones(3, dtype=torch.bfloat16)},
        "optimizer": {"state": {0: {"m": torch.full((4,), float(step)), "count": torch.tensor([step])}}, "groups": [1]},
    }


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "run" / "checkpoints"


@pytest.fixture
def warnings() -> list[str]:
    return []


@pytest.fixture
def store(root: Path, warnings: list[str]) -> CheckpointStore:
    return CheckpointStore(root, keep=2, warn=warnings.append)


def names(root: Path) -> list[str]:
    return sorted(path.name for path in root.iterdir())


def test_what_is_saved_comes_back_bit_for_bit(store: CheckpointStore, root: Path) -> None:
    assert store.latest() is None
    assert not root.exists(), "looking must create nothing"
    path = store.save(100, state_of(100), {"interval": math.inf, "nested": {"a": [1, None]}})
    assert path == root / "step-00000100"
    assert names(path) == ["manifest.json", "meta.json", "model.pt", "optimizer.pt"]
    found = store.latest()
    assert found is not None and (found.step, found.path) == (100, path)
    assert found.meta == {"interval": math.inf, "nested": {"a": [1, None]}}
    state, expected = found.load(), state_of(100)
    assert state.keys() == expected.keys()
    assert torch.equal(state["model"]["w"], expected["model"]["w"])
    assert state["model"]["half"].dtype == torch.bfloat16
    assert torch.equal(state["optimizer"]["state"][0]["count"], torch.tensor([100]))
    assert state["optimizer"]["groups"] == [1]


def test_what_an_older_version_did_not_write_is_named(store: CheckpointStore) -> None:
    store.save(3, {}, {"data": "abc"})
    checkpoint = store.latest()
    assert checkpoint is not None
    assert checkpoint.entry("data") == "abc"
    with pytest.raises(UserError, match=r"older version of switchlora wrote it, without measured.*--overwrite"):
        checkpoint.entry("measured")


def test_everything_is_synced_before_the_folder_gets_its_name(
    store: CheckpointStore, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Power may fail after any of these calls, and a disk may reorder what is not synced."""
    root.mkdir(parents=True)
    calls: list[str] = []
    fsync, rename = os.fsync, os.rename

    def record_sync(handle: int) -> None:
        fsync(handle)
        calls.append("sync " + Path(os.readlink(f"/proc/self/fd/{handle}")).name.split(".tmp-")[0])

    def record_rename(source: Any, target: Any, **more: Any) -> None:
        rename(source, target, **more)
        calls.append(f"rename {Path(target).name}")

    monkeypatch.setattr(os, "fsync", record_sync)
    monkeypatch.setattr(os, "rename", record_rename)
    store.save(1, state_of(1), {})
    assert calls == [
        *("sync model.pt", "sync optimizer.pt", "sync meta.json", "sync manifest.json"),
        *("sync .step-00000001", "rename step-00000001", "sync checkpoints"),
    ]


def test_the_newest_are_kept(store: CheckpointStore, root: Path) -> None:
    for step in (9, 10, 11, 100_000_000):
        store.save(step, state_of(step), {})
    assert names(root) == ["step-00000011", "step-100000000"]
    latest = store.latest()
    assert latest is not None and latest.step == 100_000_000


def test_an_older_step_is_not_pruned_by_newer_ones(store: CheckpointStore, root: Path) -> None:
    for step in (50, 60, 55):
        store.save(step, state_of(step), {})
    assert "step-00000055" in names(root)


def test_going_back_discards_what_will_be_done_again(store: CheckpointStore, root: Path) -> None:
    for step in (50, 60):
        store.save(step, state_of(step), {})
    store.discard_after(50)
    assert names(root) == ["step-00000050"]


def test_a_whole_step_is_left_and_a_broken_one_replaced(store: CheckpointStore, warnings: list[str]) -> None:
    path = store.save(7, state_of(7), {"first": True})
    store.save(7, state_of(7), {"first": False})
    assert store.open(path).meta == {"first": True}
    assert warnings == []
    (path / "model.pt").write_bytes(b"no")
    store.save(7, state_of(7), {"first": False})
    assert store.open(path).meta == {"first": False}
    assert len(warnings) == 1 and "model.pt" in warnings[0]


def flip_a_bit(path: Path) -> None:
    content = bytearray((path / "optimizer.pt").read_bytes())
    content[len(content) // 2] ^= 1
    (path / "optimizer.pt").write_bytes(content)


DAMAGE = {
    "flipped bit": (flip_a_bit, "optimizer.pt has another checksum"),
    "cut short": (lambda path: os.truncate(path / "model.pt", 10), "model.pt has 10 bytes instead of"),
    "file missing": (lambda path: (path / "model.pt").unlink(), "model.pt cannot be read: No such file"),
    "meta edited": (lambda path: (path / "meta.json").write_text("{}"), "meta.json has 2 bytes"),
    "manifest missing": (lambda path: (path / "manifest.json").unlink(), "manifest.json cannot be read"),
    "manifest cut": (lambda path: os.truncate(path / "manifest.json", 20), "manifest.json is not JSON"),
    "manifest empty": (lambda path: (path / "manifest.json").write_text("{}"), "manifest.json is damaged"),
    "manifest of a list": (lambda path: (path / "manifest.json").write_text("[]"), "is not a JSON object"),
    "empty folder": (lambda path: [file.unlink() for file in path.iterdir()], "manifest.json cannot be read"),
    "later format": (
        lambda path: (path / "manifest.json").write_text(
            json.dumps({**json.loads((path / "manifest.json").read_text()), "format": 9})
        ),
        "has format 9, this version reads 1",
    ),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_a_broken_one_is_passed_over_with_its_reason(store: CheckpointStore, warnings: list[str], kind: str) -> None:
    damage, reason = DAMAGE[kind]
    for step in (1, 2):
        store.save(step, state_of(step), {})
    path = store.root / "step-00000002"
    damage(path)
    latest = store.latest()
    assert latest is not None and latest.step == 1
    [warning] = warnings
    assert reason in warning and str(path) in warning and "\n" not in warning
    with pytest.raises(UserError, match=r"--resume .*not a whole checkpoint") as caught:
        store.open(path)
    assert reason in str(caught.value) and "\n" not in str(caught.value)


def test_a_checkpoint_may_be_copied_but_not_renamed_to_another_step(store: CheckpointStore, tmp_path: Path) -> None:
    path = store.save(3, state_of(3), {})
    copied = shutil.copytree(path, tmp_path / "my best")
    assert store.open(copied).step == 3
    lying = shutil.copytree(path, store.root / "step-00000009")
    with pytest.raises(UserError, match="says step 3, the folder's name 9"):
        store.open(lying)


@pytest.mark.parametrize("kind", ["absent", "file", "other folder"])
def test_a_path_that_is_no_checkpoint(store: CheckpointStore, tmp_path: Path, kind: str) -> None:
    path = tmp_path / "x"
    if kind == "file":
        path.write_text("x")
    elif kind == "other folder":
        path.mkdir()
    with pytest.raises(UserError, match=r"--resume .*x: is not a whole checkpoint.*manifest\.json.*auto"):
        store.open(path)


def test_a_checkpoint_cannot_run_code(store: CheckpointStore) -> None:
    found = store.open(store.save(1, {"model": {"f": Path("x")}}, {}))
    with pytest.raises(UserError, match=r"model\.pt cannot be loaded"):
        found.load()


def test_leftovers_go_at_the_next_start_and_nothing_else(store: CheckpointStore, root: Path) -> None:
    store.save(1, state_of(1), {})
    left = root / ".step-00000002.tmp-123-abcd"
    left.mkdir()
    (left / "model.pt").write_bytes(b"half")
    (root / "notes.txt").write_text("mine")
    CheckpointStore(root, keep=2).remove_leftovers()
    assert names(root) == ["notes.txt", "step-00000001"]


def test_keep_zero_is_refused(root: Path) -> None:
    with pytest.raises(UserError, match=r"--keep 0: .*use 1"):
        CheckpointStore(root, keep=0)


def test_a_failure_of_the_state_itself_leaves_nothing(store: CheckpointStore, root: Path) -> None:
    store.save(1, state_of(1), {})
    with pytest.raises(Exception, match="pickle"):
        store.save(2, {"model": {}, "odd": lambda: None}, {})
    assert names(root) == ["step-00000001"]


def expect_refusal(store: CheckpointStore, root: Path) -> None:
    big = {"model": {"w": torch.zeros(500_000)}}  # 2 MB
    with pytest.raises(UserError, match="no space left") as caught:
        store.save(3, big, {})
    message = str(caught.value)
    assert str(root) in message and "step-00000003" in message and "go on from step-00000002" in message
    assert "\n" not in message
    assert names(root) == ["step-00000001", "step-00000002"]


def test_a_full_disk(tmp_path: Path, warnings: list[str]) -> None:
    """ENOSPC from a real file system."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mounted = shutil.which("mount") and subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)], capture_output=True
    )
    if not mounted or mounted.returncode != 0:
        pytest.skip("mounting is not permitted here")
    try:
        store = CheckpointStore(disk / "checkpoints", keep=2, warn=warnings.append)
        for step in (1, 2):
            store.save(step, state_of(step), {})
        expect_refusal(store, store.root)
        assert store.save(4, state_of(4), {}).exists(), "the space must be free again"
    finally:
        subprocess.run(["umount", str(disk)], check=True)


LIMITED = """
import resource, sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from tests.unit.training.test_checkpoint import *
store = CheckpointStore(Path(sys.argv[1]), keep=2)
for step in (1, 2):
    store.save(step, state_of(step), {})
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
expect_refusal(store, store.root)
"""


def test_a_limit_on_the_size_of_files(root: Path) -> None:
    """EFBIG from the kernel, everywhere, in a process of its own because the limit cannot be raised again."""
    top = Path(__file__).parents[3]
    done = subprocess.run([sys.executable, "-c", LIMITED, str(root), str(top)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_file_where_the_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("mine")
    store = CheckpointStore(tmp_path / "checkpoints", keep=1)
    with pytest.raises(UserError, match=r"--output .*cannot write checkpoint step-00000001"):
        store.save(1, state_of(1), {})
    assert (tmp_path / "checkpoints").read_text() == "mine"
