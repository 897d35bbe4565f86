"""The state of a run: what is built at its start, saved in a checkpoint, and put back from one.

Batches, learning rates and switches are functions of (seed, step), so that state is small: weights, optimizer,
torch's generators (for models with dropout), the step, and the seconds it has taken so far.
"""

import contextlib
import dataclasses
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from switchlora.data import Corpus, load_corpus
from switchlora.data.tokenizer import num_ids
from switchlora.distributed.finiteness import FiniteWatch
from switchlora.distributed.traffic import Traffic, counted
from switchlora.distributed.wrapping import data_parallel, require_shardable
from switchlora.errors import NonFiniteError, UserError
from switchlora.machine import description, devices
from switchlora.machine.cpu_products import write_out_attention
from switchlora.memory_report import memory
from switchlora.methods import method_named
from switchlora.methods.parameters import clipped
from switchlora.precision import stored_dtype
from switchlora.shards import local
from switchlora.training.architecture import architecture, require_architecture
from switchlora.training.checkpoint import Checkpoint
from switchlora.training.folder import RunFolder
from switchlora.training.models import build_model, checkpoint_activations, deferred_model
from switchlora.training.options import PretrainOptions
from switchlora.training.parallel import Processes
from switchlora.training.presets import has_weights, model_facts
from switchlora.training.resolve import resolve
from switchlora.training.sharing import load, share_out, state_of, transposed_in

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from torch import nn

    from switchlora.training.checkpoint import CheckpointStore
    from switchlora.training.deferred import Recipes
    from switchlora.training.sharded import ShardedCheckpoints

    Checkpoints = CheckpointStore | ShardedCheckpoints


class Run:
    """A model, its optimizer and its data, on a device, at a step.

    Attributes:
        step: optimizer steps done.
        model: the module whose state is saved; forward: the same, compiled where that was asked for.
        checkpoints: what writes them.
        processes: that train it together; model: this one's part under FSDP2.
        prepared: what the method did to the model, for people.
        traffic_bytes: of the collectives of a step, by kind (`distributed.traffic`), when last counted; none: not yet.
        steps_here: done since this process started.
        watch: which of several processes has handed over a gradient that is not finite.
        measured: bytes by kind on each of the processes that did the last step, or in the first, if more; else empty.
        total_parameters: of the dense model that is exported; trainable: what gets gradients; clipped: by their norm.
    """

    def __init__(
        self,
        options: PretrainOptions,
        corpus: Corpus,
        device: torch.device,
        processes: Processes,
        checkpoints: "Checkpoints",
    ) -> None:
        self.options, self.corpus, self.device, self.processes = options, corpus, device, processes
        self.checkpoints = checkpoints
        self.method = method_named(options.method)
        self.step = 0
        self.measured: dict[str, Any] = {}
        self.traffic_bytes: dict[str, int] = {}
        self.steps_here = 0
        self.seconds_before, self.training_seconds, self.started = 0.0, 0.0, time.monotonic()
        self.watch = FiniteWatch()
        torch.manual_seed(options.seed)  # dropout, where a model has it
        self.model, recipes = _build_model(options, corpus, deferred=processes.mesh is not None)
        self.total_parameters = sum(p.numel() for p in self.model.parameters())
        self.prepared = self.method.prepare(self.model, options)
        if processes.mesh is None:
            self.model.to(device)
        else:
            mixed = torch.bfloat16 if options.dtype == "bf16-mixed" else None
            share_out(
                self.model, recipes, processes.mesh, param_dtype=mixed, compile_blocks=options.compile, watch=self.watch
            )
        self.model.train()
        self.optimizer = self.method.optimizer(self.model, options)
        for group in self.optimizer.param_groups:
            group["initial_lr"] = group["lr"]
        self.trainable = [p for p in self.model.parameters() if p.requires_grad]
        self.clipped = clipped(self.trainable, self.optimizer)
        self.forward: nn.Module = self.model
        if processes.strategy == "ddp":
            self.forward = data_parallel(self.model, compressed=options.grad_compression == "bf16", watch=self.watch)
        if options.compile and processes.mesh is None:
            self.forward = torch.compile(self.forward)  # type: ignore[assignment]

    @property
    def wall_seconds(self) -> float:
        """Seconds since the start of the run, those before an interruption included, the pause between not."""
        return self.seconds_before + time.monotonic() - self.started

    @property
    def tokens_per_step(self) -> int:
        """Tokens that one optimizer step reads."""
        assert self.options.batch_size is not None and self.options.seq_len is not None
        return self.options.batch_size * self.options.seq_len

    def count_traffic(self, every: int | None) -> "AbstractContextManager[Traffic]":
        """Count the collectives of a step, where that is its turn: a process's second one, every so many, the last.

        Not in a compiled run, which a mode of torch's dispatcher would run uncompiled.
        """
        step, steps = self.step + 1, self.options.steps
        turn = self.steps_here == 1 or step == steps or bool(every and step % every == 0)
        self.steps_here += 1
        if not turn or self.processes.world_size == 1 or self.options.compile:
            return contextlib.nullcontext(Traffic())
        return counted()

    def measure(self) -> None:
        """Note what this process has allocated now (`memory_report`), for `result.json`; alone, if it is the most."""
        found, group = dataclasses.asdict(memory(self.model, self.optimizer)), self.processes
        if group.world_size > 1 or sum(found.values()) >= sum(self.measured.get("bytes_by_kind", {}).values()):
            self.measured = {"bytes_by_kind": found, "world_size": group.world_size, "parallel": group.strategy}

    def autocast(self) -> "AbstractContextManager[None]":
        """The context of a forward pass; under FSDP2 the parameters come in its dtype."""
        if self.processes.mesh is not None:
            return contextlib.nullcontext()
        return devices.autocast_for(self.options.dtype, self.device)

    def save(self, folder: RunFolder) -> None:
        """Write a checkpoint of this step, or begin to.

        Raises:
            NonFiniteError: a weight is not finite; the checkpoints before this one are then good, and stay.
        """
        finite = all(bool(local(p.detach()).isfinite().all()) for p in self.model.parameters())
        if any(self.processes.any(not finite)):
            raise NonFiniteError(f"step {self.step}: a weight is not finite; {last_good(self, folder)}")
        if self.step == self.options.steps:
            self.measured["bytes_per_rank"] = self.processes.collect(self.measured["bytes_by_kind"])
        state = {**state_of(self.model, self.optimizer), "generators": devices.generator_states(self.device)}
        meta = {
            "options": self.options.to_dict(),
            "machine": description.describe_machine(self.device),
            "data": self.corpus.fingerprint,
            "model": architecture(self.model),
            "wall_seconds": self.wall_seconds,
            "training_seconds": self.training_seconds,
            "measured": self.measured,
            "traffic_bytes": self.traffic_bytes,
        }
        self.checkpoints.save(self.step, state, meta)

    def restore(self, checkpoint: Checkpoint) -> None:
        """Go back to a checkpoint.

        Raises:
            UserError: the run began with another model or other data.
        """
        if checkpoint.entry("data") != self.corpus.fingerprint:
            raise UserError(
                f"--data {' '.join(self.options.data)}: its text, or the tokenizer, is not what the run began with; "
                "bring back the data, or start anew with another --output or --overwrite"
            )
        require_architecture(self.model, self.options.model, checkpoint.meta)
        state = self._read(checkpoint)
        try:
            load(self.model, self.optimizer, state)
        except (RuntimeError, ValueError, KeyError) as error:
            reason = " ".join(str(error).split())[:200]
            raise UserError(
                f"--resume {checkpoint.path}: is of another model ({reason}); give another --output"
            ) from None
        devices.set_generator_states(self.device, state["generators"])
        self.step = checkpoint.step
        self.seconds_before = checkpoint.entry("wall_seconds")
        self.training_seconds = checkpoint.entry("training_seconds")
        self.measured, self.traffic_bytes = checkpoint.entry("measured"), checkpoint.entry("traffic_bytes")

    def _read(self, checkpoint: Checkpoint) -> dict[str, Any]:
        if not checkpoint.is_sharded:
            return checkpoint.load(mapped=self.processes.mesh is not None)
        from switchlora.training.sharded_loading import Unreadable, read_sharded

        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        try:
            return read_sharded(checkpoint.path, state_of(self.model, self.optimizer), parameters)
        except Unreadable as error:
            raise UserError(
                f"--resume {checkpoint.path}: cannot be loaded ({error}); give another checkpoint"
            ) from error


def checkpoints_of(folder: RunFolder, processes: Processes) -> "Checkpoints":
    """What writes the checkpoints of a run: of one process, or of several together."""
    if processes.world_size == 1:
        return folder.checkpoints
    from switchlora.training.sharded import ShardedCheckpoints

    return ShardedCheckpoints(folder.checkpoints, processes)


def last_good(run: Run, folder: RunFolder) -> str:
    """Where to go on by hand after numbers that are not finite, and how to avoid them.

    A checkpoint that is still being written is waited for; so all processes ask together.
    """
    run.checkpoints.wait()
    last = run.processes.on_first(folder.checkpoints.latest)
    where = f"the last good checkpoint is {last.path}" if last is not None else "no checkpoint had been written yet"
    return f"{where}; lower --lr, or raise --warmup, and give another --output"


def load_data(options: PretrainOptions, log: Callable[[str], None]) -> Corpus:
    """Tokenizer and blocks of resolved options, from the cache where they are there.

    A model with weights has room for so many tokens; a new one takes the size of the tokenizer.
    """
    assert options.batch_size is not None and options.seq_len is not None and options.steps is not None
    return load_corpus(
        options.data,
        options.tokenizer,
        seq_len=options.seq_len,
        num_sequences=options.steps * options.batch_size,
        vocab_size=model_facts(options.model).vocab_size if has_weights(options.model) else None,
        cache_dir=cache_dir(),
        log=log,
    )


def cache_dir() -> Path:
    """Where tokenised data is kept between runs: $SWITCHLORA_CACHE, or the user's cache folder."""
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(os.environ.get("SWITCHLORA_CACHE") or f"{base}/switchlora").expanduser()


def check_model(options: PretrainOptions) -> PretrainOptions:
    """Find mistakes in model, targets and rank before any data is read, on a model without memory.

    Returns:
        options, with the rank resolved where only the model could tell.
    """
    dtype = stored_dtype(options.dtype)
    model = build_model(options.model, seed=options.seed, seq_len=options.seq_len, dtype=dtype, meta=True)
    options = resolve(options, config=model.config)
    if options.tokenizer is None:
        options = dataclasses.replace(options, tokenizer=f"train:{model.config.vocab_size}")  # type: ignore[union-attr]
    method_named(options.method).prepare(model, options)
    if options.parallel == "fsdp":
        require_shardable(model)
    return options


def _build_model(options: PretrainOptions, corpus: Corpus, *, deferred: bool) -> "tuple[nn.Module, Recipes | None]":
    """The dense model; `deferred`: without memory for its parameters, and how to make them, if that can be."""
    recipes, settings = None, _dense_settings(options, corpus)
    if deferred:
        model, recipes = deferred_model(options.model, **settings)
    else:
        model = build_model(options.model, **settings)
    write_out_attention(model)
    if options.checkpoint_activations:
        checkpoint_activations(model)
    return model, recipes


def _dense_settings(options: PretrainOptions, corpus: Corpus) -> dict[str, Any]:
    """What `build_model` needs beside the model's name."""
    return {
        "seed": options.seed,
        "vocab_size": num_ids(corpus.tokenizer),
        "eos_token_id": corpus.tokenizer.eos_token_id,
        "seq_len": options.seq_len,
        "dtype": stored_dtype(options.dtype),
    }


def dense_outline(run: Run) -> "tuple[nn.Module, dict[str, Tensor], set[str]]":
    """The dense model of a run whose parameters are shared out: itself without memory, its entries, shared out (tied
    ones once), and which of these it has transposed."""
    outline = build_model(run.options.model, **_dense_settings(run.options, run.corpus), meta=True)
    state = run.model.state_dict()
    names: dict[Tensor, str] = {}
    for name, tensor in outline.state_dict(keep_vars=True).items():
        names.setdefault(tensor, name)
    return outline, {name: state[name] for name in names.values()}, transposed_in(run.model)
