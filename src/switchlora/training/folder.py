"""The output folder of a run: whose it is, how far it got, and what may be done to it.

A folder is this run's if `options.yaml` in it, the resolved options, agrees in everything that changes the
result. Nothing is written or removed before that is known, and only what a run leaves is ever removed. `result.json`
is written last of all, so where it is, the run is whole.
"""

import dataclasses
import glob
import json
import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from switchlora.data.sources import STDLIB
from switchlora.errors import UserError
from switchlora.machine.files import (
    LOCK,
    atomic_write_json,
    atomic_write_text,
    is_temporary,
    lies_in,
    require_no_file,
    require_writable,
    writing,
)
from switchlora.methods import is_file
from switchlora.options.fields import read_yaml
from switchlora.options.values import show
from switchlora.training.checkpoint import Checkpoint, CheckpointStore
from switchlora.training.options import PretrainOptions
from switchlora.training.presets import PRESETS
from switchlora.training.resolve import difference, reported_difference

OPEN = ("--r", "--tokenizer")
OPTIONS, RESULT, METRICS, CHECKPOINTS = "options.yaml", "result.json", "metrics.jsonl", "checkpoints"
PREEMPTED = "preempted"
LEFT = re.compile(  # by runs, tokenizers of other families included
    r"options\.yaml|result\.json|metrics\.jsonl|checkpoints|preempted|README\.md|loss\.png|sample\.txt|tensorboard|wandb"
    r"|(generation_)?config\.json|model.*\.safetensors(\.index\.json)?|tokenizer.*|special_tokens_map\.json"
    r"|added_tokens\.json|vocab\.(json|txt)|merges\.txt|.*\.model|chat_template\.jinja"
)


@dataclass(frozen=True)
class RunFolder:
    """A folder that this run may write to."""

    path: Path
    options: PretrainOptions

    @property
    def metrics(self) -> Path:
        """One JSON object per step."""
        return self.path / METRICS

    @property
    def checkpoints(self) -> CheckpointStore:
        """Where the run's checkpoints are."""
        return CheckpointStore(self.path / CHECKPOINTS, self.options.keep)

    def finished(self) -> dict[str, Any] | None:
        """The result of a run that is whole, or None."""
        try:
            result: dict[str, Any] = json.loads((self.path / RESULT).read_text(encoding="utf-8"))
        except FileNotFoundError:
            return None
        except ValueError as error:
            raise UserError(
                f"--output {show(str(self.path))}: its {RESULT} cannot be read ({error}); "
                "remove that file to finish the run again from its last checkpoint"
            ) from None
        return result

    def mark_preempted(self, step: int) -> None:
        """Leave word that the run was told to stop, after a checkpoint, for whatever watches it."""
        with writing("the mark of a run that was stopped", self.path):
            atomic_write_json(self.path / PREEMPTED, {"step": step})

    def start(self, options: PretrainOptions, checkpoint: Checkpoint | None = None) -> None:
        """Create the folder and write down what is run in it, from a checkpoint on.

        With --overwrite what an earlier run left goes first. Checkpoints of later steps go, too: were this run killed
        before its next one, the following start must not mix two courses of the run. A run that goes on from another
        folder takes that one's metrics along.
        """
        if options.overwrite and self.path.exists():
            left = [item for item in _contents(self.path) if LEFT.fullmatch(item.name) or is_temporary(item)]
            for item in sorted(left, key=lambda item: item.name == OPTIONS):  # what marks it ours, last
                shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / PREEMPTED).unlink(missing_ok=True)
        self.checkpoints.discard_after(checkpoint.step if checkpoint else 0)
        elsewhere = checkpoint.path.parent.parent / METRICS if checkpoint else None
        # Without what was said for this start alone: the file can be given to --config as it is.
        kept = dataclasses.replace(options, overwrite=False, resume="auto", dry_run=False)
        with writing("the run's options", self.path):
            if elsewhere is not None and elsewhere.is_file() and not self.metrics.exists():
                atomic_write_text(self.metrics, elsewhere.read_text(encoding="utf-8"))
            atomic_write_text(self.path / OPTIONS, kept.to_yaml())

    def require_unused(self) -> None:
        """Refuse a folder that was new a moment ago and in which another process has begun a run since."""
        if _contents(self.path):
            raise UserError(f"--output {show(str(self.path))}: another process began a run there just now; start again")

    def checkpoint_to_resume(self) -> Checkpoint | None:
        """Where to go on, by --resume: the last whole checkpoint, one that was named, or none.

        Raises:
            UserError: --resume never and there is one; --resume PATH and its configuration differs; or there are
                checkpoints, and none is whole.
        """
        resume = self.options.resume
        if resume not in ("auto", "never"):
            checkpoint = self.checkpoints.open(Path(resume).expanduser())
            saved = PretrainOptions.merge(checkpoint.meta["options"])
            _refuse_differences(saved, self.options, f"--resume {show(resume)}")
            return checkpoint
        if self.options.overwrite or not self.path.exists():
            return None
        last = self.checkpoints.latest()
        if last is not None and resume == "never":
            raise UserError(
                f"--resume never: {show(str(self.path))} holds an interrupted run at step {last.step}; "
                "use --resume auto to go on, or --overwrite to discard it"
            )
        if last is None and (num := self.checkpoints.num_of_run()):
            raise UserError(
                f"--output {show(str(self.path))}: none of its {num} checkpoints is whole, so the run cannot go on; "
                "put one back as it was, or discard all with --overwrite"
            )
        return last


def claim_folder(options: PretrainOptions) -> RunFolder:
    """The output folder of resolved options, if this run may have it; nothing is written yet.

    Raises:
        UserError: it is a file, holds something else, holds a run with other options (which ones), or what this run is
            made from.
    """
    assert options.output is not None
    path = Path(options.output).expanduser()
    named = f"--output {show(options.output)}"
    require_no_file(path)
    _require_apart(path, options, named)
    require_writable(path)
    if path.is_dir() and _contents(path):
        if not (path / OPTIONS).is_file():
            raise UserError(f"{named}: is not empty and holds no run of switchlora; give another folder")
        if not _is_of_run(path / OPTIONS):
            raise UserError(f"{named}: its {OPTIONS} is not one of a run, or is damaged; give another folder")
        if not options.overwrite:
            _refuse_differences(_saved_options(path, named), options, named)
    return RunFolder(path, options)


def _require_apart(output: Path, options: PretrainOptions, named: str) -> None:
    """Refuse an output folder that holds what the run reads, with which --overwrite would do away."""
    given = [("--data", name) for name in options.data if name != STDLIB]
    given += [("--model", options.model)] if options.model not in PRESETS else []
    given += [("--tokenizer", options.tokenizer)] if options.tokenizer is not None else []
    given += [("--method", options.method)] if is_file(options.method) else []
    for flag, name in given:
        path = Path(name).expanduser()
        read = [Path(match) for match in glob.glob(str(path), recursive=True)] if glob.has_magic(name) else [path]
        read += [item for folder in read if folder.is_dir() for item in folder.glob("*")]  # which may be links
        if any(item.exists() and lies_in(item, [output]) for item in read):
            raise UserError(f"{named}: holds {flag} {show(name)}, which the run needs as it is; give another folder")


def changes_worth_a_word(path: Path, options: PretrainOptions) -> tuple[str, ...]:
    """Flags that differ from the run in the folder and may, but that can change the last bits."""
    if not (path / OPTIONS).is_file():
        return ()
    return reported_difference(_saved_options(path, str(path)), options)


def _is_of_run(path: Path) -> bool:
    """Whether a run of ours has written these options; of another version, too, whose options we may not know."""
    try:
        return read_yaml(path).keys() >= {"model", "method", "steps"}
    except UserError:
        return False


def _contents(path: Path) -> list[Path]:
    return [item for item in path.iterdir() if item.name != LOCK]


def _saved_options(path: Path, named: str) -> PretrainOptions:
    try:
        return PretrainOptions.from_yaml(path / OPTIONS)
    except UserError as error:
        raise UserError(f"{named}: {error}; give another folder, or --overwrite to discard what is there") from None


def _typed(value: object) -> str:
    """As one types it."""
    return " ".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _refuse_differences(saved: PretrainOptions, options: PretrainOptions, named: str) -> None:
    # What waits for the model to be loaded (a rank or vocabulary left open) is what it was, for it is the same model.
    differing = [
        flag for flag in difference(saved, options) if not (flag in OPEN and getattr(options, _field(flag)) is None)
    ]
    if not differing:
        return
    values = ((flag, *(show(_typed(getattr(of, _field(flag)))) for of in (saved, options))) for flag in differing)
    shown = ", ".join(f"{flag} {there} there, {here} here" for flag, there, here in values)
    raise UserError(
        f"{named}: holds a run with other options ({shown}); give the same ones to go on, another --output to start "
        "anew, or --overwrite to discard it"
    )


def _field(flag: str) -> str:
    return flag.removeprefix("--").replace("-", "_")
