"""A comparison so small that it takes half a minute."""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.waiting import wait_for

MODEL = {
    "model_type": "llama",
    "vocab_size": 300,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "max_position_embeddings": 64,
    "tie_word_embeddings": False,
}


@pytest.fixture(scope="session")
def ground(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model, a text and a cache."""
    folder = tmp_path_factory.mktemp("compare")
    (folder / "config.json").write_text(json.dumps(MODEL))
    assert argparse.__file__ is not None
    (folder / "text.txt").write_bytes(Path(argparse.__file__).read_bytes())
    return folder


@pytest.fixture
def config(ground: Path, tmp_path: Path) -> Callable[..., Path]:
    """Write the YAML file of a small comparison: `config(methods=..., pretrain={...})`."""

    return lambda **changes: _write(tmp_path / "compare.yaml", ground, **{"output": str(tmp_path / "out"), **changes})


def _write(path: Path, ground: Path, pretrain: dict[str, Any] | None = None, **changes: Any) -> Path:
    shared = {
        "model": str(ground / "config.json"), "data": [str(ground / "text.txt")], "tokenizer": "train:300",
        "steps": 6, "batch_size": 4, "seq_len": 32, "eval_every": 2, "save_every": 2, "eval_tokens": 500,
        "device": "cpu", "interval": 10, "restart_every": 2,
    }  # fmt: skip
    values = {
        "methods": {"full": {"lr": 0.002, "other_lr": 0.01}, "switchlora": {}},
        "ranks": [8], "seeds": [0, 1], "tune": False, "jobs": 2, "pretrain": {**shared, **(pretrain or {})}, **changes,
    }  # fmt: skip
    path.write_text(yaml.safe_dump(values, sort_keys=False))
    return path


@pytest.fixture
def start(ground: Path) -> Callable[..., "subprocess.Popen[str]"]:
    """Start `switchlora compare` as a user does."""

    def start_command(path: Path, *words: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", "switchlora", "compare", "--config", str(path), *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "SWITCHLORA_CACHE": str(ground / "cache")},
        )

    return start_command


@pytest.fixture
def compare(start: Callable[..., "subprocess.Popen[str]"]) -> Callable[..., "subprocess.CompletedProcess[str]"]:
    """The same to its end."""

    def run(path: Path, *words: str) -> "subprocess.CompletedProcess[str]":
        process = start(path, *words)
        output, errors = process.communicate(timeout=300)
        return subprocess.CompletedProcess(process.args, process.returncode, output, errors)

    return run


@pytest.fixture(scope="session")
def done_once(ground: Path) -> Path:
    """The folder of a comparison with one seed that is over."""
    environment = {**os.environ, "SWITCHLORA_CACHE": str(ground / "cache")}
    path = _write(ground / "once.yaml", ground, output=str(ground / "once"), seeds=[0])
    subprocess.run([sys.executable, "-m", "switchlora", "compare", "--config", path], check=True, env=environment)
    return ground / "once"


@pytest.fixture
def finished(done_once: Path, tmp_path: Path) -> Path:
    """A copy of it, where `config` puts its output."""
    shutil.copytree(done_once, tmp_path / "out")
    return tmp_path / "out"


def results_in(folder: Path) -> dict[str, dict[str, Any]]:
    """The records of a comparison, by the name of their file."""
    return {path.stem: json.loads(path.read_text()) for path in sorted((folder / "results").glob("*.json"))}


def interrupt_when(process: "subprocess.Popen[str]", ready: Callable[[], bool], how: signal.Signals) -> None:
    """Send a signal as soon as something is so."""
    wait_for(ready, process, seconds=120)
    process.send_signal(how)
