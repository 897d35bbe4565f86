"""README's fenced blocks, and whether what they tell people to type can work.

Every `bash` and `python` block counts, unless the line above its fence says why not:

    <!-- not run: needs the network -->

A bash block is not executed (it installs, trains, takes minutes); each of its commands is checked as far as that is
cheap: files of this repository that it names exist, the make target exists, the `switchlora` command line parses with
the real parser, the script or module that `python` is given exists, the extras that `pip` is given exist. A command of
a kind not known here is a violation, so that nothing passes unchecked. Python blocks are executed, in their order and
in one namespace.
"""

import importlib.util
import re
import shlex
import tomllib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(
    r"^(?:<!-- *not run: *(?P<reason>\S.*?) *-->\n+)?^```(?P<language>\w+)[^\n]*\n(?P<text>.*?)^```$",
    re.M | re.S,
)
ASSIGNMENT = re.compile(r"^[A-Z_]+=")
FOLDERS = ("src/", "tests/", "docs/", "configs/", "examples/", "benchmarks/", "experiments/")
# Said to change nothing that this project could get wrong.
PLAIN_COMMANDS = {"cd", "git", "ls", "cat", "export", "source", "."}


@dataclass(frozen=True)
class Block:
    """One fenced block: its language (`bash`), its text, and why it is not to be run (None: it is)."""

    language: str
    text: str
    reason: str | None = None


def read_blocks(markdown: str) -> list[Block]:
    """All fenced blocks of a page that name a language."""
    return [Block(match["language"], match["text"], match["reason"]) for match in FENCE.finditer(markdown)]


def commands(block: Block) -> list[list[str]]:
    """The words of each command of a bash block; comments, prompts and `FOO=bar` in front are dropped."""
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        for part in re.split(r"&&|;|\|", line.removeprefix("$ ")):
            words = shlex.split(part, comments=True)
            while words and ASSIGNMENT.match(words[0]):
                words.pop(0)
            if words:
                found.append(words)
    return found


@dataclass(frozen=True)
class Checker:
    """Says what is wrong with a command of README.

    root: the repository. parse: takes the words after `switchlora`, raises when they do not parse.
    """

    root: Path
    parse: Callable[[list[str]], object]

    def complaint(self, words: list[str]) -> str | None:
        """What is wrong with one command, or None."""
        missing = [word for word in words if word.startswith(FOLDERS) and not (self.root / word).exists()]
        if missing:
            return f"no such file: {missing[0]}"
        program = words[0].removeprefix(".venv/bin/")
        if program in PLAIN_COMMANDS:
            return None
        check = {
            "make": self._make,
            "switchlora": self._switchlora,
            "python": self._python,
            "python3": self._python,
            "pip": self._pip,
        }.get(program)
        if check is None:
            return f"the policy test does not know how to check `{program}`"
        return check(words[1:])

    def _make(self, arguments: list[str]) -> str | None:
        makefile = (self.root / "Makefile").read_text(encoding="utf-8")
        targets = set(re.findall(r"^([a-z][a-z-]*):", makefile, re.M))
        unknown = [word for word in arguments if not ASSIGNMENT.match(word) and word not in targets]
        return f"Makefile has no target {unknown[0]}" if unknown else None

    def _switchlora(self, arguments: list[str]) -> str | None:
        try:
            self.parse(arguments)
        except ValueError as error:
            return f"switchlora does not take these arguments: {error}"
        return None

    def _python(self, arguments: list[str]) -> str | None:
        if arguments[:2] == ["-m", "switchlora"]:
            return self._switchlora(arguments[2:])
        if arguments[:1] == ["-m"]:
            if arguments[1].split(".")[0] == "pip":
                return self._pip(arguments[2:])
            return None if importlib.util.find_spec(arguments[1]) else f"no module {arguments[1]}"
        return None if (self.root / arguments[0]).is_file() else f"no such file: {arguments[0]}"

    def _pip(self, arguments: list[str]) -> str | None:
        project = tomllib.loads((self.root / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        extras = {
            extra for words in arguments for group in re.findall(r"\[(.*?)\]", words) for extra in group.split(",")
        }
        unknown = sorted(extras - project["optional-dependencies"].keys())
        return f"pyproject.toml has no extra {unknown[0]}" if unknown else None
