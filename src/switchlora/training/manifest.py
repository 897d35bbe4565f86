"""A folder whose files can be told from damaged ones: SHA-256 and size of each, in a manifest that is written last.

The manifest finds what a rename cannot protect from: a disk that lies, a copy that was cut short, a flipped bit. A sum
is of what was handed over, not of what the disk made of it. Cost: one pass of SHA-256 (about 1 GB/s, computed as the
bytes are written) and one fsync per file.
"""

import hashlib
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

from switchlora.machine.files import sync_folder

MANIFEST = "manifest.json"
META = "meta.json"
FORMAT = 1  # counts up when an older program could no longer read what this one writes
Entry = dict[str, Any]  # {"size_bytes": ..., "sha256": ...}


class Broken(Exception):
    """Why a folder is not whole, naming the file."""


class SummedFile:
    """A file to write to that sums what it gets and remembers why the disk refused."""

    def __init__(self, handle: IO[bytes]) -> None:
        self.handle = handle
        self.digest = hashlib.sha256()
        self.num_bytes = 0
        self.refused: OSError | None = None

    @property
    def entry(self) -> Entry:
        """What the manifest says of it."""
        return {"size_bytes": self.num_bytes, "sha256": self.digest.hexdigest()}

    def write(self, content: bytes) -> int:
        """As a file's; all of it."""
        try:
            self.handle.write(content)
        except OSError as error:
            self.refused = self.refused or error
            raise
        self.digest.update(content)
        num_bytes = memoryview(content).nbytes
        self.num_bytes += num_bytes
        return num_bytes

    def tell(self) -> int:
        """Bytes written so far."""
        return self.num_bytes

    def fileno(self) -> int:
        """As a file's, when all that was written has gone to it: torch syncs by this number, and does not flush."""
        self.handle.flush()
        return self.handle.fileno()

    def flush(self) -> None:
        """As a file's."""
        self.handle.flush()

    def close(self) -> None:
        """As a file's."""
        self.handle.close()


def write_summed(path: Path, fill: Callable[[SummedFile], object]) -> Entry:
    """Write and sync a new file; returns its entry in the manifest.

    Raises:
        OSError: what the disk said; torch buries that under an error of its own.
    """
    with path.open("xb") as handle:
        file = SummedFile(handle)
        try:
            fill(file)
            file.flush()
        except Exception as error:
            raise file.refused or error from None
        os.fsync(handle.fileno())
    return file.entry


def complete(folder: Path, step: int, entries: Mapping[str, Entry], meta: Mapping[str, Any]) -> None:
    """Write `meta` and the manifest of a folder whose other files, with these entries, are there and synced."""
    files = {**entries, META: write_summed(folder / META, lambda file: file.write(_json(meta)))}
    manifest = {"format": FORMAT, "step": step, "files": files}
    write_summed(folder / MANIFEST, lambda file: file.write(_json(manifest)))
    sync_folder(folder)


def check(folder: Path) -> tuple[int, tuple[str, ...], dict[str, Any]]:
    """The step of a folder, the names of its files, and its meta, after reading all of it once.

    Raises:
        Broken: a file is not as it was written.
    """
    manifest = read_json(folder / MANIFEST)
    try:
        if manifest["format"] != FORMAT:
            raise Broken(f"{MANIFEST} has format {manifest['format']!r}, this version reads {FORMAT}")
        step, entries = int(manifest["step"]), dict(manifest["files"])
        expected = {Path(name).name: (entry["size_bytes"], entry["sha256"]) for name, entry in entries.items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Broken(f"{MANIFEST} is damaged ({type(error).__name__}: {error})") from None
    for name, (size_bytes, digest) in expected.items():
        _check_file(folder / name, size_bytes, digest)
    return step, tuple(expected), read_json(folder / META)


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        Broken: there is none.
    """
    try:
        value = json.loads(path.read_bytes())
    except OSError as error:
        raise Broken(f"{path.name} cannot be read: {error.strerror}") from None
    except ValueError:
        raise Broken(f"{path.name} is not JSON") from None
    if not isinstance(value, dict):
        raise Broken(f"{path.name} is not a JSON object")
    return value


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


def _json(value: Mapping[str, Any]) -> bytes:
    return (json.dumps(value, indent=2) + "\n").encode("utf-8")
