"""Runs of two processes under torchrun, and what must be the same of two runs."""

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any


def as_words(values: Mapping[str, Any]) -> list[str]:
    """Options as one types them."""
    words = []
    for name, value in values.items():
        given = value if isinstance(value, tuple) else () if value is True else (value,)
        words += ["--" + name.replace("_", "-"), *map(str, given)]
    return words


def torchrun_words(*launch: str) -> list[str]:
    """The start of a command line that pre-trains in two processes; `launch`: more options of torchrun."""
    words = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--standalone", *launch]
    return [*words, "-m", "--", "switchlora", "pretrain"]


def assert_same_bits(ours: Path, undisturbed: Path) -> None:
    """Steps, losses and switches of finished runs, and every weight, bit for bit."""
    for folder in (ours, undisturbed):
        assert (folder / "result.json").exists(), folder
    steps = [
        [
            (row["step"], row["loss"], row["switches_done"])
            for row in map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
        ]
        for folder in (ours, undisturbed)
    ]
    assert steps[0] == steps[1], f"{ours}: steps differ from those of {undisturbed}"
    files = sorted(path.name for path in undisturbed.glob("model*.safetensors"))
    assert files
    for name in files:
        assert (ours / name).read_bytes() == (undisturbed / name).read_bytes(), f"{ours / name} differs"
