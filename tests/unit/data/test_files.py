"""Every format gives back exactly the text that was put in; every way of being bad gives one line."""

import gzip
import json
import lzma
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest
import zstandard

from switchlora.data.files import PART_BYTES, Part, read_documents
from switchlora.errors import UserError

PACK = {"": bytes, ".gz": gzip.compress, ".xz": lzma.compress, ".zst": zstandard.ZstdCompressor().compress}
TEXTS = ["erste Zeile\nzweite\r\n", "žluťoučký 🐎", "a\u2028b\x00c"]


def bad(path: Path) -> str:
    with pytest.raises(UserError) as caught:
        list(read_documents(path))
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"--data {path}")
    return message


@pytest.mark.parametrize("packed", PACK)
def test_a_text_file_is_one_document(tmp_path: Path, packed: str) -> None:
    path = tmp_path / f"a.txt{packed}"
    path.write_bytes(PACK[packed]("".join(TEXTS).encode()))
    assert list(read_documents(path)) == [Part(str(path), "".join(TEXTS), ends=True)]


@pytest.mark.parametrize("packed", PACK)
def test_a_jsonl_line_is_one_document(tmp_path: Path, packed: str) -> None:
    path = tmp_path / f"a.jsonl{packed}"
    lines = [json.dumps({"id": 1, "text": text}, ensure_ascii=False) for text in TEXTS]
    path.write_bytes(PACK[packed](("\n".join(lines) + "\n\n").encode()))
    assert [part.text for part in read_documents(path)] == TEXTS
    assert [part.identity for part in read_documents(path)] == [f"{path}:{line}" for line in (1, 2, 3)]


def test_a_number_of_many_digits_is_valid_json(tmp_path: Path) -> None:
    path = tmp_path / "big.jsonl"
    path.write_text('{"id": ' + "9" * 10_000 + ', "text": "hello"}\n')
    assert [part.text for part in read_documents(path)] == ["hello"]


def test_a_parquet_row_is_one_document(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"id": [1, 2, 3], "text": TEXTS}), path)
    assert [part.text for part in read_documents(path)] == TEXTS


@pytest.mark.parametrize("line", ["short ž\n", "x" * (3 * PART_BYTES // 2) + "ž\n", "no line end " * 5])
def test_a_long_text_comes_in_parts_that_join(tmp_path: Path, line: str) -> None:
    path = tmp_path / "long.txt"
    text = line * (1 + 3 * PART_BYTES // len(line))
    path.write_text(text, encoding="utf-8")
    parts = list(read_documents(path))
    assert "".join(part.text for part in parts) == text
    assert [part.ends for part in parts] == [False] * (len(parts) - 1) + [True]
    assert len(parts) >= 2
    assert max(len(part.text) for part in parts) <= 2 * PART_BYTES + 4


def test_a_byte_order_mark_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"\xef\xbb\xbfhello")
    (tmp_path / "a.jsonl").write_bytes(b'\xef\xbb\xbf{"text": "hello"}\n')
    for name in ("a.txt", "a.jsonl"):
        assert [part.text for part in read_documents(tmp_path / name)] == ["hello"]


def test_zst_of_several_frames(tmp_path: Path) -> None:
    path = tmp_path / "a.txt.zst"
    path.write_bytes(PACK[".zst"](b"one ") + PACK[".zst"](b"two"))
    assert [part.text for part in read_documents(path)] == ["one two"]


@pytest.mark.parametrize("packed", [".gz", ".xz", ".zst"])
@pytest.mark.parametrize("kind", [".txt", ".jsonl"])
def test_truncated_archive(tmp_path: Path, packed: str, kind: str) -> None:
    path = tmp_path / f"a{kind}{packed}"
    lines = "".join(json.dumps({"text": f"{i * i * 7919}"}) + "\n" for i in range(20_000))
    data = PACK[packed](lines.encode())
    path.write_bytes(data[: len(data) // 2])
    assert "truncated" in bad(path)


@pytest.mark.parametrize("packed", [".gz", ".xz", ".zst"])
def test_corrupt_archive(tmp_path: Path, packed: str) -> None:
    path = tmp_path / f"a.txt{packed}"
    path.write_bytes(b"this is no archive at all")
    assert "corrupt" in bad(path)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (b'{"text": "cut o', "not valid JSON"),
        (b'{"body": "x"}', "has the fields body"),
        (b'{"text": 7}', "holds int"),
        (b'{"text": null}', "holds NoneType"),
        (b'["text"]', "is no object"),
        (b"[" * 100_000, "not valid JSON"),
        (b'{"text": "\\ud800"}', "surrogate"),
        (b'{"text": "\xff"}', "not UTF-8"),
    ],
)
def test_bad_line_is_named(tmp_path: Path, line: bytes, says: str) -> None:
    path = tmp_path / "a.jsonl"
    path.write_bytes(b'{"text": "fine"}\n\n' + line + b"\n")
    message = bad(path)
    assert says in message
    assert "line 3" in message


@pytest.mark.parametrize("num_lines", [1, 3, 40_000])
def test_not_utf8_names_the_line(tmp_path: Path, num_lines: int) -> None:
    path = tmp_path / "latin1.txt"
    path.write_bytes(b"a perfectly fine line of more than forty bytes\n" * (num_lines - 1) + b"caf\xe9 noir\n")
    assert f"line {num_lines} is not UTF-8" in bad(path)


def test_text_that_ends_inside_a_character(tmp_path: Path) -> None:
    path = tmp_path / "cut.txt"
    path.write_bytes("abc\nž".encode()[:-1])
    assert "line 2 is not UTF-8" in bad(path)


def test_broken_parquet(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"text": TEXTS * 100}), path)
    path.write_bytes(path.read_bytes()[:-20])
    bad(path)
    path.write_bytes(b"PAR1 nonsense")
    bad(path)


def test_parquet_without_text(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pyarrow.parquet.write_table(pyarrow.table({"body": TEXTS}), path)
    assert "no column 'text' among its columns (body)" in bad(path)
    pyarrow.parquet.write_table(pyarrow.table({"text": ["a", None]}), path)
    assert "row 2" in bad(path)
    pyarrow.parquet.write_table(pyarrow.table({"text": [1, 2]}), path)
    assert "row 1" in bad(path)
