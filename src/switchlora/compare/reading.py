"""Results that are there already: read whole, and held against what this comparison would do.

What is damaged, of another configuration or of other data is refused by name; nothing is dropped in silence.
"""

import itertools
import json
import math
from collections.abc import Callable, Hashable, Iterable, Mapping
from pathlib import Path
from typing import Any

from switchlora.compare.options import SAME_FOR_ALL
from switchlora.compare.plan import PlannedRun
from switchlora.compare.results import KINDS
from switchlora.errors import UserError
from switchlora.options.values import show
from switchlora.training.options import PretrainOptions
from switchlora.training.resolve import difference

NUMBERS = ("validation_loss", "validation_perplexity", "bits_per_byte", "step_seconds", "tokens_per_second",
           "peak_memory_bytes")  # fmt: skip
OF_ALL = {"method": str, "command": str, "steps": int, "diverged": bool, "hardware": dict, "versions": dict,
          "curve": dict}  # fmt: skip
IF_THERE: dict[str, Callable[[Any], bool]] = {
    "hardware": lambda value: isinstance(value, dict) and all(isinstance(v, Hashable) for v in value.values()),
    "trainable_parameters": lambda value: isinstance(value, int),
    "traffic_bytes": lambda value: isinstance(value, dict) and all(map(_is_finite, value.values())),
    "error": lambda value: isinstance(value, str),
    "threads": lambda value: isinstance(value, int),
}
CURVES = (("tokens", "seconds", "validation_loss"), ("train_tokens", "train_loss"))
NOT_COMPARED = ("output", "device", "threads", "cpu_products", "eval_every", "save_every", "keep", "track")


def read(folder: Path, runs: list[PlannedRun]) -> dict[str, dict[str, Any]]:
    """The records of those runs that are over, by id.

    Raises:
        UserError: a file is damaged, is of a run with other options, or of a run on other data.
    """
    records = {}
    for run in runs:
        path = folder / f"{run.id}.json"
        if path.exists():
            records[run.id] = _checked(_load(path, run), run, path)
    ids: dict[str, list[str]] = {}
    for id, record in records.items():
        if not record["diverged"]:
            ids.setdefault(str(record.get("data_fingerprint")), []).append(id)
    if len(ids) > 1:
        raise UserError(
            f"--output: the results in {show(str(folder))} were trained on different data, "
            f"{'; '.join(map(_some, sorted(ids.values(), key=len)))}; remove all but one kind"
        )
    return records


def of_same_data(records: Mapping[str, Mapping[str, Any]], fingerprint: str) -> bool:
    """Whether the results are of the text with this fingerprint (as far as there are any)."""
    known = {record.get("data_fingerprint") for record in records.values() if not record["diverged"]}
    return not known or fingerprint in known


def refuse_other_comparisons(folder: Path, steps: set[int], like: PretrainOptions) -> None:
    """Results of another length, model, text or batch are of another comparison, whichever method they are of.

    Raises:
        UserError: there are some; says what differs.
    """
    here = " and ".join(map(str, sorted(steps)))
    for path in sorted(folder.glob("*steps.json")):
        there = path.stem.rsplit("-", 1)[-1].removesuffix("steps")
        if there.isdigit() and int(there) not in steps:
            raise _of_another(path, f"steps {there} there, {here} here")
        try:
            options = PretrainOptions.merge(json.loads(path.read_text("utf-8"))["config"])
        except (OSError, ValueError, KeyError, TypeError, UserError):
            continue  # `read` names it, if it is of a run of ours
        _refuse_difference(path, options, like, [name for name in SAME_FOR_ALL if name != "steps"])


def _load(path: Path, run: PlannedRun) -> dict[str, Any]:
    try:
        record: dict[str, Any] = json.loads(path.read_text("utf-8"))
        PretrainOptions.merge(record["config"])
        if wrong := _wrong(record, run):
            raise ValueError(f"{', '.join(dict.fromkeys(wrong))}: missing, or not what it should be")
    except (ValueError, KeyError, TypeError, AttributeError, IsADirectoryError) as error:
        raise UserError(
            f"{show(str(path))}: cannot be read ({error}); remove it, and its run is gathered again"
        ) from None
    return record


def _wrong(record: Mapping[str, Any], run: PlannedRun) -> list[str]:
    """What a report could not be drawn from, or is not of this run."""
    wrong = [name for name, kind in OF_ALL.items() if not isinstance(record.get(name), kind)]
    own = {"id": run.id, "label": run.contender.label, "r": run.contender.r, "lr": run.lr, "other_lr": run.other_lr,
           "seed": run.seed}  # fmt: skip
    wrong += [name for name, value in own.items() if record.get(name) != value]
    wrong += [name for name in (() if record["diverged"] else NUMBERS) if not _is_finite(record.get(name))]
    wrong += [] if record["diverged"] or record.get("steps") == run.steps else ["steps"]
    wrong += [name for name, is_good in IF_THERE.items() if not (record.get(name) is None or is_good(record[name]))]
    kinds = record.get("bytes_by_kind") or {}
    wrong += [name for name in KINDS if kinds and not _is_finite(kinds.get(name))]
    if not isinstance(record.get("curve"), dict):
        return wrong
    for columns in CURVES:
        found = [record["curve"].get(name) for name in columns]
        if not all(isinstance(values, list) and all(map(_is_finite, values)) for values in found):
            wrong += [f"curve ({', '.join(columns)})"]
        elif len(set(map(len, found))) > 1 or not (found[0] or record["diverged"]):
            wrong += [f"curve ({', '.join(columns)}: as many values in each)"]
        elif any(b <= a for a, b in itertools.pairwise([0, *found[0]])):
            wrong += [f"curve ({columns[0]}: ascending)"]
    return wrong


def _is_finite(value: object) -> bool:
    return isinstance(value, int | float) and math.isfinite(value)


def _some(ids: Iterable[str]) -> str:
    """The first few of them, and how many more."""
    first, *others = ids
    return first + (f" and {len(others)} more" if others else "")


def _checked(record: dict[str, Any], run: PlannedRun, path: Path) -> dict[str, Any]:
    _refuse_difference(path, PretrainOptions.merge(record["config"]), run.options(), list(PretrainOptions.specs()))
    return record


def _refuse_difference(path: Path, there: PretrainOptions, here: PretrainOptions, names: list[str]) -> None:
    """Among options of these names."""
    found = [flag.removeprefix("--").replace("-", "_") for flag in difference(there, here)]
    differing = [name for name in found if name in names and name not in NOT_COMPARED]
    if differing:
        raise _of_another(
            path,
            ", ".join(
                f"{name} {show(getattr(there, name))} there, {show(getattr(here, name))} here" for name in differing
            ),
        )


def _of_another(path: Path, what: str) -> UserError:
    return UserError(
        f"--output: {show(str(path))} is of another configuration ({what}); give another --output, or the options with "
        "which it began"
    )
