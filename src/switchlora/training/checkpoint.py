"""Checkpoints that are whole or absent: a folder each, written beside, synced, renamed.

    step-00000100/
        model.pt, optimizer.pt, ...     one file for every top-level key of the state
        meta.json                       what the writer wants to know before it loads anything
        manifest.json                   SHA-256 and size of every file above, written last

The folder gets its name only when everything in it is on the disk, so a process killed at any moment leaves either
the old checkpoints alone or the new one whole, plus at most a hidden folder that the next start removes
(`remove_leftovers`). `manifest` says how a damaged one is found. Several processes write a checkpoint together, another
way (`sharded`), into the same kind of folder: they `begin` and `publish` it here.

Files are read with `weights_only=True`: a checkpoint is data, and must not be able to run code.
"""

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from switchlora.errors import UserError
from switchlora.machine.console import print_warning
from switchlora.machine.files import disk_refusal, is_temporary, sync_folder, temporary_beside
from switchlora.training import manifest
from switchlora.training.manifest import MANIFEST, Broken, Entry, write_summed

FOLDER_NAME = re.compile(r"step-(\d{8,})")
INDEX = ".metadata"  # that torch.distributed.checkpoint writes
KEY_NAME = re.compile(r"\w[\w.-]*")


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were found to be as they were written.

    step: optimizer steps done; path: its folder; meta: as given to `save`; files: the names of all others in it.
    """

    step: int
    path: Path
    meta: dict[str, Any]
    files: tuple[str, ...]

    @property
    def keys(self) -> tuple[str, ...]:
        """The top-level keys of its state."""
        return tuple(name.removesuffix(".pt") for name in self.files if name.endswith(".pt"))

    @property
    def is_sharded(self) -> bool:
        """Whether several processes wrote it; `sharded_loading` reads it then."""
        return INDEX in self.files

    def entry(self, name: str) -> Any:
        """What `meta` has under a name.

        Raises:
            UserError: an older version of this package wrote the checkpoint, without it.
        """
        if name not in self.meta:
            raise UserError(
                f"--resume {self.path}: an older version of switchlora wrote it, without {name}; start anew with "
                "another --output or --overwrite"
            )
        return self.meta[name]

    def load(self, *, mapped: bool = False) -> dict[str, Any]:
        """The whole state, tensors on the CPU; `mapped`: left on disk until they are read, for who takes a part."""
        return {key: self.load_part(key, mapped=mapped) for key in self.keys}

    def load_part(self, key: str, *, mapped: bool = False) -> Any:
        """The state under one top-level key, so that not all need be in memory at once.

        Raises:
            UserError: the file cannot be read any more, or holds something that is no plain data.
        """
        path = self.path / f"{key}.pt"
        try:
            return torch.load(path, map_location="cpu", weights_only=True, mmap=mapped)
        except Exception as error:  # torch raises many kinds here; whatever it is, this file is the reason
            lines = str(error).splitlines() or [type(error).__name__]
            raise UserError(
                f"--resume {self.path}: {path.name} cannot be loaded ({lines[0]}); give another checkpoint"
            ) from error


class CheckpointStore:
    """The checkpoints of one run, in `root`, of which the `keep` newest stay.

    Nothing is created before the first `save`. What it writes is on disk when `save` returns; `sharded` has a writer of
    the same kind for several processes, to which `has_failed` and `wait` belong.
    `warn` gets one line for each broken checkpoint that is passed over.
    """

    def __init__(self, root: Path, keep: int, warn: Callable[[str], None] = print_warning) -> None:
        if keep < 1:
            raise UserError(f"--keep {keep}: at least the newest checkpoint has to stay; use 1 or more")
        self.root = Path(root)
        self.keep = keep
        self.warn = warn

    def save(self, step: int, state: Mapping[str, Any], meta: dict[str, Any]) -> Path:
        """Write the state after `step` optimizer steps, durably, then remove checkpoints that are too old.

        A whole checkpoint of this step is left as it is: within one run the step determines the state (after going
        back to an earlier step, call `discard_after` first). A broken one is replaced.

        Args:
            state: plain data that `torch.load(weights_only=True)` reads; keys name files (letters, digits, `_.-`).
            meta: JSON, read back when the checkpoint is opened; NaN and infinities survive.

        Raises:
            UserError: no space left or no permission. The earlier checkpoints are then as they were.
        """
        assert all(KEY_NAME.fullmatch(key) for key in state), f"keys must be file names: {list(state)}"
        temporary = None
        try:
            temporary = self.begin(step)
            if temporary is not None:
                entries = {
                    f"{key}.pt": write_summed(temporary / f"{key}.pt", partial(torch.save, value))
                    for key, value in state.items()
                }
                self.publish(temporary, step, entries, meta)
        except OSError as error:
            self.abandon(temporary)
            raise self.refusal(error, step) from error
        except BaseException:
            self.abandon(temporary)
            raise
        return self.folder(step)

    def begin(self, step: int) -> Path | None:
        """A new hidden folder, to be filled and then given to `publish` or `abandon`; None: this step is there, whole.

        Raises:
            OSError: what the disk said.
        """
        path = self.folder(step)
        if path.exists():
            try:
                inspect(path)
                return None
            except Broken as reason:
                self.warn(f"the broken checkpoint {path} is replaced ({reason})")
        self.root.mkdir(parents=True, exist_ok=True)
        temporary = temporary_beside(path)
        temporary.mkdir()
        return temporary

    def publish(self, temporary: Path, step: int, entries: Mapping[str, Entry], meta: Mapping[str, Any]) -> None:
        """Give a folder of `begin` its name, and remove checkpoints that are too old.

        Args:
            entries: of all files in it, which are synced.

        Raises:
            OSError: what the disk said.
        """
        manifest.complete(temporary, step, entries, meta)
        path = self.folder(step)
        if path.exists():
            self._discard(path)
        temporary.rename(path)
        sync_folder(self.root)
        self._prune(step)

    def abandon(self, temporary: Path | None) -> None:
        """Remove a folder of `begin`."""
        if temporary is not None:
            shutil.rmtree(temporary, ignore_errors=True)

    def refusal(self, error: OSError, step: int) -> UserError:
        """For a disk that took no checkpoint of this step."""
        return disk_refusal(error, f"checkpoint {self.folder(step).name}", self.root, after=self._whence())

    def folder(self, step: int) -> Path:
        """Where the checkpoint of a step is, if there is one."""
        return self.root / f"step-{step:08d}"

    has_failed = False

    def wait(self) -> None:
        """Until what `save` began is written: it is."""

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint. Broken ones are passed over, each with a warning; None if there is none."""
        for _, path in reversed(self._folders()):
            try:
                return inspect(path)
            except Broken as reason:
                self.warn(f"checkpoint {path} is broken and not used ({reason})")
        return None

    def num_of_run(self) -> int:
        """How many there are, whole or not."""
        return len(self._folders())

    def open(self, path: Path) -> Checkpoint:
        """The checkpoint in a folder that the user names, wherever it lies and whatever it is called.

        Raises:
            UserError: it is no checkpoint, or not as it was written.
        """
        try:
            return inspect(Path(path))
        except Broken as reason:
            raise UserError(
                f"--resume {path}: is not a whole checkpoint ({reason}); give a folder like "
                "RUN/checkpoints/step-00000100, or auto for the last whole one"
            ) from None

    def discard_after(self, step: int) -> None:
        """Remove the checkpoints of steps that will be done again, broken ones included.

        To be called when a run goes on from `step`, before anything else is written: were it killed before its next
        checkpoint, the following start must not mix two courses of the run.
        """
        for found, path in self._folders():
            if found > step:
                self._discard(path)

    def _folders(self) -> list[tuple[int, Path]]:
        """(step, folder) by step, whole or not."""
        if not self.root.is_dir():
            return []
        named = [(FOLDER_NAME.fullmatch(path.name), path) for path in self.root.iterdir()]
        return sorted((int(match[1]), path) for match, path in named if match)

    def _prune(self, newest: int) -> None:
        """Only called when `newest` is whole. A folder that cannot be removed is not worth stopping a run."""
        older = [path for step, path in self._folders() if step < newest]
        for path in older[: max(0, len(older) - (self.keep - 1))]:
            try:
                self._discard(path)
            except OSError as error:
                self.warn(f"the old checkpoint {path} cannot be removed ({error.strerror}); remove it by hand")

    def _discard(self, path: Path) -> None:
        """Remove a checkpoint so that it is never seen half removed."""
        temporary = temporary_beside(path)
        path.rename(temporary)
        shutil.rmtree(temporary, ignore_errors=True)

    def remove_leftovers(self) -> None:
        """Remove what a killed run left half done; for a start, when nobody else writes here."""
        if self.root.is_dir():
            for path in self.root.iterdir():
                if is_temporary(path):
                    shutil.rmtree(path, ignore_errors=True)

    def _whence(self) -> str:
        last = self.latest()
        return f"; it will go on from {last.path.name}" if last else "; no checkpoint was written yet"


def inspect(path: Path) -> Checkpoint:
    """Check every file of a checkpoint against its manifest, reading all of it once.

    Raises:
        Broken: names the file and the reason.
    """
    step, names, meta = manifest.check(path)
    named = FOLDER_NAME.fullmatch(path.name)
    if named and int(named[1]) != step:
        raise Broken(f"{MANIFEST} says step {step}, the folder's name {int(named[1])}")
    return Checkpoint(step, path, meta, names)
