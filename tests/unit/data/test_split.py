"""The side of a document depends on its text alone, and small corpora have two sides as well."""

import hypothesis.strategies as st
import pytest
from hypothesis import given

from switchlora.data.files import Part
from switchlora.data.split import HASH_RANGE, VALID_ONE_IN, Split, cut, survey


def parts_of(texts: list[str]) -> list[Part]:
    return [Part(f"{number}", text, ends=True) for number, text in enumerate(texts)]


@given(st.text(alphabet="ab \n", max_size=200), st.integers(1, 20))
def test_cut_loses_nothing(text: str, size: int) -> None:
    pieces = cut(text, size)
    assert "".join(pieces) == text
    assert all(0 < len(piece) <= size for piece in pieces)


def test_cut_prefers_line_ends_then_spaces() -> None:
    assert cut("one two\nthree four", 12) == ["one two\n", "three four"]
    assert cut("one two three", 9) == ["one two", " three"]


def test_one_in_fifty_in_the_long_run() -> None:
    split = Split(HASH_RANGE // VALID_ONE_IN, 0)
    sides = [piece.valid for piece in split.pieces(iter(parts_of([f"document {i}" for i in range(20_000)])))]
    assert 300 < sum(sides) < 500


@pytest.mark.parametrize("texts", [["line of a book\n" * 20_000], ["tiny\n" * 300], [f"{i}\n" * 900 for i in range(9)]])
def test_small_corpora_have_both_sides(texts: list[str]) -> None:
    numbered = ["".join(f"{i} {line}\n" for i, line in enumerate(text.split("\n"))) for text in texts]
    split = survey(iter(parts_of(numbered)))
    assert split is not None
    pieces = list(split.pieces(iter(parts_of(numbered))))
    valid = sum(len(piece.text) for piece in pieces if piece.valid)
    total = sum(map(len, numbered))
    assert "".join(piece.text for piece in pieces) == "".join(numbered)
    assert sum(piece.ends for piece in pieces) == len(numbered)
    assert min(32_768, total // 4) <= valid <= total * 0.6


def test_many_documents_stay_whole() -> None:
    split = survey(iter(parts_of([f"{i} " * 5000 for i in range(200)])))
    assert split is not None
    assert split.piece_chars == 0


def test_one_huge_document_among_many_is_cut() -> None:
    split = survey(iter(parts_of([f"{i}" for i in range(200)] + ["huge line\n" * 50_000])))
    assert split is not None
    assert split.piece_chars > 0


def test_no_text_has_no_split() -> None:
    assert survey(iter([])) is None
