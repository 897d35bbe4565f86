"""One place that fills in what most tests of the data do not care about."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from switchlora.data import Corpus, load_corpus


@pytest.fixture
def write_jsonl(tmp_path: Path) -> Callable[..., Path]:
    def write(texts: list[str], name: str = "corpus.jsonl") -> Path:
        path = tmp_path / name
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
        return path

    return write


@pytest.fixture
def load(tmp_path: Path) -> Callable[..., Corpus]:
    def load_with(source: object, tokenizer: str | None = "train:300", **others: object) -> Corpus:
        options = dict(seq_len=32, num_sequences=16, vocab_size=None, log=lambda line: None)
        options["cache_dir"] = tmp_path / "cache"
        source = [str(name) for name in source] if isinstance(source, list) else str(source)
        return load_corpus(source, tokenizer, **{**options, **others})  # type: ignore[arg-type]

    return load_with
