"""From what the user said to what the run does: every default that depends on the model or the method.

The result of `resolve` is what the run does, what is written beside the results, and what a resumed run is
held against by `difference`. It reads at most one small JSON file and imports neither torch nor transformers,
so that all of a configuration's mistakes are found before anything slow begins.
"""

import dataclasses
import os
import re
from pathlib import Path
from typing import Any

from switchlora.errors import UserError
from switchlora.methods import OF_METHODS, is_file, method_named
from switchlora.options import values as v
from switchlora.options.fields import flag
from switchlora.training.options import PretrainOptions
from switchlora.training.presets import ModelFacts, brings_tokenizer, has_weights, model_facts, preset_defaults
from switchlora.training.tracking import require_package


def resolve(options: PretrainOptions, *, config: Any = None) -> PretrainOptions:
    """Decide what was left open; what was said stays. Applied twice it changes nothing more.

    Afterwards None means: no decay (`decay_ratio`), the whole share (`micro_batch_size`), torch's choice
    (`threads`), an option that the method does not use (`r`, `restart_every`), or, for a hub name only, a
    rank that waits for the model: call again with its `config` (of transformers) once it is known.

    Raises:
        UserError: an unknown model, a checkpoint that is none, a tracker that is not installed, or a rule between
            options that is broken.
    """
    facts = model_facts(options.model)
    hidden_size = getattr(config, "hidden_size", None)
    if hidden_size is not None:
        facts = dataclasses.replace(facts, hidden_size=hidden_size)
    _check_resume(options)
    require_package(options.track)
    options = _resolve_sizes(options, facts)
    options = _resolve_restarts(_resolve_method(options, facts))
    if options.parallel is None:
        alone = os.environ.get("WORLD_SIZE", "") in ("", "1")
        options = dataclasses.replace(options, parallel="none" if alone else "ddp")
    if options.output is None:
        options = dataclasses.replace(options, output=str(Path("runs") / run_name(options)))
    return options


def run_name(options: PretrainOptions) -> str:
    """The name of a run, the same every time, so that starting again finds it: tiny-switchlora-r32-seed0."""
    model = options.model
    if Path(model).name == "config.json":
        model = Path(model).resolve().parent.name
    slug = re.sub(r"[^A-Za-z0-9._]+", "-", model).strip("-.") or "model"
    rank = f"-r{options.r}" if options.r else ""
    method = Path(options.method).stem if is_file(options.method) else options.method
    return f"{slug[-60:]}-{method}{rank}-seed{options.seed}"


def unused_options(options: PretrainOptions) -> tuple[str, ...]:
    """Flags away from their default for which the method has no use: worth a note, not an error."""
    defaults = {field.name: field.default for field in dataclasses.fields(options)}
    idle = OF_METHODS - method_named(options.method).uses
    return tuple(flag(name) for name in defaults if name in idle and getattr(options, name) != defaults[name])


def difference(a: PretrainOptions, b: PretrainOptions) -> tuple[str, ...]:
    """Flags in which two resolved runs differ and may not, if one is to go on where the other stopped."""
    return _differing(a, b, "same")


def reported_difference(a: PretrainOptions, b: PretrainOptions) -> tuple[str, ...]:
    """Flags that may differ on resume, but then the continuation is equal only up to rounding: say so."""
    return _differing(a, b, "reported")


def _differing(a: PretrainOptions, b: PretrainOptions, kind: str) -> tuple[str, ...]:
    """Options for which neither method has a use do not count."""
    idle = OF_METHODS - method_named(a.method).uses - method_named(b.method).uses
    names = [name for name, spec in PretrainOptions.specs().items() if spec.on_resume == kind and name not in idle]
    return tuple(flag(name) for name in names if getattr(a, name) != getattr(b, name))


def _resolve_sizes(options: PretrainOptions, facts: ModelFacts) -> PretrainOptions:
    defaults = preset_defaults(options.model)
    steps = defaults.steps if options.steps is None else options.steps
    cadence = max(1, min(1000, steps // 8))
    tokenizer = options.tokenizer
    if tokenizer is None and brings_tokenizer(options.model):
        tokenizer = options.model
    elif tokenizer is None and has_weights(options.model):
        raise UserError(
            f"--model {v.show(options.model)}: has weights but no tokenizer, and a new one would give its tokens other "
            "meanings; copy there the files of the one that it was trained with, or give --tokenizer"
        )
    elif tokenizer is None and facts.vocab_size is not None:
        tokenizer = f"train:{max(facts.vocab_size, v.SMALLEST_VOCABULARY)}"  # the model will be as large
    return dataclasses.replace(
        options,
        tokenizer=tokenizer,
        steps=steps,
        batch_size=defaults.batch_size if options.batch_size is None else options.batch_size,
        seq_len=defaults.seq_len if options.seq_len is None else options.seq_len,
        warmup=min(100, steps // 10) if options.warmup is None else options.warmup,
        eval_every=cadence if options.eval_every is None else options.eval_every,
        save_every=cadence if options.save_every is None else options.save_every,
    )


def _resolve_method(options: PretrainOptions, facts: ModelFacts) -> PretrainOptions:
    method = method_named(options.method)
    lr = method.lr if options.lr is None else options.lr
    rank, init = options.r, options.init_lora_weights
    if "r" in method.uses:
        init = init or method.init_lora_weights
        if rank is None and facts.hidden_size is not None:
            rank = max(1, facts.hidden_size // 4)
        if rank is not None and facts.hidden_size is not None and rank >= facts.hidden_size:
            raise UserError(
                f"--r {rank}: must be smaller than the hidden size of {v.show(options.model)}, "
                f"{facts.hidden_size}; {max(1, facts.hidden_size // 4)} is a good start, and --method full "
                "trains every rank"
            )
    return dataclasses.replace(
        options,
        lr=lr,
        other_lr=lr if options.other_lr is None else options.other_lr,
        r=rank,
        init_lora_weights=init,
    )


def _resolve_restarts(options: PretrainOptions) -> PretrainOptions:
    """Of ReLoRA: by default at least three restarts, and never a run without any, which would be LoRA's."""
    if "restart_every" not in method_named(options.method).uses:
        return options
    assert options.steps is not None
    steps = options.steps - options.warm_start_steps
    every = max(1, min(1000, steps // 4)) if options.restart_every is None else options.restart_every
    if every >= steps > 1:
        fewer = max(1, steps // 4)
        raise UserError(
            f"--restart-every {every}: would never restart in {steps} steps; give {fewer}, or --method lora"
        )
    rewarm = min(50, every // 10) if options.rewarm_steps is None else options.rewarm_steps
    return dataclasses.replace(options, restart_every=every, rewarm_steps=rewarm)


def _check_resume(options: PretrainOptions) -> None:
    if options.resume in ("auto", "never") or Path(options.resume).expanduser().exists():
        return
    close = v.nearest(options.resume, ("auto", "never"))
    hint = f"did you mean {close}? " if close else ""
    raise UserError(
        f"--resume {v.show(options.resume)}: no such checkpoint; {hint}give auto, never, or the path of a "
        "checkpoint folder"
    )
