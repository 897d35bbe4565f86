"""Tokenizers: trained ones are lossless and repeatable; those that cannot serve are refused."""

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from switchlora.data import Corpus
from switchlora.data.tokenizer import _save, loaded_tokenizer, train_bpe, vocab_to_train
from switchlora.errors import UserError
from tests.unit.data.corpora import documents, unigram

TEXT = "def f(x):\n    return x  # žluťoučký 🐎\n"


def test_trained_bpe_is_lossless_for_any_text() -> None:
    tokenizer = train_bpe(300, iter([TEXT] * 3))
    for text in (TEXT, "\x00\x01 日本語\r\n\t  ", "<|endoftext|>"):
        assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text
    assert tokenizer.token_to_id("<|endoftext|>") == 0
    assert tokenizer.get_vocab_size() <= 300


def test_training_is_repeatable_across_processes(tmp_path: Path) -> None:
    code = (
        "from switchlora.data.tokenizer import train_bpe\nfrom switchlora.data.sources import open_source\n"
        "from itertools import islice\n"
        "print(train_bpe(700, (p.text for p in islice(open_source('stdlib').documents(), 40))).to_str())"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": seed},
        ).stdout
        for seed in ("1", "2")
    ]  # fmt: skip
    assert runs[0] == runs[1]
    assert len(runs[0]) > 5000


def test_trained_tokenizer_comes_from_the_cache(load: Callable[..., Corpus], write_jsonl: Callable[..., Path]) -> None:
    path = write_jsonl(documents(30))
    lines: list[str] = []
    first = load(path, None, vocab_size=320, log=lines.append).tokenizer
    again = load(path, "train:320", log=lines.append).tokenizer
    assert sum("training a byte-level BPE" in line for line in lines) == 1
    assert first.backend_tokenizer.to_str() == again.backend_tokenizer.to_str()
    assert first.eos_token == "<|endoftext|>"
    assert first.decode(first(TEXT)["input_ids"]) == TEXT


def test_a_full_disk_is_an_error_of_the_disk(tmp_path: Path) -> None:
    """Of which tokenizers makes an Exception without a number."""
    (tmp_path / "tokenizer.json").symlink_to("/dev/full")
    with pytest.raises(OSError, match="No space left on device"):
        _save(train_bpe(300, iter(["some text"])), tmp_path)


def test_a_file_and_a_folder_load(tmp_path: Path) -> None:
    unigram().save_pretrained(tmp_path / "t5ish")
    for name in ("t5ish", "t5ish/tokenizer.json"):
        tokenizer = loaded_tokenizer(str(tmp_path / name), vocab_size=34)
        assert tokenizer.eos_token == "</s>"


@pytest.mark.parametrize(
    ("specification", "vocab_size", "says"),
    [
        ("train:", None, "whole number"),
        ("train:many", None, "whole number"),
        ("train:-5", None, "whole number"),
        ("train:256", None, "at least 257"),
        ("train:5000", 4096, "larger than the model's vocabulary of 4096"),
        (None, None, "no tokenizer is named"),
    ],
)
def test_bad_vocabularies(specification: str | None, vocab_size: int | None, says: str) -> None:
    with pytest.raises(UserError, match=says) as caught:
        vocab_to_train(specification, vocab_size)
    assert str(caught.value).startswith("--tokenizer ")


def test_vocabularies_to_train() -> None:
    assert vocab_to_train("train:300", None) == 300
    assert vocab_to_train(None, 32_100) == 32_100
    assert vocab_to_train("google/t5", 32_100) is None


def test_tokenizers_that_cannot_serve(tmp_path: Path) -> None:
    unigram().save_pretrained(tmp_path / "fine")
    unigram(end=None).save_pretrained(tmp_path / "endless")
    (tmp_path / "damaged.json").write_text("{")
    (tmp_path / "bare").mkdir()
    cases = [("fine", 20, "do not fit"), ("endless", None, "no end-of-text"), ("damaged.json", None, "no tokenizer"),
             ("bare", None, "no tokenizer"), ("missing.json", None, "no such file")]  # fmt: skip
    for name, vocab_size, says in cases:
        with pytest.raises(UserError, match=says) as caught:
            loaded_tokenizer(str(tmp_path / name), vocab_size)
        assert "\n" not in str(caught.value)


def test_a_hub_name_without_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="no local path, and the hub gave nothing"):
        loaded_tokenizer("somebody/no-such-tokenizer", None)
