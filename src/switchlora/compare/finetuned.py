"""`switchlora compare --finetuned`: results of `switchlora finetune` side by side, held against the first of them.

Runs of one seed share the order of rows and the initial head, so differences are taken seed by seed; their mean gets
Student's interval and the paired t-test. Nothing is trained here.
"""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from switchlora.compare.statistics import paired_difference
from switchlora.errors import UserError
from switchlora.finetuning.folder import RESULT
from switchlora.finetuning.glue import TASKS
from switchlora.options.values import show

JSON = "finetuned.json"
RECIPE = ("epochs", "batch_size", "seq_len", "warmup", "weight_decay", "clip", "head_lr", "lr", "held_out")
RECIPE_OF = {"lora": ("r", "lora_alpha"), "switchlora": ("r", "lora_alpha", "interval"), "subset": ("epsilon", "silo")}
NAMES = {"lr": "the rates tried"}  # of options in notes, where it is another
COVERS = (
    "Spread, interval and p are over fine-tuning seeds alone: of one pre-trained checkpoint each, on one dev set, with "
    "one rate that one run chose. They do not say whether another pre-training would give the same."
)


def side_by_side(names: Sequence[str]) -> dict[str, Any]:
    """Every metric of every result, and what it differs by from the first result.

    Args:
        names: folders of `switchlora finetune`, or their finetune.json; one task and one set of rows.

    Returns:
        plain data: the task; `results`, each with label, recipe, metrics, and by split and metric the paired difference
        (value - first, its 95 % interval, the number of seeds in common) and the p-value of the paired t-test (None
        below two seeds in common, or where all of them differ alike); `unlike`, how each was fine-tuned otherwise than
        the first; and `covers`, what the spread is of.

    Raises:
        UserError: a result that is not there or not whole, or one of another task or other rows.
    """
    results = [_read(name) for name in names]
    first = results[0]
    for name, result in zip(names, results, strict=True):
        for key, what in (("task", "the task"), ("rows", "the rows")):
            if result[key] != first[key]:
                raise UserError(
                    f"--finetuned {show(name)}: differs from {show(names[0])} in {what}; compare results of one task "
                    "on the same data"
                )
    found, unlike = [], {}
    for label, result in zip(_labels(names, results), results, strict=True):
        differences = {
            split: {metric: _difference(result, first, split, metric) for metric in metrics}
            for split, metrics in result["metrics"].items()
        }
        kept = {key: result[key] for key in ("checkpoint", "method", "lr", "metrics")}
        recipe = _recipe(result)
        kept |= {"recipe": recipe, "lr_at_the_edge": result.get("lr_at_the_edge", False)}
        found.append({"label": label, **kept, "differences": None if result is first else differences})
        changed = {key: [_recipe(first)[key], value] for key, value in recipe.items() if key in _recipe(first)}
        unlike[label] = {key: pair for key, pair in changed.items() if pair[0] != pair[1]}
    return {
        "task": first["task"],
        "results": found,
        "unlike": {label: one for label, one in unlike.items() if one},
        "covers": COVERS,
    }


def _recipe(result: dict[str, Any]) -> dict[str, Any]:
    """The options that count with its method. The held-out part does where there were rates to choose from."""
    config = result["config"]
    names = [name for name in RECIPE if name != "held_out" or len(config.get("lr") or ()) > 1]
    return {name: config.get(name) for name in (*names, *RECIPE_OF.get(result["method"], ()))}


def table(found: dict[str, Any]) -> str:
    """A row for each metric and result, for the terminal; in percent."""
    lines = [f"{found['task']}: mean ± standard deviation over seeds, and the paired difference to the first"]
    width = max(len(result["label"]) for result in found["results"])
    for split, metrics in found["results"][0]["metrics"].items():
        for metric in metrics:
            lines += ["", f"{split} {metric}"]
            for result in found["results"]:
                value = result["metrics"][split][metric]
                cell = f"{value['mean']:6.2f}" + (f" ± {value['sd']:.2f}" if value["sd"] is not None else "")
                if result["differences"] is not None:
                    cell += f"   {_shown(result['differences'][split][metric])}"
                lines.append(f"  {result['label']:{width}}  n = {value['n']}  {cell}")
    lines += ["", *(f"{result['label']}: {_made(result)}" for result in found["results"])]
    for label, one in found["unlike"].items():
        pairs = ", ".join(
            f"{NAMES.get(key, key)} {_value(there)} instead of {_value(here)}" for key, (here, there) in one.items()
        )
        lines += ["", f"note: {label} was fine-tuned with {pairs}"]
    return "\n".join([*lines, "", found["covers"]])


def _made(result: dict[str, Any]) -> str:
    """By which method, at which rate of which, and the options of that method."""
    parts, rates = [f"{result['method']}, lr {result['lr']:g}"], result["recipe"]["lr"] or ()
    if len(rates) > 1:
        parts.append(f"the best of {_value(rates)}" + " (at the edge)" * result["lr_at_the_edge"])
    parts += [f"{name} {_value(result['recipe'][name])}" for name in RECIPE_OF.get(result["method"], ())]
    return ", ".join(parts)


def _value(value: Any) -> str:
    values = value if isinstance(value, list | tuple) else [value]
    return " ".join(format(one, "g") if isinstance(one, float) else str(one) for one in values)


def _shown(difference: dict[str, Any]) -> str:
    if difference["mean"] is None:
        return "no seed in common"
    text = f"{difference['mean']:+.2f}"
    if difference["n"] > 1 and difference["low"] is None:
        return f"{text} over {difference['n']} seeds; the same with every seed, so no test is possible"
    if difference["low"] is not None:
        text += f" [{difference['low']:+.2f}, {difference['high']:+.2f}] over {difference['n']} seeds"
    return text + (f", p = {difference['p']:.3g}" if difference["p"] is not None else "")


def _difference(result: dict[str, Any], first: dict[str, Any], split: str, metric: str) -> dict[str, Any]:
    values, baseline = (
        {one["seed"]: float(one["metrics"][split][metric]) for one in each["seeds"]} for each in (result, first)
    )
    found = paired_difference(values, baseline)
    p = None
    if found["low"] is not None:
        from scipy.stats import ttest_rel

        seeds = sorted(values.keys() & baseline.keys())
        p = float(ttest_rel([values[seed] for seed in seeds], [baseline[seed] for seed in seeds]).pvalue)
    return {**found, "p": p}


def _read(name: str) -> dict[str, Any]:
    path = Path(name).expanduser()
    path = path / RESULT if path.is_dir() else path
    try:
        result: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        _require_whole(result)
    except OSError as error:
        raise UserError(
            f"--finetuned {show(name)}: holds no {RESULT} ({error.strerror}); give the output folder of a finished "
            "switchlora finetune"
        ) from None
    except (ValueError, KeyError, TypeError, AttributeError):
        raise UserError(
            f"--finetuned {show(name)}: is no result of switchlora finetune; give its output folder"
        ) from None
    return result


def _require_whole(result: dict[str, Any]) -> None:
    """Raises ValueError, KeyError, TypeError, AttributeError: something is missing, or is not what it should be."""
    task = TASKS[result["task"]]
    _ = result["rows"], dict(result["config"])
    _require(str, result["checkpoint"], result["method"])
    _require(bool, result.get("lr_at_the_edge", False))
    _require_numbers(result["lr"], *(result["config"].get("lr") or ()))
    splits = [name for name, _, _ in task.splits]
    if not result["seeds"] or sorted(result["metrics"]) != sorted(splits):
        raise ValueError
    for split in splits:
        if sorted(result["metrics"][split]) != sorted(task.metrics):
            raise ValueError
        for metric, one in result["metrics"][split].items():
            _require_numbers(one["mean"], one["n"], 0 if one["sd"] is None else one["sd"])
            for each in result["seeds"]:
                _require(int, each["seed"])
                _require_numbers(each["metrics"][split][metric])


def _require(kind: type, *values: Any) -> None:
    if not all(isinstance(value, kind) for value in values):
        raise TypeError


def _require_numbers(*values: Any) -> None:
    if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
        raise TypeError


def _labels(names: Sequence[str], results: Sequence[dict[str, Any]]) -> list[str]:
    labels = [f"{result['method']} of {result['checkpoint']}" for result in results]
    return labels if len(set(labels)) == len(labels) else list(names)
