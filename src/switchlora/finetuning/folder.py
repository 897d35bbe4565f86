"""--output of `switchlora finetune`: whose runs it holds, which of them are over, and what --overwrite takes away.

A folder is taken for one configuration, which is written down there before anything else. A run is over when its
figures are filed, after all else that it leaves, so that whoever is killed in between has lost one run at most. Only
what such runs leave is ever removed: a folder that holds other things is not taken at all.
"""

import json
import re
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from switchlora.errors import UserError
from switchlora.machine.files import (
    LOCK,
    atomic_write_json,
    atomic_write_text,
    is_temporary,
    lies_in,
    require_no_file,
    writing,
)
from switchlora.options.values import show
from switchlora.training.presets import first_line

RESULT, RUNS, OPTIONS = "finetune.json", "runs", "finetune.yaml"
FACTS = {"rows": "the rows of --data", "weights": "the weights of --checkpoint"}  # beside the options
OURS = re.compile(r"(lr-.+|seed-\d+)\.json"), re.compile(r"seed-\d+")  # in runs/, and beside it


@dataclass(frozen=True)
class Wanted:
    """What the figures of a run must hold: these metrics of each of these splits, or that its loss was not finite."""

    splits: Sequence[str]
    metrics: Sequence[str]

    def check(self, figures: Any) -> None:
        """Raises ValueError: something is not there."""
        try:
            _ = float(figures["lr"]), int(figures["seed"])
            if figures["metrics"] is None:
                _ = figures["not_finite"]
                return
            _ = float(figures["seconds"]), *[float(figures["metrics"][s][m]) for s in self.splits for m in self.metrics]
        except (KeyError, TypeError, ValueError) as error:
            raise ValueError(f"no figures of a run: {first_line(error)}") from error


@dataclass(frozen=True)
class RunsFolder:
    """The folder of the runs of one configuration."""

    path: Path

    def require_ours(self) -> None:
        """Writes nothing.

        Raises:
            UserError: it is a file, or holds something else than runs of `switchlora finetune`.
        """
        require_no_file(self.path)
        if contents(self.path) and self._claim() is None:
            raise UserError(
                f"--output {show(str(self.path))}: is not empty and holds no runs of switchlora finetune; "
                "give another folder"
            )

    def require_apart(self, inputs: Mapping[str, str | None]) -> None:
        """Writes nothing.

        Args:
            inputs: what the runs are made from, by option.

        Raises:
            UserError: some of it is among what earlier runs left here, which new ones replace.
        """
        for option, name in inputs.items():
            if name is not None and lies_in(Path(name).expanduser(), self._left_by_runs()):
                raise UserError(
                    f"--output {show(str(self.path))}: holds {option} {show(name)}, which the runs need as it is; give "
                    "another folder"
                )

    def claim(self, configuration: Mapping[str, Any], *, overwrite: bool) -> None:
        """Take the folder for a configuration; with `overwrite` the runs of any earlier one go first.

        Raises:
            UserError: it holds runs with another one (what differs), or something else.
        """
        self.require_ours()
        theirs = self._claim()
        if overwrite and theirs is not None:
            with writing("the runs", self.path):
                self._discard()
        elif theirs is not None:
            self._refuse_differences(theirs, json.loads(json.dumps(dict(configuration))))
        with writing("the runs", self.path):
            self.path.mkdir(parents=True, exist_ok=True)
            atomic_write_text(self.path / OPTIONS, json.dumps(dict(configuration), indent=2) + "\n")
            (self.path / RUNS).mkdir(exist_ok=True)

    def finished(self, name: str, wanted: Wanted) -> dict[str, Any] | None:
        """The figures of a run that is over, or None.

        Raises:
            UserError: they are there and not whole.
        """
        path = self.path / RUNS / f"{name}.json"
        try:
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            wanted.check(found)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            raise UserError(f"{path}: cannot be read ({first_line(error)}); remove it to repeat that run") from None
        return found

    def file(self, name: str, figures: Mapping[str, Any]) -> None:
        """Say that a run is over."""
        with writing("a run", self.path):
            atomic_write_json(self.path / RUNS / f"{name}.json", dict(figures))

    def reopen(self, name: str) -> None:
        """Say that a run is not over any more."""
        with writing("a run", self.path):
            (self.path / RUNS / f"{name}.json").unlink(missing_ok=True)

    def _claim(self) -> dict[str, Any] | None:
        try:
            found = json.loads((self.path / OPTIONS).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return None  # a finetune.yaml for --config, say
        return found if isinstance(found, dict) and "rows" in found else None

    def _discard(self) -> None:
        """Remove all that runs leave. The claim stays until the next one takes its place: the folder is always ours."""
        for item in self._left_by_runs():
            shutil.rmtree(item) if item.is_dir() and not item.is_symlink() else item.unlink()

    def _left_by_runs(self) -> list[Path]:
        places = ((self.path / RUNS, OURS[0]), (self.path, OURS[1]))
        found = [item for folder, pattern in places for item in contents(folder) if pattern.fullmatch(item.name)]
        return [*found, *([self.path / RESULT] if (self.path / RESULT).exists() else [])]

    def _refuse_differences(self, theirs: Mapping[str, Any], ours: Mapping[str, Any]) -> None:
        for name, value in ours.items():
            if value == theirs.get(name):
                continue
            what = FACTS.get(name, f"--{name.replace('_', '-')}")
            was = "" if name in FACTS else f" (there {show(str(theirs.get(name)))}, now {show(str(value))})"
            raise UserError(
                f"--output {show(str(self.path))}: holds runs that differ in {what}{was}; give another folder, or "
                "--overwrite"
            )


def contents(path: Path) -> list[Path]:
    """What a folder holds, sorted, without the lock and what a kill left half written; nothing where there is none."""
    if not path.is_dir():
        return []
    return sorted(item for item in path.iterdir() if item.name != LOCK and not is_temporary(item))
