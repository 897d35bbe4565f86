"""What a finished run leaves: a dense Hugging Face checkpoint, a card, a curve, a sample, and last the result.

The order matters: `result.json` says that the run is whole, so it is written when everything else is there.
"""

import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from switchlora.machine import description, devices
from switchlora.machine.files import atomic_write_json, let_others_read, writing
from switchlora.report.loss_curve import write_loss_curve
from switchlora.report.model_card import write_model_card
from switchlora.report.sample import PROMPTS, continuations, write_sample
from switchlora.training.dense_shards import remove_weights, write_dense_shards
from switchlora.training.evaluate import bits_per_byte, perplexity
from switchlora.training.folder import RESULT, RunFolder
from switchlora.training.metrics import read_metrics
from switchlora.training.run import Run, dense_outline
from switchlora.training.sharing import reshard
from switchlora.training.source import source_hash


def export(run: Run, folder: RunFolder, result: dict[str, Any]) -> None:
    """Write everything, `result.json` last; called by all processes together.

    Args:
        result: the numbers and settings of the run.

    Raises:
        UserError: a disk refused.
    """
    run.model.eval()
    run.model.config.use_cache = True  # type: ignore[union-attr]  # off while training, right for generating
    if run.processes.mesh is not None:
        texts = continuations(run.model, run.corpus.tokenizer, PROMPTS, seed=result["seed"])
        reshard(run.model)
        write_dense_shards(folder.path, *dense_outline(run), run.processes)
        run.processes.on_first(lambda: _write_pages(run, folder, result, texts))
        return
    run.method.finish(run.model)
    run.processes.on_first(lambda: _write_whole(run, folder, result))


def _write_whole(run: Run, folder: RunFolder, result: dict[str, Any]) -> None:
    with writing("the results", folder.path):
        remove_weights(folder.path)
        save_quietly(run.model, folder.path)
    texts = continuations(run.model, run.corpus.tokenizer, PROMPTS, seed=result["seed"])
    _write_pages(run, folder, result, texts)


def _write_pages(run: Run, folder: RunFolder, result: dict[str, Any], texts: Sequence[str]) -> None:
    path, rows = folder.path, read_metrics(folder.metrics)
    with writing("the results", path):
        run.corpus.tokenizer.save_pretrained(path)
        write_model_card(path / "README.md", result=result, rows=rows)
        write_loss_curve(path / "loss.png", rows, title=title(result))
        write_sample(path / "sample.txt", texts, seed=result["seed"])
        atomic_write_json(path / RESULT, result)


def save_quietly(model: Any, path: Path) -> None:
    """save_pretrained without its progress bars, and with files that others may read as they may the rest."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        model.save_pretrained(path)
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
    for weights in path.glob("model*.safetensors"):
        let_others_read(weights)


def make_result(run: Run, validation_loss: float) -> dict[str, Any]:
    """What result.json holds: what was run, on what, and what came of it. Losses are in nats per token."""
    tokens = run.step * run.tokens_per_step
    return {
        "method": run.options.method,
        "seed": run.options.seed,
        "validation_loss": validation_loss,
        "validation_perplexity": perplexity(validation_loss),
        "bits_per_byte": bits_per_byte(validation_loss, run.corpus.valid),
        "steps": run.step,
        "tokens": tokens,
        "trainable_parameters": sum(p.numel() for p in run.trainable),
        "total_parameters": run.total_parameters,
        "tokens_per_second": tokens / run.training_seconds,
        "peak_memory_bytes": devices.peak_memory_bytes(run.device),
        "wall_seconds": run.wall_seconds,
        "training_seconds": run.training_seconds,
        "data_fingerprint": run.corpus.fingerprint,
        **{"switches_requested": 0, "switches_done": 0, **run.method.totals(run.optimizer)},
        **run.measured,
        "traffic_bytes": run.traffic_bytes,
        "command": command(),
        "source": source_hash(run.options.method),
        "config": run.options.to_dict(),
        **description.machine_record(run.device),
    }


def title(result: dict[str, Any]) -> str:
    """Model, method, rank and length of a run, for figures."""
    config = result["config"]
    rank = f", r = {config['r']}" if config["r"] else ""
    return f"{config['model']}, {result['method']}{rank}, {result['steps']:,} steps"


def command() -> str:
    """The command line of this process, as one could type it again."""
    program = Path(sys.argv[0])
    words = ["python", "-m", "switchlora"] if program.name == "__main__.py" else [program.name]
    return shlex.join([*words, *sys.argv[1:]])
