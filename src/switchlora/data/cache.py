"""Folders on disk that are either whole or absent.

A cached folder is built beside its place under a hidden name, sealed with a manifest that lists the size of
every file, synced, and renamed. A killed build leaves only a hidden folder, which the next build sweeps away;
a folder whose files have other sizes than its manifest says is rebuilt, not trusted. A lock (flock, which
dies with its process) makes a second process wait for the first one's result instead of repeating the work;
if a file system ignores locks, both build, the first rename wins, and nothing is damaged.
"""

import errno
import fcntl
import json
import os
import secrets
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path
from typing import Any

from switchlora.errors import UserError

MANIFEST = "manifest.json"
FORMAT = 2  # counts up when cached files, or what is sealed with them, change: old ones are then simply not found


def key_of(*parts: object) -> str:
    """A short name for everything that a cached result depends on."""
    return blake2b(json.dumps([FORMAT, *parts]).encode("utf-8"), digest_size=12).hexdigest()


@contextmanager
def writing(folder: Path) -> Iterator[None]:
    """Turn what the disk refuses (no space, no permission, a file in the way) into a UserError that names the
    folder."""
    try:
        yield
    except OSError as error:
        full = error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
        way_out = "free some space there and start again" if full else "make that folder writable"
        reason = error.strerror or str(error)
        raise UserError(f"--data: cannot write cached blocks to {folder} ({reason}); {way_out}") from error


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold an exclusive lock on `path` (created, and left there). Without `wait`, yields False when it is
    taken."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True


def write_json(path: Path, value: Any) -> None:
    """Replace `path` in one step: a reader sees the old content or the new, never a half."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    with temporary.open("w", encoding="utf-8") as handle:
        json.dump(value, handle)
        handle.flush()
        os.fsync(handle.fileno())
    temporary.replace(path)


def read_json(path: Path) -> dict[str, Any] | None:
    """The object in `path`; None if it is absent or unreadable, which for a cache is the same."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return value if isinstance(value, dict) else None


def read_seal(folder: Path) -> dict[str, Any] | None:
    """What the builder of a whole folder had to say; None if it is absent or any file's size is not as
    sealed."""
    manifest = read_json(folder / MANIFEST)
    if manifest is None or not isinstance(manifest.get("files"), dict) or not isinstance(manifest.get("about"), dict):
        return None
    for name, size in manifest["files"].items():
        try:
            if (folder / name).stat().st_size != size:
                return None
        except OSError:
            return None
    about: dict[str, Any] = manifest["about"]
    return about


def ensure_folder(folder: Path, build: Callable[[Path], dict[str, Any]]) -> dict[str, Any]:
    """Return what is sealed in `folder`, building it first if it is not there whole.

    build: fills the empty folder it is given, and returns what to seal with it (JSON)."""
    about = read_seal(folder)
    if about is not None:
        return about
    with writing(folder.parent), locked(folder.parent / f"{folder.name}.lock"):
        about = read_seal(folder)
        if about is not None:
            return about
        for leftover in folder.parent.glob(f".{folder.name}.*"):
            shutil.rmtree(leftover, ignore_errors=True)
        temporary = _beside(folder)
        try:
            about = build(temporary)
            _seal(temporary, about)
            _publish(temporary, folder)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
    return about


def _beside(folder: Path) -> Path:
    """A new hidden folder next to `folder`, with the permissions that the user's umask gives."""
    path = folder.parent / f".{folder.name}.{os.getpid()}-{secrets.token_hex(4)}"
    path.mkdir()
    return path


def _seal(folder: Path, about: dict[str, Any]) -> None:
    sizes = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as handle:
            os.fsync(handle.fileno())
        sizes[path.relative_to(folder).as_posix()] = path.stat().st_size
    write_json(folder / MANIFEST, {"about": about, "files": sizes})


def _publish(temporary: Path, folder: Path) -> None:
    try:
        temporary.rename(folder)
    except OSError as error:
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        if read_seal(folder) is None:  # damaged: it must make room. Otherwise another builder was first: keep his
            aside = _beside(folder)
            folder.rename(aside / "damaged")
            temporary.rename(folder)
            shutil.rmtree(aside, ignore_errors=True)
    handle = os.open(folder.parent, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
