"""What README tells people to type works: its commands exist and parse, its Python runs."""

import contextlib
import os
import subprocess
import sys

import pytest

from switchlora.cli import COMMANDS, parse_flags
from switchlora.errors import UserError
from tests.policy.readme import Block, Checker, commands, read_blocks
from tests.policy.source import REPOSITORY, listed, write_tree


def parse(words: list[str]) -> None:
    """What the command line does before it starts to work: flags, the YAML file, and every check of values."""
    if words[0] in COMMANDS:
        with contextlib.chdir(REPOSITORY):
            parse_flags(words[0], COMMANDS[words[0]], words[1:])
    elif words[0] not in ("--help", "--version"):
        raise UserError(f"unknown command {words[0]}")


def own_blocks(language: str) -> list[Block]:
    blocks = read_blocks((REPOSITORY / "README.md").read_text(encoding="utf-8"))
    return [block for block in blocks if block.language == language and not block.reason]


def test_every_command_can_be_typed():
    checker = Checker(REPOSITORY, parse)
    complaints = [
        f"{' '.join(words)}: {complaint}"
        for block in own_blocks("bash")
        for words in commands(block)
        if (complaint := checker.complaint(words))
    ]
    assert complaints == [], listed(complaints)


@pytest.mark.parametrize("first_steps", [["make", "demo"], ["make", "test"], ["switchlora", "pretrain"]])
def test_the_first_steps_are_there(first_steps):
    written = [words[: len(first_steps)] for block in own_blocks("bash") for words in commands(block)]
    assert first_steps in written


def test_every_python_block_runs(tmp_path):
    blocks = own_blocks("python")
    assert blocks, "README shows no Python that runs"
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "PYTHONPATH": str(REPOSITORY / "src")}
    program = "\n".join(block.text for block in blocks)
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr


PAGE = """
```bash
# a comment
$ make demo && FOO=1 make test -k
switchlora pretrain \\
    --steps 10  # short
```

<!-- not run: needs the network -->
```python
import nowhere
```
```python
x = 1
```
"""


def test_blocks_and_commands_are_read():
    bash, skipped, python = read_blocks(PAGE)
    assert commands(bash) == [
        ["make", "demo"],
        ["make", "test", "-k"],
        ["switchlora", "pretrain", "--steps", "10"],
    ]
    assert (skipped.language, skipped.reason) == ("python", "needs the network")
    assert (python.text, python.reason) == ("x = 1\n", None)


def test_the_real_command_line_is_asked():
    checker = Checker(REPOSITORY, parse)
    assert checker.complaint(["switchlora", "pretrain", "--steps", "10"]) is None
    assert "--stpes" in checker.complaint(["switchlora", "pretrain", "--stpes", "10"])
    assert "steps" in checker.complaint(["switchlora", "pretrain", "--steps", "ten"])
    assert "nowhere.yaml" in checker.complaint(["switchlora", "pretrain", "--config", "nowhere.yaml"])
    assert "pretrian" in checker.complaint(["switchlora", "pretrian"])


@pytest.fixture
def made_up(tmp_path):
    """A checker for a made-up project whose `switchlora` takes `pretrain` alone."""

    def parse_made_up(words):
        if words[0] != "pretrain":
            raise ValueError("no such command")

    write_tree(
        tmp_path,
        {
            "Makefile": "demo: x\n\techo\n",
            "pyproject.toml": "[project.optional-dependencies]\nhf = []\n",
            "examples/a.py": "",
            "configs/a.yaml": "",
        },
    )
    return Checker(tmp_path, parse_made_up)


@pytest.mark.parametrize(
    "command",
    [
        "make demo",
        "make demo VENV=x",
        "switchlora pretrain --config configs/a.yaml",
        ".venv/bin/switchlora pretrain",
        "python -m switchlora pretrain",
        "python examples/a.py",
        "python -m json",
        "pip install 'switchlora[hf]'",
        "cd switchlora",
    ],
)
def test_a_good_command_passes(made_up, command):
    assert made_up.complaint(commands(Block("bash", command))[0]) is None


@pytest.mark.parametrize(
    ("command", "complaint"),
    [
        ("make dmeo", "no target dmeo"),
        ("switchlora train", "does not take"),
        ("switchlora pretrain --config configs/b.yaml", "no such file: configs/b.yaml"),
        ("python -m switchlora train", "does not take"),
        ("python examples/b.py", "no such file"),
        ("python -m json tests/data/b.json", "no such file"),
        ("python -m json_nowhere", "no module"),
        ("pip install 'switchlora[tpu]'", "no extra tpu"),
        ("curl x", "does not know how to check `curl`"),
    ],
)
def test_a_bad_command_is_found(made_up, command, complaint):
    found = made_up.complaint(commands(Block("bash", command))[0])
    assert found is not None
    assert complaint in found
