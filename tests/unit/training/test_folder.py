"""Whose an output folder is, and what may be done to it."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from switchlora.errors import UserError
from switchlora.training.folder import OPTIONS, RESULT, RunFolder, changes_worth_a_word, claim_folder
from switchlora.training.options import PretrainOptions
from switchlora.training.resolve import resolve


def options_for(path: Path, **values: Any) -> PretrainOptions:
    return resolve(PretrainOptions(output=str(path), **values))


def started(path: Path, **values: Any) -> RunFolder:
    options = options_for(path, **values)
    folder = claim_folder(options)
    folder.start(options)
    return folder


def with_checkpoint(path: Path, step: int = 3, **values: Any) -> RunFolder:
    folder = started(path, **values)
    folder.checkpoints.save(step, {"model": {"w": torch.ones(2)}}, {"options": folder.options.to_dict()})
    return folder


def test_nothing_is_written_before_start(tmp_path: Path) -> None:
    claim_folder(options_for(tmp_path / "new"))
    assert not (tmp_path / "new").exists()


def test_a_started_folder_is_claimed_again_with_the_same_options(tmp_path: Path) -> None:
    started(tmp_path / "run")
    assert claim_folder(options_for(tmp_path / "run")).finished() is None


@pytest.mark.parametrize("free", [{"eval_every": 7}, {"save_every": 7}, {"keep": 5}, {"track": "tensorboard"}])
def test_cadence_and_tracking_may_differ(tmp_path: Path, free: dict[str, Any]) -> None:
    started(tmp_path / "run")
    claim_folder(options_for(tmp_path / "run", **free))


def test_other_options_are_refused_by_name_and_value(tmp_path: Path) -> None:
    started(tmp_path / "run")
    with pytest.raises(UserError, match=r"--lr 0\.02 there, 0\.5 here.*--overwrite"):
        claim_folder(options_for(tmp_path / "run", lr=0.5, other_lr=0.02))


def test_somebody_elses_folder_is_refused_even_with_overwrite(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    for overwrite in (False, True):
        with pytest.raises(UserError, match="not empty and holds no run"):
            claim_folder(options_for(tmp_path, overwrite=overwrite))
    assert (tmp_path / "thesis.txt").read_text() == "years of work"


def test_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="is a file"):
        claim_folder(options_for(tmp_path / "file"))


@pytest.mark.parametrize("place", ["nowhere", "nowhere/run", "circle"])
def test_a_link_to_nothing_is_refused(tmp_path: Path, place: str) -> None:
    (tmp_path / "nowhere").symlink_to(tmp_path / "absent")
    (tmp_path / "circle").symlink_to(tmp_path / "circle")
    with pytest.raises(UserError, match="is a link to nothing"):
        claim_folder(options_for(tmp_path / place))


def test_overwrite_discards_an_earlier_run_only_at_the_start(tmp_path: Path) -> None:
    with_checkpoint(tmp_path / "run")
    options = options_for(tmp_path / "run", overwrite=True, lr=0.5)
    folder = claim_folder(options)
    assert (tmp_path / "run" / "checkpoints").exists()
    assert folder.checkpoint_to_resume() is None
    (tmp_path / "run" / "notes.txt").write_text("years of work")
    (tmp_path / "run" / "plots").mkdir()
    for name in ("model.safetensors", "model-00001-of-00002.safetensors", "tokenizer_config.json", RESULT):
        (tmp_path / "run" / name).touch()
    folder.start(options)
    assert {item.name for item in (tmp_path / "run").iterdir()} == {OPTIONS, "notes.txt", "plots"}


@pytest.mark.parametrize("overwrite", [False, True])
def test_what_the_run_is_made_from_is_not_discarded(
    tmp_path: Path, overwrite: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "run"
    with_checkpoint(out)
    (out / "model.safetensors").touch()
    (out / "config.json").write_text('{"model_type": "llama", "vocab_size": 300, "hidden_size": 32}')
    (out / "text.txt").write_text("text")
    (out / "mine.py").write_text("from switchlora.methods import METHODS\n\nMETHOD = METHODS['full']\n")
    (tmp_path / "link").symlink_to(out)
    (out / "away.txt").symlink_to(tmp_path / "far.txt")
    (tmp_path / "far.txt").write_text("text")
    shutil.copytree(out, tmp_path / "other", ignore=shutil.ignore_patterns("model*"), symlinks=True)
    (tmp_path / "other" / "model.safetensors").symlink_to(out / "model.safetensors")
    before = sorted(out.rglob("*"))
    for changes, flag in [
        ({"model": str(out), "tokenizer": "train:300"}, "--model"),
        ({"model": str(tmp_path / "link" / "config.json")}, "--model"),
        ({"tokenizer": str(out)}, "--tokenizer"),
        ({"data": ("stdlib", str(out / "text.txt"))}, "--data"),
        ({"data": (str(out / "*.txt"),)}, "--data"),
        ({"data": (str(tmp_path / "*" / "text.txt"),)}, "--data"),
        ({"data": (str(out / "away.txt"),)}, "--data"),
        ({"model": str(tmp_path / "other"), "tokenizer": "train:300"}, "--model"),
        ({"method": str(out / "mine.py")}, "--method"),
    ]:
        with pytest.raises(UserError, match=rf"--output {out}: holds {flag} .*give another folder$"):
            claim_folder(options_for(out, overwrite=overwrite, **changes))
    assert sorted(out.rglob("*")) == before
    monkeypatch.chdir(out)  # where names of ours are no paths
    for name in ("tiny", "stdlib", "full"):
        (out / name).mkdir()
    claim_folder(options_for(out, overwrite=True, method="full"))


def test_written_options_do_not_repeat_an_overwrite(tmp_path: Path) -> None:
    started(tmp_path / "run", overwrite=True)
    written = PretrainOptions.from_yaml(tmp_path / "run" / OPTIONS)
    assert (written.overwrite, written.resume, written.dry_run) == (False, "auto", False)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("text", ["lr: [", "colour: red\n", "- a\n", "\xff"])
def test_options_that_no_run_has_written_are_refused(tmp_path: Path, text: str, overwrite: bool) -> None:
    (tmp_path / OPTIONS).write_bytes(text.encode("latin-1"))
    with pytest.raises(UserError, match=f"its {OPTIONS} is not one of a run.*another folder$"):
        claim_folder(options_for(tmp_path, overwrite=overwrite))
    assert (tmp_path / OPTIONS).read_bytes() == text.encode("latin-1")


def test_options_of_another_version_may_be_discarded(tmp_path: Path) -> None:
    started(tmp_path / "run")
    with (tmp_path / "run" / OPTIONS).open("a") as file:
        file.write("long_gone: 3\n")
    with pytest.raises(UserError, match=r"long_gone.*another folder, or --overwrite"):
        claim_folder(options_for(tmp_path / "run"))
    claim_folder(options_for(tmp_path / "run", overwrite=True))


def test_finished_result_is_read_and_a_broken_one_refused(tmp_path: Path) -> None:
    folder = started(tmp_path / "run")
    (tmp_path / "run" / RESULT).write_text('{"validation_loss": 1.5}')
    assert folder.finished() == {"validation_loss": 1.5}
    (tmp_path / "run" / RESULT).write_text("{")
    with pytest.raises(UserError, match="cannot be read"):
        folder.finished()


def test_resume_auto_takes_the_last_checkpoint_and_never_refuses_it(tmp_path: Path) -> None:
    folder = with_checkpoint(tmp_path / "run")
    found = folder.checkpoint_to_resume()
    assert found is not None and found.step == 3
    never = claim_folder(options_for(tmp_path / "run", resume="never"))
    with pytest.raises(UserError, match=r"interrupted run at step 3; use --resume auto"):
        never.checkpoint_to_resume()


def test_resume_from_a_path_checks_its_options(tmp_path: Path) -> None:
    path = with_checkpoint(tmp_path / "a").checkpoints.latest()
    assert path is not None
    same = claim_folder(options_for(tmp_path / "b", resume=str(path.path)))
    found = same.checkpoint_to_resume()
    assert found is not None and found.step == 3
    other = claim_folder(options_for(tmp_path / "c", resume=str(path.path), seed=1))
    with pytest.raises(UserError, match="--seed 0 there, 1 here"):
        other.checkpoint_to_resume()


def test_threads_may_differ_but_are_mentioned(tmp_path: Path) -> None:
    folder = started(tmp_path / "run", threads=1)
    assert changes_worth_a_word(folder.path, dataclasses.replace(folder.options, threads=2)) == ("--threads",)
    assert changes_worth_a_word(folder.path, folder.options) == ()


def test_a_rank_left_open_until_the_model_is_known_is_no_difference(tmp_path: Path) -> None:
    started(tmp_path / "run", r=8)
    claim_folder(dataclasses.replace(options_for(tmp_path / "run", r=8), r=None))
    with pytest.raises(UserError, match="--r 8 there, 16 here"):
        claim_folder(options_for(tmp_path / "run", r=16))


def test_a_place_that_cannot_be_written_is_refused_before_anything_is_read(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--output .*nothing can be written in .*file"):
        claim_folder(options_for(tmp_path / "file" / "run"))


def test_a_folder_that_filled_meanwhile_is_refused(tmp_path: Path) -> None:
    folder = claim_folder(options_for(tmp_path / "run"))
    started(tmp_path / "run")
    with pytest.raises(UserError, match="another process"):
        folder.require_unused()
