"""Which code made a result: a number that is another one as soon as a line of it is."""

import functools
import hashlib
from pathlib import Path

from switchlora.methods import is_file

PACKAGE = Path(__file__).resolve().parents[1]


def source_hash(method: str = "") -> str:
    """Of this package's Python files and, where the method is a file of one's own, of that: 12 hexadecimal digits."""
    found = hashlib.sha256(_package())
    if is_file(method):
        found.update(Path(method).expanduser().read_bytes())
    return found.hexdigest()[:12]


@functools.cache
def _package() -> bytes:
    found = hashlib.sha256()
    for path in sorted(PACKAGE.rglob("*.py")):
        found.update(f"{path.relative_to(PACKAGE).as_posix()}\0".encode() + path.read_bytes() + b"\0")
    return found.digest()
