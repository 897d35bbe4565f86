"""What a finished run leaves: a dense Hugging Face checkpoint, a card, a curve, a sample, and last the result.

The order matters: `result.json` says that the run is whole, so it is written when everything else is there.
"""

import json
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from switchlora.report.loss_curve import write_loss_curve
from switchlora.report.model_card import write_model_card
from switchlora.report.sample import write_sample
from switchlora.training.files import atomic_write_text
from switchlora.training.folder import RESULT, RunFolder
from switchlora.training.metrics import read_metrics

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def export(folder: RunFolder, model: Any, tokenizer: "PreTrainedTokenizerBase", result: dict[str, Any]) -> None:
    """Write everything, `result.json` last.

    Args:
        model: a transformers model, dense, as `method.finish` left it.
        result: the numbers and settings of the run.
    """
    path = folder.path
    model.eval()
    model.config.use_cache = True  # off while training, right for generating
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    rows = read_metrics(folder.metrics)
    write_model_card(path / "README.md", result=result, rows=rows)
    write_loss_curve(path / "loss.png", rows, title=title(result))
    write_sample(path / "sample.txt", model, tokenizer, seed=result["seed"])
    atomic_write_text(path / RESULT, json.dumps(result, indent=2, ensure_ascii=False) + "\n")


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
