"""The folder of `switchlora finetune`: what goes on there, what is refused, and what is never lost."""

import dataclasses
import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from switchlora.errors import NonFiniteError, UserError
from switchlora.finetuning import training
from switchlora.finetuning.command import finetune
from switchlora.finetuning.glue import TASKS
from switchlora.finetuning.options import FinetuneOptions
from switchlora.finetuning.training import Setting
from switchlora.training.export import save_quietly

TOKENIZER = SimpleNamespace(pad_token_id=None, eos_token_id=0, save_pretrained=lambda folder: None)


def test_it_goes_on_where_it_was_interrupted(options: Any, tmp_path: Path) -> None:
    first = finetune(options(epochs=1))
    runs = tmp_path / "out" / "runs"
    (tmp_path / "out" / "finetune.json").unlink()
    (runs / "seed-1.json").unlink()
    before = (runs / "seed-0.json").stat().st_mtime_ns
    again = finetune(options(epochs=1, seeds=3))
    assert (runs / "seed-0.json").stat().st_mtime_ns == before
    metrics = [[(one["metrics"], one["train_losses"]) for one in each["seeds"][:2]] for each in (first, again)]
    assert metrics[0] == metrics[1]
    assert len(again["seeds"]) == 3
    with pytest.raises(UserError, match=r"differ in --epochs \(there 1, now 2\).*--overwrite"):
        finetune(options(epochs=2))
    finetune(options(epochs=2, overwrite=True, seeds=1))


def test_overwrite_removes_what_runs_left_and_nothing_else(options: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    finetune(options(epochs=1, method="subset"))
    mine = [out / "runs" / "a-pretrained-model" / "model.safetensors", out / "notes.txt", out / "runs" / "log.json"]
    for file in mine:
        file.parent.mkdir(exist_ok=True)
        file.write_text("mine")
    finetune(options(epochs=1, method="full", seeds=1, overwrite=True))
    assert all(file.read_text() == "mine" for file in mine)
    assert not list(out.glob("seed-*"))
    assert sorted(path.name for path in (out / "runs").glob("seed-*")) == ["seed-0.json"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_overwrite_does_not_remove_what_it_starts_from(
    options: Any, trained: Path, tmp_path: Path, overwrite: bool
) -> None:
    out = tmp_path / "out"
    finetune(options(epochs=1, seeds=1))
    shutil.copytree(trained / "run", out / "seed-0")
    shutil.copytree(tmp_path / "sst2", out / "seed-1")
    (tmp_path / "link").symlink_to(out / "seed-0")
    for changes in (
        {"checkpoint": str(out / "seed-0")},
        {"checkpoint": str(tmp_path / "link")},
        {"data": str(out / "seed-1")},
    ):
        with pytest.raises(UserError, match=rf"--output {out}: holds --{next(iter(changes))} .*give another folder$"):
            finetune(options(epochs=1, seeds=1, overwrite=overwrite, **changes))
    assert (out / "seed-0" / "model.safetensors").is_file() and (out / "seed-1" / "train.tsv").is_file()


def test_a_folder_of_other_things_is_not_taken(options: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    (out / "runs").mkdir(parents=True)
    (out / "runs" / "seed-0.json").write_text("{}")
    (out / "finetune.yaml").write_text("task: rte\n")  # somebody's --config
    for overwrite in (False, True):
        with pytest.raises(UserError, match="is not empty and holds no runs of switchlora finetune"):
            finetune(options(overwrite=overwrite))
    assert sorted(path.name for path in out.rglob("*")) == ["finetune.yaml", "runs", "seed-0.json"]


def test_a_model_that_is_asked_for_later_is_made_by_the_same_run(options: Any, tmp_path: Path, capsys: Any) -> None:
    first = finetune(options(epochs=1, seeds=1))
    assert not (tmp_path / "out" / "seed-0").exists()
    again = finetune(options(epochs=1, seeds=1, save=True))
    assert "seed-0: is over, but config.json are asked for" in capsys.readouterr().out
    assert (tmp_path / "out" / "seed-0" / "model.safetensors").is_file()
    assert again["metrics"] == first["metrics"]


def test_another_model_in_the_same_folder_is_another_configuration(options: Any, trained: Path, tmp_path: Path) -> None:
    checkpoint = shutil.copytree(trained / "run", tmp_path / "run")
    result = finetune(options(epochs=1, seeds=1, checkpoint=str(checkpoint)))
    assert len(result["weights"]) == 32
    assert {"scikit-learn", "scipy", "torch"} <= result["versions"].keys()
    weights = load_file(checkpoint / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, checkpoint / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match="differ in the weights of --checkpoint; give another folder"):
        finetune(options(epochs=1, seeds=1, checkpoint=str(checkpoint)))


def test_a_rate_that_blows_up_has_lost_and_no_more(options: Any, tmp_path: Path, capsys: Any) -> None:
    blows_up = {"clip": 0.0, "weight_decay": 10.0, "epochs": 8}
    result = finetune(options(lr=(1e-4, 1e3), seeds=1, **blows_up))
    assert result["lr"] == 1e-4
    assert [one["metrics"] is None for one in result["tuning"]] == [False, True]
    assert "the loss was not finite with lr 1000" in capsys.readouterr().out
    with pytest.raises(NonFiniteError, match="not finite with any of them"):
        finetune(options(lr=(9e2, 1e3), output=str(tmp_path / "other"), **blows_up))


def test_where_a_delta_may_not_go(options: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finetune(options(epochs=1, seeds=1, method="subset"))
    delta = str(tmp_path / "out" / "seed-0" / "delta.safetensors")
    checkpoint = str(shutil.copytree(trained / "run", tmp_path / "run"))
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    another = shutil.copytree(trained / "run", tmp_path / "another")
    before = {path: path.read_bytes() for path in another.rglob("*") if path.is_file()}
    for changes, words in [
        ({"output": checkpoint, "overwrite": True}, "is the checkpoint itself"),
        ({"output": str(tmp_path / "full"), "overwrite": True}, "is not empty and was not made by --apply-delta"),
        ({"output": str(another)}, "is not empty and was not made by --apply-delta"),
        ({"output": str(another), "overwrite": True}, "is not empty and was not made by --apply-delta"),
        ({"output": str(tmp_path / "circle")}, "is a link to nothing"),
        ({"output": delta}, "is a file"),
        ({"output": str(tmp_path / "new"), "task": "cola"}, "was made for sst2"),
    ]:
        with pytest.raises(UserError, match=words):
            finetune(FinetuneOptions(**{"checkpoint": checkpoint, "apply_delta": delta, **changes}))
    assert not (tmp_path / "new").exists()
    assert before == {path: path.read_bytes() for path in another.rglob("*") if path.is_file()}
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    applies = FinetuneOptions(checkpoint=checkpoint, apply_delta=delta, output=".")
    finetune(applies)
    assert Path("model.safetensors").is_file()
    with pytest.raises(UserError, match="holds a model already; give another folder, or --overwrite"):
        finetune(applies)


def test_a_disk_that_refuses_what_a_seed_leaves(options: Any, tmp_path: Path) -> None:
    """A folder in the way, which the disk refuses to replace by a file."""
    for method, name in (("subset", "delta.safetensors"), ("full", "config.json")):
        out = tmp_path / method
        (out / "seed-0" / name).mkdir(parents=True)
        (out / "seed-0" / name / "mine").touch()
        with pytest.raises(UserError, match=rf"--output {out}: cannot write what seed 0 leaves"):
            training.run(
                Setting(options(epochs=1, method=method, save=True), TASKS["sst2"], TOKENIZER, torch.device("cpu")),
                [([5, 6], 1.0)], {}, lr=1e-3, seed=0, folder=out / "seed-0",
            )  # fmt: skip


def test_a_disk_that_fills_up_leaves_no_part_of_a_model(
    options: Any, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    finetune(options(epochs=1, seeds=1, method="subset"))
    delta, out = str(tmp_path / "out" / "seed-0" / "delta.safetensors"), tmp_path / "new" / "applied"
    asked = FinetuneOptions(checkpoint=str(trained / "run"), apply_delta=delta, output=str(out))

    def fills_up(model: Any, folder: Path) -> None:
        save_quietly(model, folder)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(training, "save_quietly", fills_up)
        with pytest.raises(UserError, match=rf"--output {out}: cannot write the model \(no space left\)"):
            finetune(asked)
    assert list((tmp_path / "new").iterdir()) == []
    finetune(asked)
    assert (out / "model.safetensors").is_file() and (out / "tokenizer.json").is_file()
    (out / "notes.txt").write_text("mine")
    finetune(dataclasses.replace(asked, overwrite=True))
    assert (out / "notes.txt").read_text() == "mine"
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["applied"]


def test_figures_that_cannot_be_read(options: Any, tmp_path: Path) -> None:
    finetune(options(epochs=1, seeds=1))
    (tmp_path / "out" / "runs" / "seed-0.json").write_text("{")
    with pytest.raises(UserError, match=r"seed-0\.json: cannot be read .*remove it to repeat that run"):
        finetune(options(epochs=1, seeds=1))
