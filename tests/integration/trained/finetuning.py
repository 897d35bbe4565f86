"""A task that words decide, and options of a small fine-tuning."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

from switchlora.finetuning.options import FinetuneOptions

WORDS = (("error", "raise", "fail"), ("return", "self", "value"))
RATES = {"full": 3e-3, "subset": 1e-2, "lora": 3e-2, "switchlora": 3e-2}


def write_task(folder: Path, *, flipped_dev: bool = False) -> Path:
    """SST-2's format; the class is which words occur."""

    def row(generator: random.Random, file: str, number: int) -> str:
        label = number % 2
        words = [generator.choice("xyz") for _ in range(3)] + [generator.choice(WORDS[label])]
        generator.shuffle(words)
        return f"{' '.join(words)}\t{1 - label if flipped_dev and file == 'dev' else label}"

    return _write(folder, "sentence\tlabel", row)


def write_scores(folder: Path) -> Path:
    """STS-B's format; the score is how many words of the first kind the second sentence has."""

    def row(generator: random.Random, _: str, number: int) -> str:
        score = number % 6
        words = [generator.choice(WORDS[place >= score]) for place in range(5)]
        generator.shuffle(words)
        return f"{number}\tx y\t{' '.join(words)}\t{score}.0"

    return _write(folder, "index\tsentence1\tsentence2\tscore", row)


def _write(folder: Path, header: str, row: Callable[[random.Random, str, int], str]) -> Path:
    folder.mkdir(exist_ok=True)
    generator = random.Random(0)
    for file, num in (("train", 96), ("dev", 40)):
        lines = [header, *(row(generator, file, number) for number in range(num))]
        (folder / f"{file}.tsv").write_text("\n".join(lines) + "\n")
    return folder


def small_options(**values: Any) -> FinetuneOptions:
    """Options for a second or two, of which checkpoint, data and output are given."""
    common = {
        "task": "sst2", "epochs": 4, "seeds": 2, "seq_len": 32, "batch_size": 8, "r": 4, "device": "cpu", "threads": 1,
        "lr": (RATES[values.get("method", "full")],),
    }  # fmt: skip
    return FinetuneOptions(**{**common, **values})
