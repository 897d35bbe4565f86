"""Every option of `switchlora pretrain`, once: flags, YAML keys, checks, help and docs/pretrain.md follow
from here.

`PretrainOptions()` holds what the user said; None means "not said", and `resolve.resolve` decides it.
Default learning rates and the like belong to the method (`methods`), so that nothing here asks which it is.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from switchlora.errors import UserError
from switchlora.machine.cpu_products import PRODUCTS
from switchlora.methods import METHODS, is_file, method_named
from switchlora.options import shared
from switchlora.options import values as v
from switchlora.options.fields import Options, option

RUN, DATA, MODEL, METHOD = "run", "data", "model", "method"
OPTIMIZATION, SIZE, CADENCE = "optimization", "size and speed", "evaluation and checkpoints"

_INITS, _ORDERS, _CANDIDATES = ("switchlora", "lora"), ("cyclic", "random"), ("pool", "fresh")
_SCHEDULES, _DTYPES = ("cosine", "constant", "linear"), ("fp32", "bf16", "bf16-mixed")
_STORED = ("fp32", "bf16")
_COMPRESSIONS = ("none", "bf16")
LARGEST_BATCH_TOKENS = 2**30  # far above any batch that was ever trained on; steps times this fits 64 bits
_TRACKERS = ("tensorboard", "wandb", "none")


def method_name(value: object) -> str:
    """One of `METHODS`, or the path of a .py file with a method of the user's own, which is executed here."""
    if isinstance(value, str) and is_file(value):
        method_named(value)
        return value
    name: str = v.choice(*METHODS)(value)
    return name


def assignments(value: object) -> dict[str, Any]:
    """A mapping of these options, or words such as steps=1000, for commands that hand them on."""
    if isinstance(value, Mapping):
        return {str(name).replace("-", "_"): item for name, item in value.items()}
    pairs = [word.partition("=") for word in v.texts(value)] if value != () else []
    for name, equals, _ in pairs:
        if not equals:
            raise v.Refused(f"{v.show(name)} is not of the form NAME=VALUE")
    found = {name.lstrip("-").replace("-", "_"): _as_value(name, item) for name, _, item in pairs}
    if len(found) < len(pairs):
        raise v.Refused("names an option twice")
    return found


def _as_value(name: str, word: str) -> Any:
    """What a word on the command line means to an option that is yes or no, or takes several words."""
    if word in ("true", "false"):
        return word == "true"
    return tuple(word.split(",")) if name == "data" else word


@dataclass(frozen=True)
class PretrainOptions(Options):
    """What to train, on what, how, and where to. The field `batch_size` is the flag `--batch-size`."""

    # fmt: off
    output: str | None = option(None, v.text, RUN,
        "folder for everything the run writes",
        metavar="FOLDER", unset="runs/NAME, from model, method, rank and seed", on_resume="free")
    resume: str = option("auto", v.text, RUN,
        "auto: go on where an interrupted run in the output folder stopped; never: refuse to; PATH: go "
        "on from that checkpoint", metavar="auto|never|PATH", on_resume="free")
    overwrite: bool = option(False, v.yes_no, RUN,
        "discard the earlier run in the output folder and start anew", on_resume="free")
    dry_run: bool = option(False, v.yes_no, RUN,
        "print layers, parameters, bytes and tokens, then stop; needs neither data nor network",
        on_resume="free")
    seed: int = option(0, v.integer(0, v.LARGEST_SEED), RUN,
        "of weights, batches and switches", metavar="N")
    data: tuple[str, ...] = option("stdlib", v.texts, DATA,
        "stdlib (the text of Python's standard library); files, folders or globs of .txt, .jsonl, "
        ".parquet; or hf:NAME[:CONFIG]", metavar="SOURCE")
    tokenizer: str | None = option(None, v.tokenizer_name, DATA,
        "train:VOCAB (byte-level BPE, VOCAB tokens, trained on the data), a file, a folder or a hub name",
        metavar="NAME", unset="the model's own; of a model without weights train:VOCAB with its vocabulary")
    model: str = option("tiny", v.text, MODEL,
        "tiny, 60m, 130m, 250m, 350m, 1.3b, 7b, 13b, 70b, a config.json, a folder with one, or a hub name (org/name)",
        metavar="NAME")
    method: str = option("switchlora", method_name, METHOD,
        "how the linear layers are trained; or the path of a .py file with a method of your own",
        choices=tuple(METHODS), metavar="|".join(METHODS) + "|FILE.py")
    r: int | None = option(None, v.integer(1), METHOD,
        "rank: trainable pairs of vectors in each layer",
        metavar="VECTORS", unset="a quarter of the model's hidden size")
    lora_alpha: float = option(1.0, v.number(open_below=True), METHOD,
        "the low-rank part is scaled by lora_alpha / r", metavar="X")
    interval: float = option(40.0, v.number(open_below=True, or_inf=True), METHOD,
        "expected steps between two switches of one vector, at the start; inf: never", metavar="STEPS")
    decay_ratio: float | None = option(0.1, v.or_none(v.number(open_below=True)), METHOD,
        "switching gets rarer by 0.3 in every such share of the run; none: it does not", metavar="SHARE")
    freeze_steps: int = option(5, v.integer(0), METHOD,
        "steps for which a switched vector's counterpart rests", metavar="STEPS")
    reset: bool = option(True, v.yes_no, METHOD,
        "whether the counterpart's optimizer state is cleared when a vector is switched; off is an ablation")
    order: str = option("cyclic", v.choice(*_ORDERS), METHOD,
        "which candidates come next", choices=_ORDERS)
    candidates: str = option("pool", v.choice(*_CANDIDATES), METHOD,
        "pool: vectors switched out come back later; fresh: drawn anew, nothing stored", choices=_CANDIDATES)
    init_lora_weights: str | None = option(None, v.choice(*_INITS), METHOD,
        "initial factors: switchlora (the paper's) or lora (B = 0)",
        choices=_INITS, unset="the method's name")
    alternate: bool = option(False, v.yes_no, METHOD,
        "move A in one step and B in the next, while the moments of both follow every gradient: half the weight update")
    polar: float = option(0.5, v.number(), METHOD,
        "share of the learning rate at which weights also follow their own gradients, orthogonalised "
        "(switchlora-polar); 0: they do not", metavar="SHARE")
    restart_every: int | None = option(None, v.integer(1), METHOD,
        "steps from one restart of ReLoRA to the next", metavar="STEPS",
        unset="1000, or a quarter of the steps where that is less")
    rewarm_steps: int | None = option(None, v.integer(0), METHOD,
        "steps over which the learning rate warms up again after a restart", metavar="STEPS",
        unset="50, or a tenth of restart-every where that is less")
    warm_start_steps: int = option(0, v.integer(0), METHOD,
        "steps of full-rank AdamW before ReLoRA's factors take over", metavar="STEPS")
    warm_start_lr: float = option(1e-3, v.number(), METHOD,
        "peak learning rate of the hidden matrices in these", metavar="RATE")
    projection_gap: int = option(200, v.integer(1), METHOD,
        "steps for which a projection of the gradient is kept (apollo, apollo-mini, galore, fira)", metavar="STEPS")
    projection_scale: float | None = option(None, v.number(open_below=True), METHOD,
        "alpha: what an update from a projected gradient is multiplied by", metavar="X",
        unset="apollo 1, apollo-mini the square root of 128, galore and fira 0.25")
    target_modules: str | tuple[str, ...] = option("all-linear", v.module_targets, METHOD,
        "all-linear (all but the LM head), endings of module names joined by commas, or a regular "
        "expression", metavar="NAMES")
    lr: float | None = option(None, v.number(), OPTIMIZATION,
        "peak learning rate", metavar="RATE",
        unset=", ".join(f"{method.name} {method.lr:g}" for method in METHODS.values()))
    other_lr: float | None = option(None, v.number(), OPTIMIZATION,
        "peak learning rate of embeddings, head, norms, biases, and linear layers without factors", metavar="RATE",
        unset="the value of --lr")
    warmup: int | None = option(None, v.integer(0), OPTIMIZATION,
        "linear warm-up", metavar="STEPS", unset="100, but no more than a tenth of --steps")
    schedule: str = option("cosine", v.choice(*_SCHEDULES), OPTIMIZATION,
        "learning rate after the warm-up", choices=_SCHEDULES)
    min_lr_ratio: float = option(0.1, v.number(maximum=1.0), OPTIMIZATION,
        "last learning rate as a share of the peak (cosine, linear)", metavar="SHARE")
    weight_decay: float = option(0.0, v.number(), OPTIMIZATION,
        "decoupled weight decay, per unit of learning rate", metavar="X")
    clip: float = option(1.0, v.number(), OPTIMIZATION,
        "largest norm of all gradients together; 0: no clipping", metavar="NORM")
    steps: int | None = option(None, v.integer(1), SIZE,
        "length of the run in optimizer steps",
        metavar="STEPS", unset="tiny 400, other presets 40000, other models 1000")
    batch_size: int | None = option(None, v.integer(1), SIZE,
        "sequences per optimizer step, over all devices",
        metavar="SEQUENCES", unset="the preset's (tiny 16, the paper's 600 to 1536), other models 16")
    micro_batch_size: int | None = option(None, v.integer(1), SIZE,
        "sequences per forward pass of one device; gradients accumulate over the rest",
        metavar="SEQUENCES", unset="the device's whole share of the batch")
    seq_len: int | None = option(None, v.integer(2), SIZE,
        "length of a sequence", metavar="TOKENS", unset="tiny 128, 60m and 130m 256, otherwise 512")
    dtype: str = option("fp32", v.choice(*_DTYPES), SIZE,
        "bf16: weights held in bf16; bf16-mixed: fp32 weights, bf16 arithmetic", choices=_DTYPES)
    factor_dtype: str = option("fp32", v.choice(*_STORED), SIZE,
        "how A, B and the candidates are stored; bf16: stochastically rounded", choices=_STORED)
    moment_dtype: str = option("fp32", v.choice(*_STORED), SIZE,
        "how both moments of every parameter are stored; bf16: stochastically rounded", choices=_STORED)
    fused_backward: bool = option(False, v.yes_no, SIZE,
        "step each layer inside the backward pass and free its gradients at once; needs --clip 0 and no "
        "--micro-batch-size")
    compile: bool = option(False, v.yes_no, SIZE,
        "compile the model with torch.compile")
    checkpoint_activations: bool = option(False, v.yes_no, SIZE,
        "recompute activations in the backward pass: less memory, about a third more arithmetic")
    parallel: str | None = option(None, v.strategy, SIZE,
        "with several processes (torchrun): ddp, each holds the whole model; fsdp: they share it out; none: one "
        "process",
        metavar="ddp|fsdp|none", unset="ddp under torchrun, else none", on_resume="reported")
    grad_compression: str = option("none", v.choice(*_COMPRESSIONS), SIZE,
        "bf16: DDP sends gradients in bfloat16, half the bytes, for slow links", choices=_COMPRESSIONS)
    device: str = shared.device(SIZE, "train", on_resume="reported")
    threads: int | None = shared.threads(SIZE, on_resume="reported")
    cpu_products: str = option("torch", v.choice(*PRODUCTS), SIZE,
        "who multiplies float32 matrices on the CPU; onednn: twice as fast on AMD processors with AVX-512",
        choices=PRODUCTS, on_resume="reported")
    eval_every: int | None = option(None, v.integer(0), CADENCE,
        "validate after so many steps, and at the end; 0: at the end only",
        metavar="STEPS", unset="an eighth of --steps, at most 1000", on_resume="free")
    eval_tokens: int = option(10_000_000, v.integer(1), CADENCE,
        "validation tokens that are read at the end, at most; those on the way are fewer",
        metavar="TOKENS")
    save_every: int | None = option(None, v.integer(0), CADENCE,
        "write a checkpoint after so many steps; 0: only when interrupted",
        metavar="STEPS", unset="an eighth of --steps, at most 1000", on_resume="free")
    keep: int = option(2, v.integer(1), CADENCE,
        "newest checkpoints to keep", metavar="N", on_resume="free")
    track: str = option("none", v.choice(*_TRACKERS), CADENCE,
        "where to send the curves besides metrics.jsonl", choices=_TRACKERS, on_resume="free")
    # fmt: on

    def check(self) -> None:
        """Rules between options, as far as they are decided.

        Raises:
            UserError: names the option, the value, the rule and the way out.
        """
        _check_batch_tokens(self)
        _check_batches(self)
        _check_lengths(self)
        _check_switching(self)
        _check_fused_backward(self)
        if self.overwrite and self.resume not in ("auto", "never"):
            raise UserError(
                "--overwrite: discards the earlier run, but --resume PATH goes on from it; give one of them"
            )


def _check_batches(options: PretrainOptions) -> None:
    batch, micro = options.batch_size, options.micro_batch_size
    if batch is None or micro is None or batch % micro == 0:
        return
    fitting = v.largest_divisor(batch, micro)
    raise UserError(
        f"--batch-size {batch}: must be a multiple of --micro-batch-size {micro}; "
        f"use --micro-batch-size {fitting} or --batch-size {max(1, round(batch / micro)) * micro}"
    )


def _check_batch_tokens(options: PretrainOptions) -> None:
    batch, length = options.batch_size, options.seq_len
    if batch is None or length is None or batch * length <= LARGEST_BATCH_TOKENS:
        return
    way_out = f"--seq-len {LARGEST_BATCH_TOKENS // batch}"
    if length <= LARGEST_BATCH_TOKENS:
        way_out = f"--batch-size {LARGEST_BATCH_TOKENS // length}"
    raise UserError(
        f"--batch-size {batch}: with --seq-len {length} a step would read {batch * length} tokens, and at most "
        f"{LARGEST_BATCH_TOKENS} are possible; use {way_out} or less"
    )


def _check_lengths(options: PretrainOptions) -> None:
    if options.warmup is not None and options.steps is not None and options.warmup > options.steps:
        raise UserError(
            f"--warmup {options.warmup}: must not exceed --steps {options.steps}; {options.steps // 10} is a good start"
        )
    if options.warm_start_steps and options.steps is not None and options.warm_start_steps >= options.steps:
        raise UserError(
            f"--warm-start-steps {options.warm_start_steps}: must be less than --steps {options.steps}; "
            f"{options.steps // 4} is a good start"
        )


def _check_fused_backward(options: PretrainOptions) -> None:
    if not options.fused_backward or "fused_backward" not in method_named(options.method).uses:
        return
    if options.clip:
        raise UserError(
            f"--fused-backward: each layer is stepped before the norm of all gradients is known, so --clip "
            f"{options.clip:g} is not possible; add --clip 0"
        )
    if options.micro_batch_size is not None and options.micro_batch_size != options.batch_size:
        raise UserError(
            f"--fused-backward: each layer is stepped in the backward pass, so --micro-batch-size "
            f"{options.micro_batch_size} cannot accumulate gradients; leave it out"
        )


def _check_switching(options: PretrainOptions) -> None:
    if "interval" not in method_named(options.method).uses:
        return
    if options.interval < 2 * options.freeze_steps:
        raise UserError(
            f"--interval {options.interval:g}: must be at least twice --freeze-steps {options.freeze_steps}, "
            f"or vectors would rest most of the time; use --interval {2 * options.freeze_steps} or more, "
            f"or --freeze-steps {int(options.interval // 2)} or less"
        )
    if options.r == 1 and options.interval != math.inf and options.init_lora_weights != "lora":
        raise UserError(
            "--r 1: can never switch, for a vector and its partner are not switched in one step; "
            "use --r 2 or more, or --method lora"
        )
