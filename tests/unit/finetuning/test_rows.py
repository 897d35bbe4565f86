"""GLUE's files as they are: headers, byte-order marks, quotation marks, compression; and what is wrong with a file."""

import gzip
import lzma
from pathlib import Path
from typing import Any

import datasets
import pytest

from switchlora.errors import UserError
from switchlora.finetuning import rows as rows_module
from switchlora.finetuning.glue import TASKS
from switchlora.finetuning.rows import Row, held_out, load_rows, read_tsv

# One row of each task in the format of GLUE's archive, and what it says.
FILES = {
    "cola": ("", 'gj04\t0\t*\tA "sentence is.', Row(('A "sentence is.',), 0)),
    "sst2": ("sentence\tlabel", 'a "charming journey . \t1', Row(('a "charming journey . ',), 1)),
    "mrpc": (
        "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String",
        '1\t7\t8\tHe said "x\tShe did',
        Row(('He said "x', "She did"), 1),
    ),
    "rte": ("index\tsentence1\tsentence2\tlabel", "0\tA b.\tC.\tnot_entailment", Row(("A b.", "C."), 1)),
    "stsb": (
        "index\tgenre\tfilename\tyear\told_index\tsource1\tsource2\tsentence1\tsentence2\tscore",
        "0\tg\tf\t2012\t01\tn\tn\tA.\tB.\t3.800",
        Row(("A.", "B."), 3.8),
    ),
    "qnli": ("index\tquestion\tsentence\tlabel", "0\tWho?\tHe.\tentailment", Row(("Who?", "He."), 0)),
    "wnli": ("index\tsentence1\tsentence2\tlabel", "0\tA.\tB.\t1", Row(("A.", "B."), 1)),
    "mnli": (
        "index\tpromptID\tpairID\tgenre\tsentence1\tsentence2\tlabel1\tgold_label",
        "0\t1\t2\tg\tA.\tB.\tneutral\tcontradiction",
        Row(("A.", "B."), 2),
    ),
    "qqp": ("id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate", "0\t1\t2\tHow?\tWhy?\t0", Row(("How?", "Why?"), 0)),
}
OPENERS: dict[str, Any] = {"": open, ".xz": lzma.open, ".gz": gzip.open}


def write(path: Path, *lines: str) -> Path:
    with OPENERS[path.suffix if path.suffix != ".tsv" else ""](path, "wb") as stream:
        stream.write("".join(f"{line}\n" for line in lines if line).encode("utf-8"))
    return path


@pytest.mark.parametrize("ending", ["", ".xz", ".gz"])
@pytest.mark.parametrize("name", list(TASKS))
def test_a_file_of_each_task(tmp_path: Path, name: str, ending: str) -> None:
    task = TASKS[name]
    header, line, row = FILES[name]
    for file in ("train", *(file for _, file, _ in task.splits)):
        write(tmp_path / f"{file}.tsv{ending}", header, line, line)
    found = load_rows(task, str(tmp_path))
    assert found.train == [row, row]
    assert found.evaluated == {split: [row, row] for split, _, _ in task.splits}


def test_glue_s_whole_archive(tmp_path: Path) -> None:
    (tmp_path / "CoLA").mkdir()
    for file in ("train", "dev"):
        write(tmp_path / "CoLA" / f"{file}.tsv", FILES["cola"][1])
    assert len(load_rows(TASKS["cola"], str(tmp_path)).train) == 1


def test_rows_of_qqp_that_lack_columns_are_passed_over_as_its_reader_does(tmp_path: Path) -> None:
    header, line, row = FILES["qqp"]
    assert read_tsv(write(tmp_path / "train.tsv", header, line, "1\t2\tbroken"), TASKS["qqp"]) == [row]


@pytest.mark.parametrize(
    ("task", "lines", "parts"),
    [
        ("rte", ["index\tsentence1\tlabel", "0\tA\tentailment"], ["line 1", "no column sentence2"]),
        ("rte", [FILES["rte"][0], FILES["rte"][1], "1\tA\tB"], ["line 3", "3 columns", "needs 4"]),
        ("rte", [FILES["rte"][0], "1\tA\tB\tneutral"], ["line 2", "neutral", "entailment or not_entailment"]),
        ("cola", ["gj04\t2\t\tA."], ["line 1", "label 2", "0 or 1"]),
        ("cola", ["gj04\t1"], ["line 1", "2 columns", "needs 4"]),
        ("stsb", [FILES["stsb"][0], FILES["stsb"][1].replace("3.800", "5.1")], ["line 2", "5.1", "from 0 to 5"]),
        ("stsb", [FILES["stsb"][0], FILES["stsb"][1].replace("3.800", "nan")], ["line 2", "nan", "from 0 to 5"]),
        ("sst2", ["sentence\tlabel"], ["holds no rows"]),
    ],
)
def test_what_is_wrong_is_said_with_file_and_line(
    tmp_path: Path, task: str, lines: list[str], parts: list[str]
) -> None:
    path = write(tmp_path / "train.tsv", *lines)
    with pytest.raises(UserError) as refused:
        read_tsv(path, TASKS[task])
    message = str(refused.value)
    assert "\n" not in message
    assert all(part in message for part in [str(path), *parts]), message


@pytest.mark.parametrize("content", [b"\xfd7zXZ\x00broken", b""])
def test_broken_files(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "train.tsv.xz").write_bytes(content)
    with pytest.raises(UserError, match=r"train\.tsv\.xz: (cannot be read|line 1)"):
        read_tsv(tmp_path / "train.tsv.xz", TASKS["rte"])
    packed = bytearray(gzip.compress("\n".join(FILES["rte"][:2]).encode()))
    packed[10] = 0b111  # the first block has a type that there is not
    (tmp_path / "train.tsv.gz").write_bytes(packed)
    with pytest.raises(UserError, match=r"train\.tsv\.gz: cannot be read .*copy it again"):
        read_tsv(tmp_path / "train.tsv.gz", TASKS["rte"])
    for other, line in (
        (b"sentence\tlabel\nx\t1\n\xe9t\xe9\t1\n", 3),
        (b"\xef\xbb\xbfsentence\tlabel\n\xe9\t1\n", 2),
        ("sentence\tlabel\n".encode("utf-16"), 1),
    ):
        (tmp_path / "other.tsv").write_bytes(other)
        with pytest.raises(UserError, match=rf"other\.tsv: line {line}: is not UTF-8; convert the file \(iconv"):
            read_tsv(tmp_path / "other.tsv", TASKS["sst2"])


def test_a_file_without_a_row(tmp_path: Path) -> None:
    (tmp_path / "train.tsv").touch()
    with pytest.raises(UserError, match=r"train\.tsv: is empty; copy it again"):
        read_tsv(tmp_path / "train.tsv", TASKS["rte"])


def test_folders_that_are_not_there_or_not_whole(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        load_rows(TASKS["rte"], str(tmp_path / "no"))
    write(tmp_path / "train.tsv", *FILES["rte"][:2])
    with pytest.raises(UserError, match=r"lacks dev\.tsv"):
        load_rows(TASKS["rte"], str(tmp_path))


@pytest.mark.parametrize("name", list(TASKS))
def test_the_hub_gives_the_same_rows(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A data set of `datasets` with the hub's columns in place of the hub."""
    task, row = TASKS[name], FILES[name][2]
    label = row.label if task.is_regression else int(row.label)
    values = {column: [text] for column, text in zip(task.hub_texts, row.texts, strict=True)} | {"label": [label]}
    split = datasets.Dataset.from_dict({**values, "idx": [0]})
    everything = {"train": split, **{hub: split for _, _, hub in task.splits}}
    monkeypatch.setattr(
        rows_module, "open_hub", lambda asked: datasets.DatasetDict(everything) if asked == name else None
    )
    found = load_rows(task, None)
    assert found.train == [row]
    assert found.evaluated == {split: [row] for split, _, _ in task.splits}


def test_without_network_the_hub_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match=r"cannot be had from the hub.*give --data FOLDER"):
        load_rows(TASKS["rte"], None)


def test_what_is_held_out_is_random_and_the_rest_is_the_rest() -> None:
    rows = [Row((str(number),), 0) for number in range(100)]
    rest, part = held_out(rows, 0.1, 0)
    assert (len(rest), len(part)) == (90, 10)
    assert sorted([*rest, *part], key=lambda row: int(row.texts[0])) == rows
    assert held_out(rows, 0.1, 0) == (rest, part)
    assert held_out(rows, 0.1, 1)[1] != part
    assert len(held_out(rows[:2], 0.1, 0)[1]) == 1
    with pytest.raises(UserError, match="2 rows in train"):
        held_out(rows[:1], 0.1, 0)
