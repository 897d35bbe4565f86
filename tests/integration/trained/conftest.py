"""A finished run of a second or two, shared by the tests of what is done with one."""

import argparse
import json
from pathlib import Path
from typing import Any

import pytest

from switchlora.training.loop import pretrain
from switchlora.training.options import PretrainOptions
from tests.integration.trained.finetuning import small_options, write_task

MODEL = {
    "model_type": "llama", "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 2, "max_position_embeddings": 64, "tie_word_embeddings": False,
}  # fmt: skip


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `run`, a finished one, its text `text.txt`, and `cache`."""
    folder = tmp_path_factory.mktemp("trained")
    (folder / "config.json").write_text(json.dumps(MODEL))
    assert argparse.__file__ is not None
    (folder / "text.txt").write_bytes(Path(argparse.__file__).read_bytes())
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SWITCHLORA_CACHE", str(folder / "cache"))
        pretrain(
            PretrainOptions(
                output=str(folder / "run"), data=(str(folder / "text.txt"),), tokenizer="train:300",
                model=str(folder / "config.json"), method="switchlora", r=4, steps=30, batch_size=8, seq_len=32,
                lr=2e-2, device="cpu", threads=1,
            )
        )  # fmt: skip
    return folder


@pytest.fixture
def options(trained: Path, tmp_path: Path) -> Any:
    """Options of a small fine-tuning of that run: `options(name=value, ...)`."""
    data = write_task(tmp_path / "sst2")
    places = {"checkpoint": str(trained / "run"), "data": str(data), "output": str(tmp_path / "out")}
    return lambda **values: small_options(**{**places, **values})
