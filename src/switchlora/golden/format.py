"""What a golden file must hold, checked once after loading: a broken file is the user's mistake, not a deviation.

Format: tests/data/golden/README.md. Numbers that differ are no business of this page.
"""

import json
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from switchlora.errors import UserError

Shape = tuple[int | None, ...]  # None: any length
DTYPES = tuple(np.dtype(name) for name in ("float32", "float64", "int32", "int64"))


def read(path: Path) -> dict[str, Any]:
    """The arrays of a file, by key.

    Raises:
        UserError: (a ValueError) there is no such file, or it is no .npz file of numbers.
    """
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            data = {key: archive[key] for key in archive.files}
    except FileNotFoundError:
        raise UserError("no such file; give the path of a golden .npz file") from None
    except (zipfile.BadZipFile, zlib.error, EOFError, OSError, ValueError, TypeError, RuntimeError, MemoryError,
            AttributeError) as error:  # fmt: skip
        raise UserError(f"cannot be read as .npz ({first_line(error)}); give a golden file") from None
    for key, array in data.items():
        if key != "meta_json" and array.dtype not in DTYPES:
            raise UserError(f"{key} is of dtype {array.dtype}, and only 32 and 64 bit numbers are read; record it anew")
    return data


def read_meta(data: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of the recorded run, checked as far as our own configuration does not check them."""
    if "meta_json" not in data:
        raise missing("meta_json")
    try:
        meta = json.loads(str(data["meta_json"]))
    except (ValueError, RecursionError) as error:
        raise UserError(f"meta_json does not parse ({first_line(error)}); give a golden file") from None
    if not isinstance(meta, dict):
        raise UserError(f"meta_json is a {type(meta).__name__}, and must be an object of settings; give a golden file")
    if "tokens" in data:
        check_meta(meta, COMMON | LLAMA)
    else:
        check_meta(meta, COMMON | LINEAR)
        _require(len(meta["dims"]) == len(meta["layers"]) + 1, meta, "dims", "must be one more than the layers")
    if not meta["fixed_interval"]:
        check_meta(meta, {"expect_switch_descend_step": COMMON["lr"]})
    _require(meta.get("descend_type", "exponential") == "exponential", meta, "descend_type",
             "is not supported; the paper's is exponential")  # fmt: skip
    return meta


Rule = tuple[Callable[[Any], bool], str]


def check_meta(meta: dict[str, Any], rules: Mapping[str, Rule]) -> None:
    """Refuse settings that are missing or of the wrong kind."""
    for key, (holds, rule) in rules.items():
        if key not in meta:
            raise missing(f"{key!r} of meta_json")
        _require(holds(meta[key]), meta, key, rule)


def check_arrays(data: Mapping[str, Any], needed: Mapping[str, Shape], optional: Mapping[str, Shape]) -> None:
    """Refuse arrays that are missing or of the wrong shape."""
    for key in needed:
        if key not in data:
            raise missing(key)
    for key, shape in {**needed, **optional}.items():
        if key not in data:
            continue
        found = data[key].shape
        if len(found) != len(shape) or any(b not in (None, a) for a, b in zip(found, shape, strict=True)):
            wanted = str(shape).replace("None", "any")
            raise UserError(f"{key} has shape {found}, and by meta_json it must be {wanted}; record it anew")


def check_range(data: Mapping[str, Any], keys: Iterable[str], end: int) -> None:
    """Refuse indices outside 0..end-1."""
    for key in keys:
        if not np.all((data[key] >= 0) & (data[key] < end)):
            raise UserError(f"{key} has entries outside 0..{end - 1}; record it anew")


def switch_shapes(name: str, steps: int, r: int) -> tuple[dict[str, Shape], dict[str, Shape]]:
    """What is recorded of the switches of one layer: what the replay needs, and what it compares if it is there."""
    needed: dict[str, Shape] = {"u": (steps,)}
    optional: dict[str, Shape] = {key: (steps,) for key in ("interval", "drawn", "num")}
    for side in ("A", "B"):
        needed[f"{side}_map"] = (steps, None, 2)
        optional |= {f"{key}_{side}": (steps, r) for key in ("fixed", "sel")}
        optional |= {f"{key}_{side}": (steps,) for key in ("cursor", "fn_jump", "overlap")}
    return ({f"sw/{name}/{key}": shape for key, shape in needed.items()},
            {f"sw/{name}/{key}": shape for key, shape in optional.items()})  # fmt: skip


def missing(what: str) -> UserError:
    """The error for something that the file should hold."""
    return UserError(f"{what} is missing; the format is in tests/data/golden/README.md")


def first_line(error: BaseException) -> str:
    """A message that fits into one line."""
    return (str(error).splitlines() or [type(error).__name__])[0]


def _require(condition: bool, meta: dict[str, Any], key: str, rule: str) -> None:
    if not condition:
        raise UserError(f"{key}={meta[key]!r} in meta_json: {rule}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and -1e300 < value < 1e300


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _are_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(v, str) and v for v in value) and 0 < len(value) == len({*value})


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


NUMBER: Rule = (_is_number, "must be a number")
BOOLEAN: Rule = (lambda value: isinstance(value, bool), "must be true or false")
DTYPE: Rule = (lambda value: value in ("float32", "float64"), "must be float32 or float64")
COMMON: dict[str, Rule] = {
    **{key: NUMBER for key in ("rank", "lora_alpha", "base_interval", "freeze_steps", "lr", "eps", "weight_decay")},
    "steps": (_is_count, "must be an integer of 1 or more"),
    "betas": (lambda value: _are_numbers(value) and len(value) == 2, "must be two numbers"),
    "clip_grad_norm": (lambda value: value is None or (_is_number(value) and value > 0),
                       "must be a number above 0, or null"),
    "fixed_interval": BOOLEAN,
    "continuous": BOOLEAN,
}  # fmt: skip
LINEAR: dict[str, Rule] = {
    "layers": (lambda value: _are_names(value) and not any("." in name for name in value),
               "must be a list of different names without dots"),
    "dims": (lambda value: isinstance(value, list) and all(map(_is_count, value)), "must be a list of sizes"),
    "dtype": DTYPE,
    "step_counter_dtype": DTYPE,
    "switching": BOOLEAN,
}  # fmt: skip
LLAMA: dict[str, Rule] = {
    "lora_layers": (_are_names, "must be a list of different names"),
    "config": (lambda value: isinstance(value, dict), "must be the fields of a LlamaConfig"),
    "snapshots": (_are_numbers, "must be a list of steps"),
}
