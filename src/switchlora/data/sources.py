"""What `--data` names -> a source: a stable identity, and its documents one after another.

A source is lazy (a generator over files), so its length costs no memory, and it can be read again from the
start: the split is surveyed, the tokenizer trained and the blocks packed in separate passes. Its `identity`
says on what its text depends (paths, sizes and times of files; the version of Python), without reading it; it
is the first half of the key of the cache.
"""

import glob
import json
import os
import sys
import sysconfig
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from switchlora.data.files import (
    EXTENSIONS,
    Part,
    data_error,
    is_usable,
    needs_extra,
    read_documents,
    text_of,
    text_parts,
)
from switchlora.data.network import hub_resolves
from switchlora.errors import UserError

STDLIB = "stdlib"
HUB_PREFIX = "hf:"
# Tests of Python are two thirds of its library and repeat themselves; site-packages differ between machines.
STDLIB_LEFT_OUT = frozenset({"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"})

OpenDataset = Callable[[str, str | None], Any]  # (name, configuration) -> a datasets.IterableDataset


class Source(Protocol):
    """Somewhere documents come from."""

    @property
    def label(self) -> str:
        """What the user called it."""

    @property
    def identity(self) -> str:
        """Changes when the text may have changed; needs no reading of the text."""

    def documents(self) -> Iterator[Part]:
        """All documents from the start, in an order that is the same every time."""


@dataclass(frozen=True)
class StdlibSource:
    """The .py files of the running interpreter's standard library, about 10 MB that every machine has."""

    label: str = STDLIB

    @property
    def identity(self) -> str:
        return json.dumps([STDLIB, sys.version, sysconfig.get_path("stdlib")])

    def documents(self) -> Iterator[Part]:
        root = Path(sysconfig.get_path("stdlib"))
        for path in _walk(root, left_out=STDLIB_LEFT_OUT):
            if path.suffix == ".py":
                name = f"{STDLIB}/{path.relative_to(root).as_posix()}"
                try:
                    with path.open("rb") as stream:
                        parts = list(text_parts(stream, name))
                except (UserError, OSError):  # a few files are in old encodings on purpose
                    continue
                yield from parts


@dataclass(frozen=True)
class FileSource:
    """Files in a fixed order."""

    label: str
    paths: tuple[Path, ...]

    @property
    def identity(self) -> str:
        try:
            stats = [(str(path.resolve()), path.stat()) for path in self.paths]
        except OSError as error:
            raise data_error(
                error.filename, f"the file cannot be read ({error.strerror})", "give a readable file"
            ) from error
        return json.dumps(["files", [(name, stat.st_size, stat.st_mtime_ns) for name, stat in stats]])

    def documents(self) -> Iterator[Part]:
        for path in self.paths:
            yield from read_documents(path)


@dataclass(frozen=True)
class ChainSource:
    """Several sources, one after another."""

    sources: tuple[Source, ...]

    @property
    def label(self) -> str:
        return " ".join(source.label for source in self.sources)

    @property
    def identity(self) -> str:
        return json.dumps(["chain", [source.identity for source in self.sources]])

    def documents(self) -> Iterator[Part]:
        for source in self.sources:
            yield from source.documents()


@dataclass(frozen=True)
class HubSource:
    """The training split of a data set of the Hugging Face hub, streamed.

    `open_dataset` is `datasets.load_dataset` in streaming mode; tests put a local data set there."""

    name: str
    configuration: str | None
    open_dataset: OpenDataset

    @property
    def label(self) -> str:
        return HUB_PREFIX + self.name + (f":{self.configuration}" if self.configuration else "")

    @property
    def identity(self) -> str:
        return json.dumps(["hub", self.name, self.configuration])

    def open(self) -> Any:
        """A `datasets.IterableDataset`. Raises UserError: no network, no such data set, a script we do not
        run."""
        try:
            return self.open_dataset(self.name, self.configuration)
        except UserError:
            raise
        except Exception as error:  # the library raises a dozen kinds here, and no two versions the same
            raise data_error(
                self.label,
                f"the data set cannot be opened ({type(error).__name__}: {_brief(error)})",
                "check its name (hf:NAME[:CONFIG]) and the network, or give files",
            ) from error

    def documents(self) -> Iterator[Part]:
        for part, _ in enumerate_rows(self, self.open(), first=0):
            if part.text:
                yield part


def enumerate_rows(source: HubSource, rows: Any, *, first: int) -> Iterator[tuple[Part, int]]:
    """The documents of an open data set, empty ones too, with the number of rows read up to and including
    each."""
    number = first
    try:
        for row in rows:
            number += 1
            identity = f"{source.label}#{number}"
            yield Part(identity, text_of(row, where=identity), ends=True), number
    except UserError:
        raise
    except Exception as error:  # network and format errors of the library, as above
        raise data_error(
            source.label,
            f"reading broke off after {number} documents ({type(error).__name__}: {_brief(error)})",
            "check the network and start again: blocks that were cached are kept",
        ) from error


def open_hub(name: str, configuration: str | None) -> Any:
    """The `train` split of a hub data set, streamed. Raises at once when there is no network."""
    with needs_extra("hf", HUB_PREFIX + name):
        import datasets
    if not hub_resolves():
        raise ConnectionError("the hub cannot be reached: no network, or HF_HUB_OFFLINE is set")
    return datasets.load_dataset(name, configuration, split="train", streaming=True)


def open_source(specification: str | Sequence[str], *, open_dataset: OpenDataset = open_hub) -> Source:
    """The source that `--data` names: `stdlib`, a file, folder or glob, `hf:NAME[:CONFIG]`, or a list of the
    local ones.

    Raises UserError for what does not exist, matches nothing, is empty, or has an extension we cannot read."""
    names = [specification] if isinstance(specification, str) else list(specification)
    if not names or not all(names):
        raise data_error("''", "no data is named", f"give {STDLIB}, files, folders or hf:NAME")
    if any(name.startswith(HUB_PREFIX) for name in names):
        if len(names) > 1:
            raise data_error(
                " ".join(names),
                "a streamed data set cannot be mixed with others",
                "give one hf:NAME alone, or local files only",
            )
        name, _, configuration = names[0].removeprefix(HUB_PREFIX).partition(":")
        if not name:
            raise data_error(names[0], "the name of the data set is missing", "write hf:NAME or hf:NAME:CONFIG")
        return HubSource(name, configuration or None, open_dataset)
    sources = tuple(_open_local(name) for name in names)
    return sources[0] if len(sources) == 1 else ChainSource(sources)


def _open_local(name: str) -> Source:
    if name == STDLIB:
        return StdlibSource()
    path = Path(name).expanduser()
    if path.is_dir():
        return FileSource(name, _usable(name, _walk(path), "the folder holds"))
    if path.exists():
        if not is_usable(path):
            raise data_error(name, "this kind of file cannot be read", f"give one of {' '.join(EXTENSIONS)}")
        if path.stat().st_size == 0:
            raise data_error(name, "the file is empty", "give a file with text in it")
        return FileSource(name, (path,))
    if glob.has_magic(name):
        matches = sorted(Path(match) for match in glob.glob(str(path), recursive=True))
        if not matches:
            raise data_error(name, "nothing matches this pattern", "check it; ** crosses folders")
        found = (file for match in matches for file in (_walk(match) if match.is_dir() else [match]))
        return FileSource(name, _usable(name, found, "the pattern matches"))
    raise data_error(name, "no such file or folder", f"give a path that exists, {STDLIB}, or {HUB_PREFIX}NAME")


def _usable(name: str, found: Iterator[Path], what: str) -> tuple[Path, ...]:
    paths = tuple(dict.fromkeys(path for path in found if is_usable(path) and path.stat().st_size > 0))
    if not paths:
        raise data_error(name, f"{what} no usable file", f"usable are non-empty {' '.join(EXTENSIONS)}")
    return paths


def _walk(root: Path, left_out: frozenset[str] = frozenset()) -> Iterator[Path]:
    """Files below `root` in sorted order; hidden ones and folders named in `left_out` are passed by."""
    for folder, folders, files in os.walk(root):
        folders[:] = sorted(name for name in folders if name not in left_out and not name.startswith("."))
        for name in sorted(files):
            path = Path(folder, name)
            if not name.startswith(".") and path.is_file():
                yield path


def _brief(error: Exception) -> str:
    text = " ".join(str(error).split())
    return text if len(text) <= 200 else text[:200] + "..."
