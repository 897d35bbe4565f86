"""Trackers: real event files, and a clear word when the package is missing."""

import math
import sys
from pathlib import Path

import pytest

from switchlora.errors import UserError
from switchlora.training.tracking import make_tracker


def test_none_writes_nothing(tmp_path: Path) -> None:
    with make_tracker("none", tmp_path, {}) as tracker:
        tracker.log(1, {"loss": 1.0})
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_tracker(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--track tensorbord: is not known; use tensorboard"):
        make_tracker("tensorbord", tmp_path, {})


@pytest.mark.parametrize("name", ["tensorboard", "wandb"])
def test_a_missing_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setitem(sys.modules, name, None)
    monkeypatch.delitem(sys.modules, "torch.utils.tensorboard", raising=False)
    with pytest.raises(UserError, match=f"--track {name}: .*pip install {name}, or --track none"):
        make_tracker(name, tmp_path, {})
    assert list(tmp_path.iterdir()) == []


def test_tensorboard_over_a_resume(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    config = {"model": "tiny", "lr": 0.02}
    with make_tracker("tensorboard", tmp_path, config) as tracker:
        for step in (1, 2, 3):
            tracker.log(step, {"step": step, "loss": float(step), "bad": math.nan, "text": "x", "flag": True})
    with make_tracker("tensorboard", tmp_path, config, resume_step=2) as tracker:
        tracker.log(3, {"step": 3, "loss": 30.0})
    seen = EventAccumulator(str(tmp_path / "tensorboard"))
    seen.Reload()
    assert seen.Tags()["scalars"] == ["loss"]
    assert [(event.step, event.value) for event in seen.Scalars("loss")] == [(1, 1.0), (2, 2.0), (3, 30.0)]


def test_wandb_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    monkeypatch.setenv("WANDB_MODE", "offline")
    with make_tracker("wandb", tmp_path, {"lr": 0.02}) as tracker:
        tracker.log(1, {"step": 1, "loss": 1.0})
    assert (tmp_path / "wandb").is_dir()
