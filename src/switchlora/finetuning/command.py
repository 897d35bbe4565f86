"""`switchlora finetune` from options to a table and one JSON; and --apply-delta, which makes a model of a delta again.

Whatever is wrong with options, model or data is said before anything is written.
"""

import dataclasses
import shutil
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from switchlora.errors import UserError
from switchlora.finetuning.folder import RESULT, RunsFolder, contents
from switchlora.finetuning.glue import TASKS
from switchlora.finetuning.metrics import require_packages
from switchlora.finetuning.options import FinetuneOptions
from switchlora.finetuning.rows import Rows, held_out, load_rows
from switchlora.finetuning.table import table
from switchlora.machine import description, devices
from switchlora.machine.console import say
from switchlora.machine.files import (
    alone_in,
    atomic_write_json,
    require_no_file,
    require_writable,
    temporary_beside,
    writing,
)
from switchlora.options.fields import flag
from switchlora.options.values import show
from switchlora.trained.loading import (
    load_config,
    load_tokenizer,
    require_checkpoint,
    require_end_of_text,
    require_tokens,
)
from switchlora.training.export import command

if TYPE_CHECKING:
    from switchlora.finetuning.training import Setting

JSON = RESULT
APPLIED = "applied.json"  # says that a folder is one of --apply-delta's
APPLIES = ("checkpoint", "task", "apply_delta", "output", "overwrite", "seq_len", "lr")  # seq_len and lr are completed
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
    output = Path(str(options.output)).expanduser()
    if options.apply_delta is not None:
        return _applied(options, output)
    RunsFolder(output).require_apart({"--checkpoint": options.checkpoint, "--data": options.data})
    RunsFolder(output).require_ours()
    require_writable(output)
    require_packages()
    tokenizer = load_tokenizer(str(options.checkpoint))
    require_end_of_text(str(options.checkpoint), tokenizer)
    device = devices.choose_device(options.device)
    devices.set_threads(options.threads)
    task = TASKS[str(options.task)]
    rows = load_rows(task, options.data)
    from switchlora.finetuning.runs import all_runs
    from switchlora.finetuning.training import Setting

    setting = Setting(options, task, tokenizer, device)
    configuration = {name: value for name, value in options.to_dict().items() if name not in FREE}
    configuration |= {"rows": rows.fingerprint, "weights": _require_runnable(setting, rows)}
    with alone_in(output):
        folder = RunsFolder(output)
        folder.claim(configuration, overwrite=options.overwrite)
        result = all_runs(setting, rows, folder) | {
            "weights": configuration["weights"],
            "command": command(),
            "config": options.to_dict(),
            **description.machine_record(device),
        }
        result["versions"] |= {name: version(name) for name in ("scikit-learn", "scipy")}
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
    return dataclasses.replace(options, seq_len=seq_len, output=output, lr=options.rates)


def _require_runnable(setting: "Setting", rows: Rows) -> str:
    """Find mistakes in rank, epsilon and lengths before anything is written.

    Returns:
        the checksum of the checkpoint's weights.
    """
    from switchlora.data.tokenizer import num_ids
    from switchlora.finetuning.batches import encode
    from switchlora.finetuning.delta import checksum
    from switchlora.finetuning.methods import prepare
    from switchlora.finetuning.models import IN_PYTHON, body, is_saveable, load_classifier, require_saveable

    if len(setting.options.rates) > 1:
        held_out(rows.train, setting.options.held_out, 0)
    seq_len = setting.options.seq_len or 0
    encode(rows.train[:1], setting.tokenizer, seq_len)
    model: Any = load_classifier(str(setting.options.checkpoint), setting.task, setting.tokenizer, 0)
    if num_ids(setting.tokenizer) > model.get_input_embeddings().weight.shape[0]:  # else no row can have such a token
        every = [row for some in (rows.train, *rows.evaluated.values()) for row in some]
        require_tokens(model, max(max(ids) for ids, _ in encode(every, setting.tokenizer, seq_len)[0]))
    if setting.options.save:
        require_saveable(model, "--save")
    if setting.options.method == "subset" and not is_saveable(model):
        say(
            f"note: transformers has no classifier for {model.config.model_type}, so --apply-delta will have nothing "
            f"to save the deltas' model as; {IN_PYTHON}"
        )
    weights = checksum(body(model))
    prepare(model, setting.options, 1.0, 1, 0)
    return weights


def _save_in_one_step(save_into: Callable[[Path], None], output: Path) -> None:
    """Write into a folder beside, whose files take their places when all are there: a full disk leaves nothing."""
    output.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_beside(output.absolute())
    try:
        save_into(temporary)
        output.mkdir(exist_ok=True)
        for file in sorted(temporary.iterdir()):
            file.replace(output / file.name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def _applied(options: FinetuneOptions, output: Path) -> dict[str, Any]:
    """--apply-delta: the fine-tuned classifier again, from the checkpoint and its delta."""
    for field in dataclasses.fields(FinetuneOptions):
        if field.name not in APPLIES and getattr(options, field.name) != field.default:
            say(f"note: {flag(field.name)} has no use with --apply-delta")
    from switchlora.finetuning.delta import apply_delta_, read_delta
    from switchlora.finetuning.models import load_classifier, require_saveable
    from switchlora.finetuning.training import save

    path, named = str(options.apply_delta), f"--output {show(str(output))}"
    require_no_file(output)
    if output.resolve() == Path(str(options.checkpoint)).expanduser().resolve():
        raise UserError(f"{named}: is the checkpoint itself, which the delta needs as it is; give another folder")
    if contents(output) and not (output / APPLIED).is_file():
        raise UserError(f"{named}: is not empty and was not made by --apply-delta; give another folder")
    if contents(output) and not options.overwrite:
        raise UserError(f"{named}: holds a model already; give another folder, or --overwrite")
    require_writable(output)
    delta = read_delta(path)
    if delta.about.get("task") not in TASKS:
        raise UserError(f"--apply-delta {show(path)}: is for the task {delta.about.get('task')}, which is none of ours")
    if options.task not in (None, delta.about["task"]):
        raise UserError(f"--task {options.task}: {path} was made for {delta.about['task']}; leave --task out")
    tokenizer = load_tokenizer(str(options.checkpoint))
    model = load_classifier(str(options.checkpoint), TASKS[delta.about["task"]], tokenizer, delta.about["seed"])
    require_saveable(model, "--apply-delta")
    apply_delta_(dict(model.named_parameters()), delta)

    def save_into(folder: Path) -> None:
        save(model, tokenizer, folder)
        atomic_write_json(folder / APPLIED, {"checkpoint": options.checkpoint, "delta": path})

    with writing("the model", output):
        _save_in_one_step(save_into, output)
    say(f"{output}: {options.checkpoint} with {path}, for {delta.about['task']}")
    return delta.about
