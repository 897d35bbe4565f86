"""`switchlora evaluate` from options to a table and one JSON. One model is in memory at a time.

What can be refused is refused before the first model is read; what was found is filed after each, so that the last one
cannot take the others along.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from switchlora.errors import UserError
from switchlora.evaluation.options import DEFAULT_SEQ_LEN, EvaluateOptions
from switchlora.evaluation.table import table
from switchlora.machine import description, devices
from switchlora.machine.console import print_warning, say
from switchlora.machine.files import atomic_write_json, writing
from switchlora.options.values import show
from switchlora.precision import stored_dtype
from switchlora.trained.loading import (
    load_config,
    load_model,
    load_tokenizer,
    require_checkpoint,
    require_end_of_text,
)
from switchlora.trained.output import output_folder
from switchlora.trained.runs import labels_of, run_options, run_result
from switchlora.training.export import command
from switchlora.training.run import cache_dir

if TYPE_CHECKING:
    import torch

    from switchlora.data.store import Tokens
    from switchlora.evaluation.tasks import Tasks
    from switchlora.evaluation.text import OnText

JSON = "evaluate.json"


@dataclasses.dataclass(frozen=True)
class Reading:
    """What one model reads: text, or None of it, and how.

    fingerprint: of the data of its run, where it is to read these again.
    """

    tokenizer: Any
    data: tuple[str, ...] | None
    split: str
    max_tokens: int | None
    seq_len: int
    fingerprint: str | None


def evaluate(options: EvaluateOptions) -> dict[str, Any]:
    """Run `switchlora evaluate`; see docs/evaluate.md.

    Returns:
        what evaluate.json holds.

    Raises:
        UserError: a model that is not there or not whole, one without a tokenizer or with another model's, text that
            is not there or too short, a task that lm-eval does not know, or a file that would be overwritten.
    """
    if not options.checkpoint:
        raise UserError("--checkpoint: must be given; name the output folder of a finished run")
    for name in options.checkpoint:
        require_checkpoint(name)
    output = output_folder(options.output, JSON, overwrite=options.overwrite)
    readings = {name: _reading(name, options) for name in options.checkpoint}
    device = devices.choose_device(options.device)
    devices.set_threads(options.threads)
    tasks = None
    if options.tasks is not None:
        from switchlora.evaluation.tasks import Tasks

        tasks = Tasks(options)
    models: list[dict[str, Any]] = []
    result = {"models": models, "command": command(), "config": options.to_dict(), **description.machine_record(device)}
    for name, label in zip(options.checkpoint, labels_of(options.checkpoint, options.labels), strict=True):
        say(f"{label}: {name}")
        models.append({"label": label, "checkpoint": name, **_evaluated(name, readings[name], options, tasks, device)})
        with writing("the figures", output):
            output.mkdir(parents=True, exist_ok=True)
            atomic_write_json(output / JSON, result)
    say(table(models))
    say(str(output / JSON))
    return result


def _evaluated(
    name: str, reading: Reading, options: EvaluateOptions, tasks: "Tasks | None", device: "torch.device"
) -> dict[str, Any]:
    dtype = None if options.dtype is None else stored_dtype(options.dtype)
    on_text, found = None, None
    with _tokens(name, reading) as tokens:  # before the model, for text can be wrong and is the cheaper one to read
        model = load_model(name, dtype=dtype).to(device)
        if tokens is not None:
            on_text = _on_text(model, tokens, reading, options.batch_size, device)
    if tasks is not None:
        found = tasks.run(model, reading.tokenizer)
    return {
        "data": None if reading.data is None else list(reading.data),
        "split": None if reading.data is None else reading.split,
        "text": None if on_text is None else dataclasses.asdict(on_text),
        "tasks": found,
    }


def _reading(name: str, options: EvaluateOptions) -> Reading:
    """What a model is to read.

    Raises:
        UserError: there is nothing to evaluate it on, it has too few positions, or no tokenizer that can pack text.
    """
    from switchlora.data.sources import open_source

    run, config, tokenizer = run_options(name), load_config(name), load_tokenizer(name)
    positions = getattr(config, "max_position_embeddings", None)
    if options.seq_len is not None and positions is not None and options.seq_len > positions:
        raise UserError(f"--seq-len {options.seq_len}: {show(name)} has {positions} positions; use {positions} or less")
    length = run.seq_len if run is not None and run.seq_len else min(DEFAULT_SEQ_LEN, positions or DEFAULT_SEQ_LEN)
    data, split, max_tokens, fingerprint = options.data, options.split, options.max_tokens, None
    if data is None and options.tasks is None:
        if run is None:
            raise UserError(
                f"--data: must be given, for {show(name)} is no run of switchlora pretrain, whose data would be known; "
                "give text, or --tasks"
            )
        data, split, max_tokens = run.data, "valid", max_tokens or run.eval_tokens
        fingerprint = run_result(name).get("data_fingerprint")
    if data is not None:
        try:
            open_source(data)  # what is not there is refused now
        except UserError as error:
            if data is options.data:
                raise
            raise UserError(
                f"--checkpoint {show(name)}: its run read data that are not here ({str(error).partition(';')[0]}); "
                "start where that path leads there, or give --data"
            ) from None
        _require_packing(name, tokenizer)
    return Reading(tokenizer, data, split, max_tokens, options.seq_len or length, fingerprint)


def _require_packing(name: str, tokenizer: Any) -> None:
    if not getattr(tokenizer, "is_fast", False):
        raise UserError(
            f"--checkpoint {show(name)}: its tokenizer has no fast version (tokenizer.json), with which text is read; "
            "convert it with transformers"
        )
    require_end_of_text(name, tokenizer)


def _on_text(model: Any, tokens: "Tokens", reading: Reading, batch_size: int, device: "torch.device") -> "OnText":
    from switchlora.evaluation.text import measure

    return measure(
        model, tokens, seq_len=reading.seq_len, batch_size=batch_size, device=device, max_tokens=reading.max_tokens,
        whole_windows=reading.split == "valid",
    )  # fmt: skip


@contextlib.contextmanager
def _tokens(name: str, reading: Reading) -> "Iterator[Tokens | None]":
    from switchlora.data import load_corpus, load_text

    if reading.data is None:
        yield None
        return
    if reading.split == "all":
        yield load_text(reading.data, reading.tokenizer, cache_dir=cache_dir(), log=say)
        return
    corpus = load_corpus(
        reading.data, name, seq_len=reading.seq_len, num_sequences=1, vocab_size=None,
        cache_dir=cache_dir(), log=say,
    )  # fmt: skip
    if reading.fingerprint not in (None, corpus.fingerprint):
        print_warning(
            f"{name}: its data or its tokenizer changed since the run, so these are not the figures of its result.json"
        )
    try:
        yield corpus.valid.tokens
    finally:
        corpus.close()
