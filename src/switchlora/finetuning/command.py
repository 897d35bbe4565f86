"""`switchlora finetune` from options to a table and one JSON: choose a learning rate, then run every seed with it.

Each run's figures are filed as soon as it is over (`runs/`), so that the same command goes on where it was interrupted.
"""

import dataclasses
import json
import shutil
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from switchlora.errors import UserError
from switchlora.finetuning.glue import TASKS
from switchlora.finetuning.metrics import require_packages
from switchlora.finetuning.options import FinetuneOptions
from switchlora.finetuning.rows import Rows, held_out, load_rows
from switchlora.finetuning.table import table
from switchlora.trained.loading import load_config, load_tokenizer, require_checkpoint
from switchlora.training import devices
from switchlora.training.export import command
from switchlora.training.files import alone_in, atomic_write_json, atomic_write_text, writing
from switchlora.training.loop import say
from switchlora.training.values import show

if TYPE_CHECKING:
    from switchlora.finetuning.training import Setting

JSON, RUNS, OPTIONS = "finetune.json", "runs", "finetune.yaml"
FREE = ("seeds", "overwrite", "device", "threads", "save", "output")  # may differ when the same command goes on


def finetune(options: FinetuneOptions) -> dict[str, Any]:
    """Run `switchlora finetune`; see docs/finetune.md.

    Returns:
        what finetune.json holds; of --apply-delta what the delta says of itself.

    Raises:
        UserError: a model or data that are not there or not whole, one without a tokenizer, or a folder of other runs.
        NonFiniteError: a loss is not finite.
    """
    options = _complete(options)
    tokenizer = load_tokenizer(str(options.checkpoint))
    device = devices.choose_device(options.device)
    devices.set_threads(options.threads)
    output = Path(str(options.output)).expanduser()
    if options.apply_delta is not None:
        return _applied(options, tokenizer, output)
    require_packages()
    task = TASKS[str(options.task)]
    rows = load_rows(task, options.data)
    from switchlora.finetuning.training import Setting

    setting = Setting(options, task, tokenizer, device)
    _require_runnable(setting)
    with writing("the runs", output):
        output.mkdir(parents=True, exist_ok=True)
    with alone_in(output):
        _claim(output, options, rows.fingerprint)
        result = _all_runs(setting, rows, output)
        with writing("the result", output):
            atomic_write_json(output / JSON, result)
    say(table(result))
    say(str(output / JSON))
    return result


def _complete(options: FinetuneOptions) -> FinetuneOptions:
    """The options with every default decided.

    Raises:
        UserError: what must be given is not, or the model has too few positions.
    """
    if options.checkpoint is None:
        raise UserError("--checkpoint: must be given; name the output folder of a finished run")
    require_checkpoint(options.checkpoint)
    if options.apply_delta is None and options.task is None:
        raise UserError(f"--task: must be given; it is one of {', '.join(TASKS)}")
    from switchlora.finetuning.options import DEFAULT_SEQ_LEN

    positions = getattr(load_config(options.checkpoint), "max_position_embeddings", None) or options.seq_len
    seq_len = options.seq_len or min(DEFAULT_SEQ_LEN, positions or DEFAULT_SEQ_LEN)
    if positions is not None and seq_len > positions:
        raise UserError(
            f"--seq-len {seq_len}: {show(options.checkpoint)} has {positions} positions; use {positions} or less"
        )
    name = f"finetune-{options.task}-{options.method}" if options.apply_delta is None else "finetune-applied"
    output = options.output or f"runs/{name}"
    if Path(output).expanduser().exists() and not Path(output).expanduser().is_dir():
        raise UserError(f"--output {show(output)}: is a file; give a folder")
    return dataclasses.replace(options, seq_len=seq_len, output=output, lr=options.rates)


def _require_runnable(setting: "Setting") -> None:
    """Find mistakes in rank and epsilon before anything is written."""
    from switchlora.finetuning.methods import prepare
    from switchlora.finetuning.models import load_classifier

    model = load_classifier(str(setting.options.checkpoint), setting.task, setting.tokenizer, 0)
    prepare(model, setting.options, 1.0, 1, 0)


def _claim(output: Path, options: FinetuneOptions, fingerprint: str) -> None:
    """Take the folder for these options.

    Raises:
        UserError: it holds runs with others.
    """
    mine = {name: value for name, value in options.to_dict().items() if name not in FREE} | {"rows": fingerprint}
    path = output / OPTIONS
    if options.overwrite:
        shutil.rmtree(output / RUNS, ignore_errors=True)
        (output / JSON).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    if path.is_file():
        theirs = json.loads(path.read_text(encoding="utf-8"))
        for name in mine:
            if json.loads(json.dumps(mine[name])) != theirs.get(name):
                what = "the rows of --data" if name == "rows" else f"--{name.replace('_', '-')}"
                was = "" if name == "rows" else f" (there {show(str(theirs.get(name)))}, now {show(str(mine[name]))})"
                raise UserError(
                    f"--output {show(str(output))}: holds runs that differ in {what}{was}; give another folder, or "
                    "--overwrite"
                )
    with writing("the runs", output):
        (output / RUNS).mkdir(exist_ok=True)
        atomic_write_text(path, json.dumps(mine, indent=2) + "\n")


def _all_runs(setting: "Setting", rows: Rows, output: Path) -> dict[str, Any]:
    from switchlora.finetuning.batches import encode
    from switchlora.finetuning.training import run

    options, task = setting.options, setting.task
    seq_len = options.seq_len or 0
    first_metric = task.metrics[0]

    def kept(name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
        path = output / RUNS / f"{name}.json"
        if path.is_file():
            found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
            return found
        found = make()
        with writing("a run", output):
            atomic_write_json(path, found)
        shown = ", ".join(f"{split} {_shown(metrics)}" for split, metrics in found["metrics"].items())
        say(f"{name}: {shown} ({found['seconds']:.0f} s)")
        return found

    rates, tuning = options.rates, []
    if len(rates) > 1:
        rest, part = (encode(some, setting.tokenizer, seq_len) for some in held_out(rows.train, options.held_out, 0))
        say(f"learning rates: {len(rest):,} rows to train on, {len(part):,} held out")
        for lr in rates:
            tuning.append(kept(f"lr-{lr:g}", lambda lr=lr: run(setting, rest, {"held out": part}, lr=lr, seed=0)))  # type: ignore[misc]
    best = max(tuning, key=lambda one: one["metrics"]["held out"][first_metric])["lr"] if tuning else rates[0]
    train = encode(rows.train, setting.tokenizer, seq_len)
    evaluated = {name: encode(some, setting.tokenizer, seq_len) for name, some in rows.evaluated.items()}
    what = f"{task.name}, {options.method}, lr {best:g}"
    say(f"{what}: {len(train):,} rows, {options.epochs} epochs, {options.seeds} seeds")
    seeds = [
        kept(
            f"seed-{seed}",
            lambda seed=seed: run(setting, train, evaluated, lr=best, seed=seed, folder=output / f"seed-{seed}"),  # type: ignore[misc]
        )
        for seed in range(options.seeds)
    ]
    return {
        "task": task.name,
        "method": options.method,
        "checkpoint": options.checkpoint,
        "lr": best,
        "lr_at_the_edge": len(rates) > 1 and best in (rates[0], rates[-1]),
        "metrics": {
            split: {metric: spread([one["metrics"][split][metric] for one in seeds]) for metric in task.metrics}
            for split in evaluated
        },
        "seeds": seeds,
        "tuning": tuning,
        "num_rows": {"train": len(train), **{name: len(some) for name, some in evaluated.items()}},
        "rows": rows.fingerprint,
        "command": command(),
        "config": options.to_dict(),
        **devices.machine_record(setting.device),
    }


def spread(values: list[float]) -> dict[str, Any]:
    """Mean and standard deviation (of a sample; None for one value)."""
    return {
        "mean": statistics.fmean(values),
        "sd": statistics.stdev(values) if len(values) > 1 else None,
        "n": len(values),
    }


def _shown(metrics: Mapping[str, float]) -> str:
    return " ".join(f"{name} {value:.1f}" for name, value in metrics.items())


def _applied(options: FinetuneOptions, tokenizer: Any, output: Path) -> dict[str, Any]:
    """--apply-delta: the fine-tuned classifier again, from the checkpoint and its delta."""
    from switchlora.finetuning.delta import apply_delta_, read_delta
    from switchlora.finetuning.models import load_classifier
    from switchlora.finetuning.training import save

    path = str(options.apply_delta)
    tensors, about, seed = read_delta(path)
    task = TASKS[about["task"]]
    if (output / "config.json").exists() and not options.overwrite:
        raise UserError(f"--output {show(str(output))}: holds a model already; give another folder, or --overwrite")
    model = load_classifier(str(options.checkpoint), task, tokenizer, about["seed"])
    apply_delta_(dict(model.named_parameters()), tensors, seed, path)
    with writing("the model", output):
        output.mkdir(parents=True, exist_ok=True)
        save(model, tokenizer, output)
    say(f"{output}: {options.checkpoint} with {path}, for {task.name}")
    return about
