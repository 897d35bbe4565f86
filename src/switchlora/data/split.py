"""Which text trains and which validates: a hash of the text itself decides.

A unit of text is a validation unit when its 64-bit hash lies below a threshold, about 1 in 50. The decision
needs no list, no order and no random state: it is the same in every run, for every seed and sequence length,
whichever other files are added, and two copies of a document land on the same side. A unit is a document (a
part of about 1 MiB of a longer one).

That rule alone fails small corpora: a single book has one hash, ten documents leave validation empty four
times out of five. So the first SURVEY_BYTES are looked at first. If they are few documents (or one document
dominates), documents are cut at line ends into pieces that are hashed one by one; and where the threshold
would leave validation less than MIN_VALID_BYTES (or a quarter of a tiny corpus), it is raised to the smallest
hashes that fill it. Pieces stay in order and the end-of-text token follows only the last piece of a document,
on the side where that piece is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b

from switchlora.data.files import Part

VALID_ONE_IN = 50
SURVEY_BYTES = 8 << 20
MIN_VALID_BYTES = 32 << 10
FEW_DOCUMENTS = 64
DOMINANT_SHARE = 16  # a document larger than one part in this many of the surveyed text dominates it
SMALLEST_PIECE, LARGEST_PIECE = 1 << 10, 64 << 10  # characters
HASH_RANGE = 1 << 64


@dataclass(frozen=True)
class Piece:
    """A unit of the split: `ends` when the document ends here, `valid` when it belongs to validation."""

    text: str
    ends: bool
    valid: bool


@dataclass(frozen=True)
class Split:
    """The rule. threshold: units whose hash is below it validate. piece_chars: documents are cut to this; 0:
    not."""

    threshold: int
    piece_chars: int

    def pieces(self, documents: Iterator[Part]) -> Iterator[Piece]:
        """The documents in their order, cut if the rule says so, each piece with its side."""
        for part in documents:
            texts = cut(part.text, self.piece_chars) if self.piece_chars else [part.text]
            for number, text in enumerate(texts, start=1):
                ends = part.ends and number == len(texts)
                yield Piece(text, ends, valid=hash_of(text) < self.threshold)


def hash_of(text: str) -> int:
    """blake2b of the UTF-8 text, as a number below HASH_RANGE."""
    return int.from_bytes(blake2b(text.encode("utf-8"), digest_size=8).digest(), "big")


def cut(text: str, size: int) -> list[str]:
    """Cut into pieces of at most `size` characters, behind a line end if there is one, else before a
    space."""
    pieces, start = [], 0
    while len(text) - start > size:
        end = text.rfind("\n", start, start + size) + 1 or text.rfind(" ", start + 1, start + size)
        end = end if end > start else start + size
        pieces.append(text[start:end])
        start = end
    pieces.append(text[start:])
    return [piece for piece in pieces if piece]


def survey(documents: Iterator[Part]) -> Split | None:
    """Look at the first SURVEY_BYTES of text and choose the rule; None if there is no text at all.

    Holds that much text in memory, however long the corpus is."""
    parts: list[Part] = []
    total = 0
    for part in documents:
        parts.append(part)
        total += len(part.text.encode("utf-8"))
        if total >= SURVEY_BYTES:
            break
    if not total:
        return None
    piece_chars = min(LARGEST_PIECE, max(SMALLEST_PIECE, total // FEW_DOCUMENTS)) if _too_few(parts, total) else 0
    hashes: dict[int, int] = {}
    for piece in Split(0, piece_chars).pieces(iter(parts)):
        unit = hash_of(piece.text)
        hashes[unit] = hashes.get(unit, 0) + len(piece.text.encode("utf-8"))
    threshold, valid_bytes = HASH_RANGE // VALID_ONE_IN, 0
    for unit, size in sorted(hashes.items())[:-1]:  # the last one is left to training, whatever happens
        if valid_bytes >= min(MIN_VALID_BYTES, total // 4):
            break
        valid_bytes += size
        threshold = max(threshold, unit + 1)
    return Split(threshold, piece_chars)


def _too_few(parts: list[Part], total: int) -> bool:
    sizes: dict[str, int] = {}
    for part in parts:
        sizes[part.identity] = sizes.get(part.identity, 0) + len(part.text)
    return len(sizes) < FEW_DOCUMENTS or max(sizes.values()) * DOMINANT_SHARE > total
