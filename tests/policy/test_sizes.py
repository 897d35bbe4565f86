"""Files stay short enough to be read in one go; the algorithm in one short file of its own."""

from pathlib import Path

from tests.policy.source import REPOSITORY, listed, write_tree

MAX_LINES = 300
MAX_ALGORITHM_LINES = 200
FOLDERS = ("src", "tests", "examples", "benchmarks", "experiments")


def count_lines(path: Path) -> int:
    return len(path.read_text(encoding="utf-8").splitlines())


def too_long(root: Path, *, limit: int) -> list[str]:
    """Python files under `root` with more than `limit` lines; split such a file by idea, not by size."""
    counts = {path: count_lines(path) for folder in FOLDERS for path in sorted((root / folder).rglob("*.py"))}
    return [f"{path}: {num_lines} lines, at most {limit}" for path, num_lines in counts.items() if num_lines > limit]


def test_no_file_is_too_long():
    violations = too_long(REPOSITORY, limit=MAX_LINES)
    assert violations == [], listed(violations)


def test_the_algorithm_stands_in_one_short_file():
    assert 0 < count_lines(REPOSITORY / "src/switchlora/switching.py") < MAX_ALGORITHM_LINES


def test_a_long_file_is_found(tmp_path):
    write_tree(tmp_path, {"src/a.py": "x\n" * 300, "tests/unit/b.py": "x\n" * 301, "other/c.py": "x\n" * 301})
    assert too_long(tmp_path, limit=300) == [f"{tmp_path / 'tests/unit/b.py'}: 301 lines, at most 300"]
