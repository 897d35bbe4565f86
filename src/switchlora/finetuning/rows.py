"""Rows of a task: from GLUE's .tsv files, plain or compressed, or from the hub. Both give the same.

The files have no quoting: a quotation mark is a character. Some begin with a byte-order mark.
"""

import gzip
import hashlib
import lzma
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from switchlora.data.files import needs_extra
from switchlora.data.network import hub_resolves
from switchlora.errors import UserError
from switchlora.finetuning.glue import HUB_NAME, Task
from switchlora.options.values import one_of, show
from switchlora.training.presets import first_line

ENDINGS = ("", ".xz", ".gz")


@dataclass(frozen=True)
class Row:
    """One or two texts, and the number of their class, or a score."""

    texts: tuple[str, ...]
    label: float


@dataclass(frozen=True)
class Rows:
    """A task's data: what is trained on, what is evaluated (by name), and a hash of both."""

    train: list[Row]
    evaluated: dict[str, list[Row]]

    @property
    def fingerprint(self) -> str:
        """Changes with any text, label or order."""
        digest = hashlib.blake2b(digest_size=16)
        for name, rows in (("train", self.train), *self.evaluated.items()):
            digest.update(repr((name, rows)).encode("utf-8"))
        return digest.hexdigest()


def load_rows(task: Task, data: str | None) -> Rows:
    """The rows of a folder of .tsv files, or of the hub.

    Raises:
        UserError: a file, a column or a label is not what the task has (with file and line), or the hub does not
            answer.
    """
    return _from_hub(task) if data is None else _from_files(task, data)


def _from_files(task: Task, data: str) -> Rows:
    folder = Path(data).expanduser()
    if not folder.is_dir():
        raise UserError(
            f"--data {show(data)}: no such folder; give one that holds train.tsv and dev.tsv of {task.name}"
        )
    if not any((folder / f"train.tsv{ending}").is_file() for ending in ENDINGS) and (folder / task.folder).is_dir():
        folder /= task.folder  # GLUE's whole archive was given
    train = read_tsv(_file(folder, "train", task, data), task)
    return Rows(train, {name: read_tsv(_file(folder, file, task, data), task) for name, file, _ in task.splits})


def _file(folder: Path, name: str, task: Task, data: str) -> Path:
    for ending in ENDINGS:
        if (path := folder / f"{name}.tsv{ending}").is_file():
            return path
    raise UserError(
        f"--data {show(data)}: lacks {name}.tsv (or .xz, .gz) of {task.name}; give the folder {task.folder} of GLUE, "
        "or the folder above it"
    )


def _lines(path: Path) -> list[str]:
    opened: Any = {".xz": lzma.open, ".gz": gzip.open}.get(path.suffix, open)
    try:
        with opened(path, "rb") as stream:
            content: bytes = stream.read()
    except (OSError, EOFError, lzma.LZMAError, zlib.error) as error:
        raise UserError(f"{path}: cannot be read ({first_line(error)}); copy it again") from None
    try:
        lines = content.decode("utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        at = error.object.count(b"\n", 0, error.start) + 1  # which lacks the mark that content may begin with
        raise UserError(f"{path}: line {at}: is not UTF-8; convert the file (iconv -f LATIN1 -t UTF-8, say)") from None
    if lines == [""]:
        raise UserError(f"{path}: is empty; copy it again")
    return [line.removesuffix("\r") for line in lines]


def read_tsv(path: Path, task: Task) -> list[Row]:
    """The rows of one file, in their order.

    Raises:
        UserError: see `load_rows`.
    """
    lines = _lines(path)
    first, columns = 0, list(range(100))
    if isinstance(task.label, str):
        first, header = 1, lines[0].split("\t")
        absent = [str(name) for name in (*task.texts, task.label) if name not in header]
        if absent:
            raise UserError(
                f"{path}: line 1: has no column {', '.join(absent)}; {task.name} has columns "
                f"{', '.join(map(str, (*task.texts, task.label)))}"
            )
        columns = [header.index(name) if name in header else -1 for name in (*task.texts, task.label)]
    else:
        columns = [int(number) for number in (*task.texts, task.label)]
    rows = []
    for number, line in enumerate(lines[first:], start=first + 1):
        if not line:
            continue
        cells = line.split("\t")
        if len(cells) <= max(columns):
            if task.short_rows:
                continue
            raise UserError(
                f"{path}: line {number}: has {len(cells)} columns, and {task.name} needs {max(columns) + 1}; mend that "
                "line"
            )
        *texts, label = (cells[column] for column in columns)
        rows.append(Row(tuple(texts), _label(label, task, f"{path}: line {number}")))
    if not rows:
        raise UserError(f"{path}: holds no rows; give a file with some")
    return rows


def _label(text: str, task: Task, where: str) -> float:
    if task.labels:
        if text in task.labels:
            return float(task.labels.index(text))
        raise UserError(f"{where}: the label {show(text)} is none of {task.name}'s; it must be {one_of(task.labels)}")
    try:
        score = float(text)
    except ValueError:
        score = -1.0
    if not 0 <= score <= 5:
        raise UserError(f"{where}: the score {show(text)} must be a number from 0 to 5; mend that line")
    return score


def open_hub(task: str) -> Any:
    """The data set of a task, split by name; tests put a local one here.

    Raises:
        ConnectionError: no network.
    """
    with needs_extra("hf", f"hub:{HUB_NAME}"):
        import datasets
    if not hub_resolves():
        raise ConnectionError("the hub cannot be reached: no network, or HF_HUB_OFFLINE is set")
    return datasets.load_dataset(HUB_NAME, task)


def _from_hub(task: Task) -> Rows:
    try:
        opened = open_hub(task.name)
        train = _hub_rows(task, "train", opened["train"])
        return Rows(train, {name: _hub_rows(task, split, opened[split]) for name, _, split in task.splits})
    except UserError:
        raise
    except Exception as error:  # the library raises a dozen kinds
        raise UserError(
            f"--data: {HUB_NAME} ({task.name}) cannot be had from the hub ({first_line(error)}); check the network, or "
            f"give --data FOLDER with train.tsv and dev.tsv"
        ) from None


def _hub_rows(task: Task, split: str, rows: Iterable[dict[str, Any]]) -> list[Row]:
    found = []
    for number, row in enumerate(rows, start=1):
        label, where = float(row["label"]), f"{HUB_NAME} ({task.name}, {split}): row {number}"
        if task.labels and label not in range(len(task.labels)):
            raise UserError(
                f"{where}: the label {label:g} is none of the {len(task.labels)} classes; give --data FOLDER"
            )
        found.append(Row(tuple(str(row[name]) for name in task.hub_texts), label))
    return found


def held_out(rows: Sequence[Row], fraction: float, seed: int) -> tuple[list[Row], list[Row]]:
    """(the rest, a random part of at least one row), each in its order.

    Raises:
        UserError: there is one row alone.
    """
    import numpy as np

    if len(rows) < 2:
        raise UserError("--lr: to choose between several rates takes 2 rows in train; give one rate, or more rows")
    num = min(len(rows) - 1, max(1, round(len(rows) * fraction)))
    taken = set(np.random.default_rng([seed, 1]).permutation(len(rows))[:num].tolist())
    return [row for i, row in enumerate(rows) if i not in taken], [rows[i] for i in sorted(taken)]
