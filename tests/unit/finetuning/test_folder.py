"""Figures of runs that are over: all that is asked for is there, or it is said which file to remove."""

import json
from pathlib import Path
from typing import Any

import pytest

from switchlora.errors import UserError
from switchlora.finetuning.folder import RunsFolder, Wanted

WHOLE = {"seed": 1, "lr": 1e-3, "seconds": 2.0, "metrics": {"dev": {"f1": 50.0, "accuracy": 60.0}}}
WANTED = Wanted(("dev",), ("f1", "accuracy"))


def finished(folder: Path, figures: Any) -> Any:
    (folder / "runs").mkdir(exist_ok=True)
    (folder / "runs" / "seed-1.json").write_text(json.dumps(figures))
    return RunsFolder(folder).finished("seed-1", WANTED)


def test_a_run_that_is_over(tmp_path: Path) -> None:
    assert finished(tmp_path, WHOLE) == WHOLE
    diverged = {"seed": 0, "lr": 1e3, "metrics": None, "not_finite": "the loss is nan"}
    assert finished(tmp_path, diverged) == diverged
    assert RunsFolder(tmp_path).finished("seed-2", WANTED) is None


@pytest.mark.parametrize(
    "damage",
    [{"lr": None}, {"metrics": None}, {"metrics": {}}, {"metrics": {"dev": {"f1": 1.0}}}, {"metrics": {"dev": None}}],
)
def test_figures_that_are_not_whole(tmp_path: Path, damage: dict[str, Any]) -> None:
    for figures in (WHOLE | damage, {}, [], None):
        with pytest.raises(UserError, match=r"seed-1\.json: cannot be read .*remove it to repeat that run"):
            finished(tmp_path, figures)
