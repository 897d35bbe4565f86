"""A model and a corpus so small that a whole run takes a second or two."""

import argparse
import ast
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from switchlora.training.options import PretrainOptions
from tests.distributed.runs import as_words

MODEL = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}
RUN = {
    "tokenizer": "train:300",
    "r": 8,
    "interval": 10.0,
    "steps": 12,
    "batch_size": 4,
    "seq_len": 32,
    "warmup": 2,
    "save_every": 4,
    "eval_every": 6,
    "threads": 1,
}


def write_corpus(folder: Path) -> None:
    """Two real texts, 150 kB."""
    for module in (argparse, ast):
        assert module.__file__ is not None
        (folder / f"{module.__name__}.txt").write_bytes(Path(module.__file__).read_bytes())


@pytest.fixture(scope="session")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("corpus")
    write_corpus(folder)
    return folder


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(scope="session")
def model_config(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "config.json"
    path.write_text(json.dumps(MODEL))
    return path


@pytest.fixture
def values(corpus: Path, model_config: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Options of a small run, but for its output folder."""
    monkeypatch.setenv("SWITCHLORA_CACHE", str(cache))
    return {"data": (str(corpus),), "model": str(model_config), **RUN}


@pytest.fixture
def options(values: dict[str, Any]) -> Callable[..., PretrainOptions]:
    """Make options of a small run: `options(output, name=value, ...)`."""
    return lambda output, **changes: PretrainOptions(output=str(output), **{**values, **changes})


@pytest.fixture
def start(values: dict[str, Any]) -> Callable[..., subprocess.Popen[str]]:
    """Start a small run in a process of its own, as a user does: `start(output, name=value, ...)`."""

    def start_run(output: Path, **changes: Any) -> subprocess.Popen[str]:
        words = [sys.executable, "-m", "switchlora", "pretrain", "--output", str(output)]
        words += as_words({**values, **changes})
        return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=dict(os.environ))

    return start_run
