"""What `--data` may name, in which order it is read, and what it may not name."""

import os
import sys
from pathlib import Path

import pytest

from switchlora.data.sources import open_source
from switchlora.errors import UserError


def texts(source: object) -> list[str]:
    return [part.text for part in open_source(source).documents()]  # type: ignore[arg-type]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "texts"
    (root / "deep" / "er").mkdir(parents=True)
    (root / ".git").mkdir()
    (root / "b.txt").write_text("b")
    (root / "a.jsonl").write_text('{"text": "a"}\n')
    (root / "deep" / "er" / "c.txt").write_text("c")
    (root / "empty.txt").write_text("")
    (root / "readme.md").write_text("not data")
    (root / ".git" / "d.txt").write_text("hidden")
    return root


def test_folder_glob_and_list(folder: Path) -> None:
    assert texts(str(folder)) == ["a", "b", "c"]
    assert texts(f"{folder}/*") == ["a", "b", "c"]
    assert texts(f"{folder}/**/*.txt") == ["b", "c"]
    assert texts([str(folder / "b.txt"), str(folder / "a.jsonl")]) == ["b", "a"]
    assert texts([str(folder / "deep")]) == ["c"]


def test_a_name_with_magic_characters_that_exists_is_that_file(tmp_path: Path) -> None:
    (tmp_path / "a[1].txt").write_text("brackets")
    assert texts(str(tmp_path / "a[1].txt")) == ["brackets"]


def test_identity_follows_the_files(folder: Path) -> None:
    before = open_source(str(folder)).identity
    assert open_source(str(folder)).identity == before
    (folder / "b.txt").write_text("bb")
    changed = open_source(str(folder)).identity
    assert changed != before
    os.utime(folder / "b.txt", ns=(1, 1))
    assert open_source(str(folder)).identity != changed


def test_stdlib_is_about_ten_megabytes_of_this_python() -> None:
    source = open_source("stdlib")
    parts = list(source.documents())
    assert 5e6 < sum(len(part.text) for part in parts) < 20e6
    names = [part.identity for part in parts]
    assert "stdlib/argparse.py" in names
    assert not any("/test/" in name or "site-packages" in name for name in names)
    assert [part.identity for part in source.documents()] == names
    assert sys.version in source.identity.replace("\\n", "\n")


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("missing.txt", "no such file or folder"),
        ("missing/*.txt", "nothing matches"),
        ("texts/readme.md", "this kind of file cannot be read"),
        ("texts/empty.txt", "the file is empty"),
        ("texts/.git/../deep/*.md", "nothing matches"),
        ("texts/*.md", "no usable file"),
        ("bare", "no usable file"),
        ("hf:", "the name of the data set is missing"),
        ("", "no data is named"),
    ],
)
def test_what_cannot_be_data(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, says: str
) -> None:
    (tmp_path / "bare").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError) as caught:
        open_source(name)
    assert says in str(caught.value)
    assert str(caught.value).startswith(f"--data {name or chr(39) * 2}: ")
    assert "; " in str(caught.value)


def test_streams_are_not_mixed() -> None:
    with pytest.raises(UserError, match="cannot be mixed"):
        open_source(["hf:allenai/c4:en", "stdlib"])
