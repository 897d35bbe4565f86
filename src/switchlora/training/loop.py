"""Pre-training, from options to a dense checkpoint, on plain PyTorch.

    read the data -> build the model -> [ forward, backward, clip, step, evaluate, save ] x steps -> export

The loop knows methods only through their protocol and the disk only through `RunFolder`. The batch of step t
and every choice of the method are functions of (seed, t): a run that goes on from a checkpoint repeats, bit for
bit, what it would have done undisturbed.
"""

import contextlib
import math
import os
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from switchlora.data import Corpus, batch
from switchlora.data.tokenizer import TRAIN_PREFIX
from switchlora.errors import NonFiniteError, Preempted, RanksDifferError
from switchlora.machine import description, devices, signals
from switchlora.machine.console import say
from switchlora.machine.files import alone_in
from switchlora.shards import is_sharded
from switchlora.training.checkpoint import Checkpoint
from switchlora.training.evaluate import PERIODIC_TOKENS, evaluate
from switchlora.training.export import export, make_result
from switchlora.training.folder import RunFolder, changes_worth_a_word, claim_folder
from switchlora.training.options import PretrainOptions
from switchlora.training.parallel import Processes, check_launch, no_sync, processes
from switchlora.training.presets import has_weights
from switchlora.training.records import records_of
from switchlora.training.resolve import resolve, unused_options
from switchlora.training.run import Run, check_model, checkpoints_of, last_good, load_data
from switchlora.training.schedule import learning_rate_factor
from switchlora.training.sharing import reshard

if TYPE_CHECKING:
    from switchlora.training.run import Checkpoints


def pretrain(options: PretrainOptions) -> dict[str, Any]:
    """Run `switchlora pretrain`: train, or go on, or say that it is done; see docs/pretrain.md.

    Args:
        options: what the user said; the rest is resolved here.

    Returns:
        what result.json holds; empty after a dry run.

    Raises:
        UserError: bad options, data, model or output folder; nothing on disk has changed.
        NonFiniteError: the loss or a gradient is no longer finite; the last checkpoint stands.
        Preempted, KeyboardInterrupt: SIGTERM or Ctrl-C; a checkpoint was written first.
    """
    options = resolve(options)
    check_launch(options, os.environ)
    if options.dry_run:
        return _dry_run(options)
    device = devices.prepare(options.device, options.threads, options.cpu_products)
    with contextlib.ExitStack() as held:
        held.enter_context(signals.sigterm_raises())
        ranks = held.enter_context(processes(options, device))
        folder = ranks.on_first(lambda: claim_folder(options))
        result = ranks.on_first(folder.finished)
        if result is not None and not options.overwrite:
            say(f"{folder.path}: this run is finished (validation perplexity {result['validation_perplexity']:.2f})")
            return result
        if existed := ranks.on_first(folder.path.exists):
            ranks.on_first(lambda: _enter(folder, held))
        checkpoint = ranks.on_first(folder.checkpoint_to_resume)
        options = ranks.on_each(lambda: check_model(options))
        ranks.on_first(lambda: _say_what_changed(folder, options, checkpoint, device))
        corpus = _load_data(options, ranks)
        held.callback(corpus.close)
        run = Run(options, corpus, device, ranks, checkpoints_of(folder, ranks))
        say(run.prepared)
        if checkpoint is not None:
            ranks.on_each(lambda: run.restore(checkpoint))
            say(f"going on after step {run.step} from {checkpoint.path}")
        ranks.on_first(lambda: _begin(folder, options, checkpoint, None if existed else held))
        train(run, folder)
        try:
            return finish(run, folder)
        except Preempted:
            if ranks.is_first:
                folder.mark_preempted(run.step)
            raise


def _load_data(options: PretrainOptions, ranks: Processes) -> Corpus:
    """The data of every process; the first one makes the cache from which the others read."""
    corpora: list[Corpus] = []
    ranks.on_first(lambda: corpora.append(load_data(options, say)))
    return ranks.on_each(lambda: corpora[0] if corpora else load_data(options, lambda line: None))


def _enter(folder: RunFolder, held: contextlib.ExitStack) -> None:
    held.enter_context(alone_in(folder.path))
    folder.checkpoints.remove_leftovers()


def _begin(
    folder: RunFolder, options: PretrainOptions, checkpoint: Checkpoint | None, held: contextlib.ExitStack | None
) -> None:
    """Write down what is run; `held`: the folder is made only now, so that a mistake leaves nothing behind."""
    if held is not None:
        held.enter_context(alone_in(folder.path))
        folder.require_unused()
    folder.start(options, checkpoint)


def train(run: Run, folder: RunFolder) -> None:
    """Do the steps that are left."""
    options, method = run.options, run.method
    assert options.steps is not None
    with signals.StopRequest() as stop, records_of(run, folder) as records, whole_at_the_end(run.checkpoints):
        while run.step < options.steps:
            with run.count_traffic(options.eval_every) as traffic:
                row = train_step(run, folder)
            if traffic.bytes_by_kind:
                row["traffic_bytes"] = run.traffic_bytes = traffic.bytes_by_kind
            row |= method.metrics(run.optimizer)
            if due(run.step, options.eval_every, options.steps):
                row["validation_loss"] = validate(run, min(PERIODIC_TOKENS, options.eval_tokens))
            row |= {"peak_memory_bytes": devices.peak_memory_bytes(run.device), "wall_seconds": run.wall_seconds}
            records.add(row)
            requested, failed, lost = run.processes.any(stop.requested, run.checkpoints.has_failed, records.has_failed)
            saves = requested or due(run.step, options.save_every, options.steps)
            if failed or lost or saves:
                run.checkpoints.wait()  # for the one before; which raises where it has failed
            if lost:
                run.processes.on_first(records.require_kept)  # which raises, too
            if saves:
                run.processes.on_first(records.sync)
                run.save(folder)
            if requested and run.step < options.steps:
                run.checkpoints.wait()
                run.processes.on_first(lambda: folder.mark_preempted(run.step))
                raise stopped(stop, run.step)


@contextlib.contextmanager
def whole_at_the_end(checkpoints: "Checkpoints") -> Iterator[None]:
    """Wait for what is still being written, unless something broke that others may be waiting for, too."""
    try:
        yield
    except RanksDifferError:  # on all processes alike; numbers that are not finite have waited already
        checkpoints.wait()
        raise
    checkpoints.wait()


def train_step(run: Run, folder: RunFolder) -> dict[str, Any]:
    """One optimizer step: its batch, gradients, clipping, learning rate and update; returns its metrics."""
    options, started = run.options, time.monotonic()
    assert options.batch_size is not None and options.steps is not None and options.warmup is not None
    fused_backward = options.fused_backward and "fused_backward" in run.method.uses
    factor = learning_rate_factor(
        run.step,
        steps=options.steps,
        warmup=options.warmup,
        schedule=options.schedule,
        min_lr_ratio=options.min_lr_ratio,
    )
    for group in run.optimizer.param_groups:
        group["lr"] = group["initial_lr"] * factor
    whole_batch = batch(run.corpus.train, seed=options.seed, step=run.step, batch_size=options.batch_size)
    tokens = run.processes.own_share(whole_batch)
    loss = torch.zeros((), device=run.device)
    parts = tokens.split(options.micro_batch_size or options.batch_size)  # type: ignore[no-untyped-call]
    for number, rows in enumerate(parts, start=1):
        part = rows.to(run.device, non_blocking=True)
        with contextlib.nullcontext() if number == len(parts) else no_sync(run.forward):
            with run.autocast():
                part_loss = run.forward(input_ids=part, labels=part).loss * (len(part) / len(tokens))
            if fused_backward:
                _require_finite(float(part_loss.detach()), 0.0, run, folder)  # while nothing has moved yet
            part_loss.backward()
        loss += part_loss.detach()
    own_loss, loss = loss, run.processes.mean(loss)
    norms = dict[str, float]()
    if not fused_backward:  # there, the gradients are gone
        norm = torch.nn.utils.clip_grad_norm_(run.clipped, options.clip or math.inf)
        norm = norm.full_tensor() if is_sharded(norm) else norm  # type: ignore[attr-defined]
        norms = {"grad_norm": float(norm)}
        _require_finite(float(loss), norms["grad_norm"], run, folder, own_loss)
    run.optimizer.step()
    if run.step + 1 in (1, options.steps):  # where a method begins otherwise than it ends, by the larger
        run.measure()  # now, when gradients and moments are all there
    run.optimizer.zero_grad(set_to_none=True)
    run.step += 1
    value = float(loss)  # the device is done with the step now, so the seconds hold all of it
    seconds = time.monotonic() - started
    run.training_seconds += seconds
    return {
        "step": run.step,
        "loss": value,
        "lr": run.optimizer.param_groups[0]["lr"],
        "other_lr": run.optimizer.param_groups[-1]["lr"],
        **norms,
        "tokens": run.step * run.tokens_per_step,
        "tokens_per_second": run.tokens_per_step / seconds,
    }


def validate(run: Run, max_tokens: int) -> float:
    """Validation loss in nats per token over at most `max_tokens` tokens."""
    assert run.options.batch_size is not None
    part = evaluate(
        run.model if run.processes.strategy == "ddp" else run.forward,
        run.corpus.valid,
        batch_size=run.options.micro_batch_size or run.options.batch_size,
        max_tokens=max_tokens,
        device=run.device,
        autocast=run.autocast(),
        rank=run.processes.rank,
        world_size=run.processes.world_size,
    )
    if run.processes.mesh is not None:
        reshard(run.model)
    return float(run.processes.sum(part))


def finish(run: Run, folder: RunFolder) -> dict[str, Any]:
    """Evaluate, turn the model into a plain dense one, and write what the run leaves."""
    result = make_result(run, validate(run, run.options.eval_tokens))
    export(run, folder, result)
    say(
        f"validation perplexity {result['validation_perplexity']:.2f}, {result['bits_per_byte']:.3f} bits per byte, "
        f"{result['wall_seconds']:.0f} seconds; the model is in {folder.path}"
    )
    return result


def due(step: int, every: int | None, steps: int) -> bool:
    """Whether something that happens every so many steps, and at the end, happens after `step`."""
    return step == steps or bool(every and step % every == 0)


def stopped(stop: signals.StopRequest, step: int) -> BaseException:
    """The exception for a run that was asked to stop, after its checkpoint was written."""
    say(f"stopped after step {step}, with a checkpoint; the same command goes on from there")
    return (
        KeyboardInterrupt()
        if stop.interrupted
        else Preempted(f"terminated after step {step}; a checkpoint was written")
    )


def _require_finite(loss: float, norm: float, run: Run, folder: RunFolder, own_loss: Tensor | None = None) -> None:
    """Stop before the update that would spread a NaN or an infinity into the weights; all processes together."""
    if math.isfinite(loss) and math.isfinite(norm):
        return
    what = f"loss {loss}" if not math.isfinite(loss) else f"gradient norm {norm}"
    if run.processes.world_size > 1:
        of_loss = own_loss is not None and not bool(own_loss.isfinite())
        ranks = [str(rank) for rank, found in enumerate(run.processes.collect(of_loss or run.watch.found)) if found]
        what += f", from rank {' and '.join(ranks)}" if ranks else ", from no rank's own gradient: a sum overflowed"
    raise NonFiniteError(f"step {run.step + 1}: {what}; {last_good(run, folder)}")


def _say_what_changed(
    folder: RunFolder, options: PretrainOptions, checkpoint: Checkpoint | None, device: torch.device
) -> None:
    """Notes that no error is due for: options without use, and what may change the last bits of a resumed run."""
    _say_what_has_no_use(options)
    if checkpoint is None:
        if has_weights(options.model) and str(options.tokenizer).startswith(TRAIN_PREFIX):
            say(f"note: --tokenizer {options.tokenizer} gives the tokens of --model's weights other meanings")
        return
    differences = [*changes_worth_a_word(folder.path, options)]
    differences += description.same_machine(checkpoint.meta["machine"], description.describe_machine(device))
    if differences:
        say(f"note: differs from before the interruption, so the last bits may too: {', '.join(differences)}")


def _say_what_has_no_use(options: PretrainOptions) -> None:
    for flag in unused_options(options):
        say(f"note: {flag} has no use with --method {options.method}")


def _dry_run(options: PretrainOptions) -> dict[str, Any]:
    from switchlora.training.dry_run import plan

    _say_what_has_no_use(options)
    say(str(plan(options)))
    return {}
