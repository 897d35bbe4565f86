"""All runs of a configuration: one for each learning rate on a part of train, then one for each seed on all of it.

dev is read once in each of the latter, after the last step; it chooses nothing. A rate whose loss stops being finite
has lost, and the search goes on; a seed that does so ends the command, for a mean without it would flatter.
"""

import statistics
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from switchlora.errors import NonFiniteError
from switchlora.finetuning.batches import encode
from switchlora.finetuning.folder import RunsFolder, Wanted
from switchlora.finetuning.rows import Rows, held_out
from switchlora.finetuning.training import DELTA, Setting, run
from switchlora.machine.console import say

HELD_OUT = "held out"
MODEL = "config.json"  # the one file that every saved model has


def all_runs(setting: Setting, rows: Rows, folder: RunsFolder) -> dict[str, Any]:
    """Run what is not over yet.

    Returns:
        plain data: the chosen rate, mean and standard deviation of every metric, and the figures of every run.

    Raises:
        NonFiniteError: no rate has a finite loss, or the chosen one has not with some seed.
    """
    options, task = setting.options, setting.task
    tuning = _search(setting, rows, folder) if len(options.rates) > 1 else []
    lr = best_rate(tuning, task.metrics[0]) if tuning else options.rates[0]
    encoded = {
        name: encode(some, setting.tokenizer, options.seq_len or 0)
        for name, some in (("train", rows.train), *rows.evaluated.items())
    }
    train = encoded["train"][0]
    evaluated = {name: encoded[name][0] for name in rows.evaluated}
    say(
        f"{task.name}, {options.method}, lr {lr:g}: {len(train):,} rows, {options.epochs} epochs, {options.seeds} seeds"
    )
    seeds = []
    for seed in range(options.seeds):
        left = folder.path / f"seed-{seed}"
        make = partial(run, setting, train, evaluated, lr=lr, seed=seed, folder=left)
        wanted = Wanted(tuple(evaluated), task.metrics)
        seeds.append(_once(folder, f"seed-{seed}", wanted, make, leaves=_left_by(setting, left)))
    return {
        "task": task.name,
        "method": options.method,
        "checkpoint": options.checkpoint,
        "lr": lr,
        "lr_at_the_edge": len(options.rates) > 1 and lr in (options.rates[0], options.rates[-1]),
        "metrics": {
            split: {metric: spread([one["metrics"][split][metric] for one in seeds]) for metric in task.metrics}
            for split in evaluated
        },
        "seeds": seeds,
        "tuning": tuning,
        "num_rows": {name: len(examples) for name, (examples, _) in encoded.items()},
        "num_cut_rows": {name: num_cut for name, (_, num_cut) in encoded.items()},
        "rows": rows.fingerprint,
    }


def best_rate(tuning: Sequence[Mapping[str, Any]], metric: str) -> float:
    """Of equally good rates the first.

    Args:
        tuning: figures of runs, in ascending order of their rates; `metrics` is None where the loss was not finite.

    Raises:
        NonFiniteError: it was so with all.
    """
    finite = [one for one in tuning if one["metrics"] is not None]
    if not finite:
        raise NonFiniteError(
            f"--lr {' '.join(format(one['lr'], 'g') for one in tuning)}: the loss is not finite with any of them; "
            "give lower ones, and another --output"
        )
    return float(max(finite, key=lambda one: one["metrics"][HELD_OUT][metric])["lr"])


def spread(values: list[float]) -> dict[str, Any]:
    """Mean and standard deviation (of a sample; None for one value)."""
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
    }


def _search(setting: Setting, rows: Rows, folder: RunsFolder) -> list[dict[str, Any]]:
    split = held_out(rows.train, setting.options.held_out, 0)
    rest, part = (encode(some, setting.tokenizer, setting.options.seq_len or 0)[0] for some in split)
    wanted = Wanted((HELD_OUT,), setting.task.metrics)
    say(f"learning rates: {len(rest):,} rows to train on, {len(part):,} held out")

    def tried(lr: float) -> dict[str, Any]:
        try:
            return run(setting, rest, {HELD_OUT: part}, lr=lr, seed=0)
        except NonFiniteError as error:
            return {"seed": 0, "lr": lr, "metrics": None, "not_finite": str(error)}

    return [_once(folder, name_of(lr), wanted, partial(tried, lr)) for lr in setting.options.rates]


def name_of(lr: float) -> str:
    """Of the run that tries a rate: all its digits, for two rates may share six of them."""
    return f"lr-{lr!r}".removesuffix(".0")


def _once(
    folder: RunsFolder, name: str, wanted: Wanted, make: Callable[[], dict[str, Any]], leaves: Sequence[Path] = ()
) -> dict[str, Any]:
    """The figures of a run, which is run unless it is over and all that it leaves is there."""
    found = folder.finished(name, wanted)
    absent = [path.name for path in leaves if not path.is_file()]
    if found is not None and not absent:
        return found
    if found is not None:
        say(f"{name}: is over, but {' and '.join(absent)} are asked for and not there; runs again")
        folder.reopen(name)
    found = make()
    folder.file(name, found)
    if found["metrics"] is None:
        say(f"{name}: the loss is not finite")
    else:
        shown = ", ".join(f"{split} {_shown(metrics)}" for split, metrics in found["metrics"].items())
        say(f"{name}: {shown} ({found['seconds']:.0f} s)")
    return found


def _left_by(setting: Setting, folder: Path) -> list[Path]:
    """What a seed's run leaves in its folder."""
    names = [DELTA] * (setting.options.method == "subset") + [MODEL] * setting.options.save
    return [folder / name for name in names]


def _shown(metrics: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.1f}" for name, value in metrics.items())
