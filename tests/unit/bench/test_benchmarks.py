"""The commands that are kept for later can be given: `benchmarks/accelerator.sh`, and the page that lists them."""

import shlex
import subprocess
from pathlib import Path

from switchlora.bench.options import BenchOptions
from switchlora.cli import COMMANDS, parse_flags

BENCHMARKS = Path(__file__).resolve().parents[3] / "benchmarks"


def accelerator_rows() -> dict[str, list[str]]:
    """Name and words of every row."""
    script = ["bash", str(BENCHMARKS / "accelerator.sh")]
    done = subprocess.run([*script, "--list"], capture_output=True, text=True, check=True, timeout=60)
    pairs = [line.split(": ", 1) for line in done.stdout.splitlines()]
    return {name: shlex.split(command) for name, command in pairs}


def test_every_command_is_valid() -> None:
    rows = accelerator_rows()
    assert len(rows) >= 8
    for words in rows.values():
        assert words[:2] == ["switchlora", "bench"]
        options = parse_flags("bench", COMMANDS["bench"], words[2:])
        assert isinstance(options, BenchOptions) and options.dtype == "bf16"


def test_the_page_names_every_row_and_every_file() -> None:
    page = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    for name in [*accelerator_rows(), *(path.stem for path in BENCHMARKS.glob("*.json"))]:
        assert f"`{name}.json`" in page, name


def test_an_unknown_row_is_a_mistake() -> None:
    script = ["bash", str(BENCHMARKS / "accelerator.sh")]
    done = subprocess.run([*script, "no-such-row"], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 2 and "no row no-such-row" in done.stderr
