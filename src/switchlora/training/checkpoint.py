"""Checkpoints that are whole or absent: a folder each, written beside, synced, renamed.

    step-00000100/
        model.pt, optimizer.pt, ...     one file for every top-level key of the state
        meta.json                       what the writer wants to know before it loads anything
        manifest.json                   SHA-256 and size of every file above, written last

The folder gets its name only when everything in it is on the disk, so a process killed at any moment leaves either
the old checkpoints alone or the new one whole, plus at most a hidden folder that the next start removes. The
manifest finds what a rename cannot protect from: a disk that lies, a copy that was cut short, a flipped bit. Cost:
one pass of SHA-256 (about 1 GB/s, computed as the bytes are written) and one fsync per file.

Files are read with `weights_only=True`: a checkpoint is data, and must not be able to run code.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch

from switchlora.errors import UserError
from switchlora.training.files import (
    disk_refusal,
    is_temporary,
    print_warning,
    sync_folder,
    temporary_beside,
)

MANIFEST = "manifest.json"
META = "meta.json"
FORMAT = 1  # counts up when an older program could no longer read what this one writes
FOLDER_NAME = re.compile(r"step-(\d{8,})")
KEY_NAME = re.compile(r"\w[\w.-]*")


class Broken(Exception):
    """Why a folder is not a whole checkpoint, naming the file."""


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint whose files were found to be as they were written.

    step: optimizer steps done; path: its folder; meta: as given to `save`; keys: the top-level keys of its state.
    """

    step: int
    path: Path
    meta: dict[str, Any]
    keys: tuple[str, ...]

    def load(self) -> dict[str, Any]:
        """The whole state, tensors on the CPU."""
        return {key: self.load_part(key) for key in self.keys}

    def load_part(self, key: str) -> Any:
        """The state under one top-level key, so that not all need be in memory at once.

        Raises:
            UserError: the file cannot be read any more, or holds something that is no plain data.
        """
        path = self.path / f"{key}.pt"
        try:
            return torch.load(path, map_location="cpu", weights_only=True)
        except Exception as error:  # torch raises many kinds here; whatever it is, this file is the reason
            lines = str(error).splitlines() or [type(error).__name__]
            raise UserError(
                f"--resume {self.path}: {path.name} cannot be loaded ({lines[0]}); give another checkpoint"
            ) from error


class CheckpointStore:
    """The checkpoints of one run, in `root`, of which the `keep` newest stay.

    Making a store removes what a killed run left half done; nothing is created before the first `save`.
    `warn` gets one line for each broken checkpoint that is passed over.
    """

    def __init__(self, root: Path, keep: int, warn: Callable[[str], None] = print_warning) -> None:
        if keep < 1:
            raise UserError(f"--keep {keep}: at least the newest checkpoint has to stay; use 1 or more")
        self.root = Path(root)
        self.keep = keep
        self.warn = warn
        self._remove_leftovers()

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
        path = self.root / f"step-{step:08d}"
        temporary = temporary_beside(path)
        try:
            if path.exists():
                try:
                    inspect(path)
                    return path
                except Broken as reason:
                    self.warn(f"the broken checkpoint {path} is replaced ({reason})")
            self.root.mkdir(parents=True, exist_ok=True)
            _write_folder(temporary, step, state, meta)
            if path.exists():
                self._discard(path)
            temporary.rename(path)
            sync_folder(self.root)
        except OSError as error:
            shutil.rmtree(temporary, ignore_errors=True)
            raise disk_refusal(error, f"checkpoint {path.name}", self.root, after=self._whence()) from error
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        self._prune(step)
        return path

    def latest(self) -> Checkpoint | None:
        """The newest whole checkpoint. Broken ones are passed over, each with a warning; None if there is none."""
        for _, path in reversed(self._folders()):
            try:
                return inspect(path)
            except Broken as reason:
                self.warn(f"checkpoint {path} is broken and not used ({reason})")
        return None

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

    def _remove_leftovers(self) -> None:
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
    manifest = _read_json(path, MANIFEST)
    try:
        if manifest["format"] != FORMAT:
            raise Broken(f"{MANIFEST} has format {manifest['format']!r}, this version reads {FORMAT}")
        step, sums = int(manifest["step"]), dict(manifest["files"])
        expected = {Path(name).name: (entry["size_bytes"], entry["sha256"]) for name, entry in sums.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Broken(f"{MANIFEST} is damaged ({type(error).__name__}: {error})") from None
    named = FOLDER_NAME.fullmatch(path.name)
    if named and int(named[1]) != step:
        raise Broken(f"{MANIFEST} says step {step}, the folder's name {int(named[1])}")
    for name, (size_bytes, digest) in expected.items():
        _check_file(path / name, size_bytes, digest)
    keys = tuple(name.removesuffix(".pt") for name in expected if name.endswith(".pt"))
    return Checkpoint(step, path, _read_json(path, META), keys)


def _check_file(path: Path, size_bytes: int, digest: str) -> None:
    try:
        with path.open("rb") as handle:
            found = os.fstat(handle.fileno()).st_size
            if found != size_bytes:
                raise Broken(f"{path.name} has {found} bytes instead of {size_bytes}")
            if hashlib.file_digest(handle, "sha256").hexdigest() != digest:
                raise Broken(f"{path.name} has another checksum than {MANIFEST} says")
    except OSError as error:
        raise Broken(f"{path.name} cannot be read: {error.strerror}") from None


def _read_json(folder: Path, name: str) -> dict[str, Any]:
    try:
        value = json.loads((folder / name).read_bytes())
    except OSError as error:
        raise Broken(f"{name} cannot be read: {error.strerror}") from None
    except ValueError:
        raise Broken(f"{name} is not JSON") from None
    if not isinstance(value, dict):
        raise Broken(f"{name} is not a JSON object")
    return value


def _write_folder(folder: Path, step: int, state: Mapping[str, Any], meta: dict[str, Any]) -> None:
    """Everything of a checkpoint, synced, the manifest last."""
    folder.mkdir()
    files = {}
    for key, value in state.items():
        files[f"{key}.pt"] = _write(folder / f"{key}.pt", partial(torch.save, value))
    files[META] = _write(folder / META, lambda sink: sink.write(_json(meta)))
    manifest = {"format": FORMAT, "step": step, "files": files}
    _write(folder / MANIFEST, lambda sink: sink.write(_json(manifest)))
    sync_folder(folder)


def _json(value: dict[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode("utf-8")


def _write(path: Path, fill: Callable[["_Sink"], object]) -> dict[str, Any]:
    """Write and sync one file. Returns its entry in the manifest: the sum of what was handed over, not of what the
    disk made of it."""
    with path.open("xb") as handle:
        sink = _Sink(handle)
        try:
            fill(sink)
            sink.flush()
        except Exception as error:
            raise sink.refused or error from None  # torch buries the disk's reason under one of its own
        os.fsync(handle.fileno())
    return {"size_bytes": sink.num_bytes, "sha256": sink.digest.hexdigest()}


class _Sink:
    """A file to write to that sums what it gets and remembers why the disk refused."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.handle = handle
        self.digest = hashlib.sha256()
        self.num_bytes = 0
        self.refused: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            self.handle.write(content)
        except OSError as error:
            self.refused = self.refused or error
            raise
        self.digest.update(content)
        self.num_bytes += len(content)
        return len(content)

    def flush(self) -> None:
        self.handle.flush()
