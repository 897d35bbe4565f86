"""Files that are whole or absent, and disks that refuse.

A file that others read is never written in place: the new content goes to a hidden sibling, is synced, and takes
the name by a rename, which POSIX makes atomic. Whoever is killed in between leaves the old content and a hidden
file. The folder is synced last, because a rename lives in the folder and would else be lost with the power.
"""

import errno
import fcntl
import json
import os
import secrets
import tempfile
from collections.abc import Container, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from switchlora.errors import UserError
from switchlora.machine.console import print_warning
from switchlora.options.values import show

LOCK = ".lock"
DISK_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def atomic_write_text(path: Path, text: str) -> None:
    """Replace `path` (made if absent) by `text` in UTF-8, in one step and durably.

    Raises:
        OSError: what the disk said; the old content is then as it was, and no temporary is left.
    """
    atomic_write_bytes(path, text.encode("utf-8"))


def atomic_write_json(path: Path, value: Any) -> None:
    """Replace `path` by `value` as indented JSON; see `as_json`."""
    atomic_write_text(path, as_json(value))


def as_json(value: Any) -> str:
    """Indented JSON. Floats that JSON cannot spell become null (NaN) or text (inf)."""
    return json.dumps(spelled(value), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def atomic_write_bytes(path: Path, content: bytes) -> None:
    """`atomic_write_text` for pictures and other bytes."""
    temporary = temporary_beside(path)
    try:
        with temporary.open("wb") as handle:
            handle.write(content)
            handle.flush()
            os.fsync(handle.fileno())
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    sync_folder(path.parent)


def atomic_write_new(path: Path, text: str) -> None:
    """Like `atomic_write_text`, but never in the place of a file.

    Raises:
        FileExistsError: the name is taken.
        OSError: as there.
    """
    temporary = temporary_beside(path)
    try:
        atomic_write_text(temporary, text)
        try:
            os.link(temporary, path)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links: two steps, between which the file is empty
            path.touch(exist_ok=False)
            temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    sync_folder(path.parent)


def temporary_beside(path: Path) -> Path:
    """A hidden name next to `path` that nobody uses; `is_temporary` knows it again after a crash."""
    return path.with_name(f".{path.name}.tmp-{os.getpid()}-{secrets.token_hex(4)}")


def is_temporary(path: Path) -> bool:
    """Whether `path` has a name from `temporary_beside`."""
    return path.name.startswith(".") and ".tmp-" in path.name


def let_others_read(path: Path) -> None:
    """Give a file the permissions of any new file there; safetensors makes its files for their owner alone."""
    plain = temporary_beside(path)
    plain.touch()
    try:
        path.chmod(plain.stat().st_mode)
    finally:
        plain.unlink()


def sync_folder(folder: Path) -> None:
    """Make what was created, renamed or removed in `folder` survive a loss of power."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def spelled(value: Any) -> Any:
    """`value` with every float that JSON cannot spell replaced: NaN by None, the infinities by 'inf' and '-inf'."""
    if isinstance(value, dict):
        return {key: spelled(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [spelled(item) for item in value]
    if isinstance(value, float) and value != value:
        return None
    if isinstance(value, float) and value in (float("inf"), float("-inf")):
        return str(value)
    return value


def disk_refusal(error: OSError, what: str, folder: Path, *, after: str = "") -> UserError:
    """The UserError for a disk that refused: what could not be written, where, why, the way out, and `after` it."""
    if error.errno in DISK_FULL:
        reason, way_out = "no space left", "free some space there"
    else:
        reason, way_out = error.strerror or str(error), "make that folder writable"
    return UserError(f"--output {folder}: cannot write {what} ({reason}); {way_out} and start again{after}")


@contextmanager
def writing(what: str, folder: Path) -> Iterator[None]:
    """Turn what the disk refuses inside the block into a UserError that names `what` and `folder`."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        refused = error if isinstance(error, OSError) else os_error_behind(error, DISK_FULL)
        if refused is None:
            raise
        raise disk_refusal(refused, what, folder) from error


def os_error_behind(error: BaseException, numbers: Container[int]) -> OSError | None:
    """That of one of these numbers behind an exception: torch and safetensors wrap a full disk in their own."""
    seen: BaseException | None = error
    while seen is not None:
        if isinstance(seen, OSError) and seen.errno in numbers:
            return seen
        for number in DISK_FULL:
            if os.strerror(number) in str(seen):
                return OSError(number, os.strerror(number))
        seen = seen.__cause__ or seen.__context__
    return None


def require_no_file(folder: Path) -> None:
    """Refuse an `--output` that is a file, or a link that leads to nothing.

    Raises:
        UserError: it is one.
    """
    for place in (folder, *folder.parents):
        if place.is_symlink() and not place.exists():
            raise UserError(f"--output {show(str(folder))}: {place} is a link to nothing; remove it, or give a folder")
    if folder.exists() and not folder.is_dir():
        raise UserError(f"--output {show(str(folder))}: is a file; give a folder")


def require_writable(folder: Path) -> None:
    """Refuse a place where results could not be written, before they are measured. Nothing is left there.

    Raises:
        UserError: names the nearest folder that exists, and what the disk said.
    """
    nearest = next(one for one in (folder.absolute(), *folder.absolute().parents) if one.exists())
    try:
        with tempfile.TemporaryFile(dir=nearest):
            pass
    except OSError as error:
        raise UserError(
            f"--output {folder}: nothing can be written in {nearest} ({error.strerror}); give a folder in a place that "
            "can be written"
        ) from None


def lies_in(path: Path, places: Iterable[Path]) -> bool:
    """Whether a path is one of these places or inside of one, by its name or by where links lead."""
    names = _names(path)
    return any(one.is_relative_to(root) for place in places for root in _names(place) for one in names)


def _names(path: Path) -> set[Path]:
    """As it is written, and with links followed (realpath, unlike resolve, bears links in a circle)."""
    return {Path(os.path.abspath(path)), Path(os.path.realpath(path))}


@contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Hold the run folder against a second run that was started by mistake. The lock dies with its process.

    Raises:
        UserError: another process holds it, or the folder cannot be made or written.
    """
    with writing("the run's lock", folder):
        folder.mkdir(parents=True, exist_ok=True)
        handle = (folder / LOCK).open("a")
    with handle:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UserError(
                f"--output {folder}: another run is writing there now; wait for it, stop it, or give another folder"
            ) from None
        except OSError:  # a file system without locks: the run is as safe as it was before there were locks
            print_warning(f"{folder}: this file system has no locks; do not start a second run there")
        yield
