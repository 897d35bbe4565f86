"""One file -> its documents, a bounded piece of text at a time.

What a document is depends on the format: a whole `.txt` file, a line of a `.jsonl`, a row of a `.parquet`. A
text file may be larger than memory, so a long document comes as several `Part`s, cut at line ends; `ends`
marks the last one. Every way in which a file can be bad ends in one `UserError` that names the file and,
where there are lines, the line: training on half of a truncated archive without a word would be worse than
stopping.
"""

import codecs
import gzip
import io
import json
import lzma
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from switchlora.errors import UserError, way_to_install

PART_BYTES = 1 << 20  # a document longer than this is handed on in parts of about this size
COMPRESSIONS = ("", ".gz", ".xz", ".zst")
TEXT_EXTENSIONS = tuple(".txt" + packed for packed in COMPRESSIONS)
JSONL_EXTENSIONS = tuple(".jsonl" + packed for packed in COMPRESSIONS)
EXTENSIONS = (*TEXT_EXTENSIONS, *JSONL_EXTENSIONS, ".parquet")
TEXT_FIELD = "text"


@dataclass(frozen=True)
class Part:
    """A document, or one part of a long one. `identity` is stable: the same document has the same one every
    run."""

    identity: str
    text: str
    ends: bool


def data_error(value: object, rule: str, way_out: str) -> UserError:
    """The one line a user sees for `--data VALUE`; whatever line breaks the reason brought are taken out."""
    return UserError(" ".join(f"--data {value}: {rule}; {way_out}".split()))


@contextmanager
def needs_extra(extra: str, value: object) -> Iterator[None]:
    """Around the import of a package that only some data needs: say what to install where it is missing."""
    try:
        yield
    except ImportError as error:
        raise data_error(value, f"reading it needs the package {error.name}", way_to_install(extra)) from error


def is_usable(path: Path) -> bool:
    """Whether `read_documents` knows this extension."""
    return path.name.lower().endswith(EXTENSIONS)


def read_documents(path: Path) -> Iterator[Part]:
    """The documents of one file, chosen by its extension (one of EXTENSIONS). Empty documents are left out.

    Raises UserError for a file that is unreadable, truncated, corrupt, not UTF-8, or has a bad line or row."""
    name = path.name.lower()
    with _bad_file(path):
        if name.endswith(".parquet"):
            yield from _parquet_rows(path)
            return
        with _open_binary(path) as stream:
            if name.endswith(JSONL_EXTENSIONS):
                yield from _json_lines(stream, path)
            else:
                yield from text_parts(stream, str(path))


@contextmanager
def _bad_file(path: Path) -> Iterator[None]:
    """Turn what the readers of archives and disks raise into a UserError that names the file."""
    try:
        yield
    except EOFError as error:
        raise data_error(
            path,
            "the file is truncated: it ends in the middle of its compressed data",
            "fetch or compress it again",
        ) from error
    except (gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise data_error(path, f"the file is corrupt ({error})", "fetch or compress it again") from error
    except OSError as error:
        raise data_error(
            path, f"the file cannot be read ({error.strerror or error})", "give a readable file"
        ) from error


def _open_binary(path: Path) -> BinaryIO:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return cast(BinaryIO, gzip.open(path, "rb"))
    if suffix == ".xz":
        return cast(BinaryIO, lzma.open(path, "rb"))
    if suffix == ".zst":
        return io.BufferedReader(_ZstdReader(path), buffer_size=1 << 16)
    return path.open("rb")


class _ZstdReader(io.RawIOBase):
    """Decompress a .zst of one or more frames. `zstandard.open` takes a truncated file for a short one; this
    does not."""

    def __init__(self, path: Path) -> None:
        with needs_extra("zstd", path):
            import zstandard
        self._error = zstandard.ZstdError
        self._file = path.open("rb")
        self._context = zstandard.ZstdDecompressor()
        self._frame: Any = self._context.decompressobj()
        self._inside = True  # an empty file is a truncated one, too: a frame has at least a header
        self._pending = b""

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()

    def readinto(self, buffer: Any) -> int:
        while not self._pending and self._fill():
            pass
        count = min(len(buffer), len(self._pending))
        buffer[:count] = self._pending[:count]
        self._pending = self._pending[count:]
        return count

    def _fill(self) -> bool:
        packed = (self._frame.unused_data if self._frame.eof else b"") or self._file.read(1 << 16)
        if not packed:
            if self._inside:
                raise EOFError("the last zstd frame is not whole")
            return False
        if self._frame.eof:
            self._frame = self._context.decompressobj()
        try:
            self._pending = self._frame.decompress(packed)
        except self._error as error:
            raise lzma.LZMAError(str(error)) from error
        self._inside = not self._frame.eof
        return True


def text_parts(stream: BinaryIO, identity: str) -> Iterator[Part]:
    """One document, in parts of about PART_BYTES that end at line ends (anywhere, in a line longer than
    that)."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    line_number, held = 1, ""
    while True:
        packed = stream.read(PART_BYTES)
        # A read may break a line: what follows its last line end waits for the next read, which brings the
        # rest.
        rest = stream.readline(PART_BYTES) if packed and not packed.endswith(b"\n") else b""
        data = packed + rest
        try:
            text = decoder.decode(data, final=not data)
        except UnicodeDecodeError as error:
            bad_line = line_number + error.object[: error.start].count(b"\n")
            raise _not_utf8(identity, bad_line) from error
        if held and (text or not data):
            yield Part(identity, held, ends=not data)
            held = ""
        held += text
        if not data:
            return
        line_number += data.count(b"\n")


def _json_lines(stream: BinaryIO, path: Path) -> Iterator[Part]:
    for number, line in enumerate(stream, start=1):
        if number == 1:
            line = line.removeprefix(codecs.BOM_UTF8)
        if not line.strip():
            continue
        try:
            record = _record(line.decode("utf-8"))
        except UnicodeDecodeError as error:
            raise _not_utf8(path, number) from error
        except (ValueError, RecursionError) as error:
            raise data_error(path, f"line {number} is not valid JSON ({error})", "mend or remove that line") from error
        text = text_of(record, where=f"{path}: line {number}")
        if text:
            yield Part(f"{path}:{number}", text, ends=True)


def _record(line: str) -> object:
    """JSON, where integers may have any number of digits: Python takes 4,300 of them, and none of ours is a text."""
    try:
        return json.loads(line)
    except json.JSONDecodeError:
        raise
    except ValueError:
        return json.loads(line, parse_int=float)


def _parquet_rows(path: Path) -> Iterator[Part]:
    with needs_extra("hf", path):
        import pyarrow
        import pyarrow.parquet

    number = 0
    try:
        with pyarrow.parquet.ParquetFile(path) as table:
            if TEXT_FIELD not in table.schema_arrow.names:
                columns = ", ".join(table.schema_arrow.names)
                raise data_error(
                    path,
                    f"there is no column {TEXT_FIELD!r} among its columns ({columns})",
                    f"name the column of the documents {TEXT_FIELD!r}",
                )
            for rows in table.iter_batches(batch_size=256, columns=[TEXT_FIELD]):
                for value in rows.column(0):
                    number += 1
                    text = text_of({TEXT_FIELD: value.as_py()}, where=f"{path}: row {number}")
                    if text:
                        yield Part(f"{path}#{number}", text, ends=True)
    except UnicodeDecodeError as error:
        raise data_error(path, f"row {number} is not UTF-8", "store the text as UTF-8") from error
    except pyarrow.ArrowException as error:
        raise data_error(
            path, f"the file is not a readable parquet file ({error})", "fetch or write it again"
        ) from error


def text_of(record: object, *, where: str) -> str:
    """The field `text` of one record, which must be there and be a string that UTF-8 can hold."""
    if not isinstance(record, dict) or not isinstance(record.get(TEXT_FIELD), str):
        found = "is no object" if not isinstance(record, dict) else _describe(record)
        raise data_error(
            where,
            f"every record needs a string in the field {TEXT_FIELD!r}, but this one {found}",
            "mend or remove it",
        )
    text: str = record[TEXT_FIELD]
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:  # JSON can spell half of a surrogate pair
        raise data_error(
            where, "the text holds half of a surrogate pair, which is no character", "mend or remove it"
        ) from error
    return text


def _describe(record: dict[str, Any]) -> str:
    if TEXT_FIELD in record:
        return f"holds {type(record[TEXT_FIELD]).__name__} there"
    return f"has the fields {', '.join(map(str, list(record)[:8])) or '(none)'}"


def _not_utf8(file: object, line: int) -> UserError:
    return data_error(file, f"line {line} is not UTF-8", "convert the file (iconv -f LATIN1 -t UTF-8, say)")
