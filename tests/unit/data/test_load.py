"""From `--data` to blocks: nothing lost, nothing twice, nothing done again, nothing held in memory."""

import json
import shutil
import subprocess
import sys
import time
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from switchlora.data import Blocks, Corpus
from switchlora.errors import UserError
from tests.unit.data.corpora import documents, unigram

Load = Callable[..., Corpus]
Write = Callable[..., Path]
END = "<|endoftext|>"


def stream_of(blocks: Blocks) -> list[int]:
    return np.concatenate([blocks[i] for i in range(len(blocks))]).tolist()


def text_of(corpus: Corpus, blocks: Blocks) -> str:
    return corpus.tokenizer.decode(stream_of(blocks))


def test_blocks_decode_to_the_documents(load: Load, write_jsonl: Write) -> None:
    texts = documents(300)
    corpus = load(write_jsonl(texts), seq_len=16)
    train = text_of(corpus, corpus.train).split(END)
    valid = text_of(corpus, corpus.valid).split(END)
    assert set(train[:-1]) | set(valid[:-1]) <= set(texts)
    assert not set(train[:-1]) & set(valid[:-1])
    # Every document is there, in its order, but for the two tails that fill no block.
    assert train[:-1] == [text for text in texts if text in set(train[:-1])]
    assert len(train[:-1]) + len(valid[:-1]) >= len(texts) - 2
    assert len(valid) > 1


def test_end_of_text_in_a_document_is_text(load: Load, write_jsonl: Write) -> None:
    texts = [f"{text} says {END} and goes on" for text in documents(100)]
    corpus = load(write_jsonl(texts))
    ids = stream_of(corpus.train)
    complete = text_of(corpus, corpus.train).count("Dokument") - 1
    assert complete <= ids.count(corpus.tokenizer.eos_token_id) <= complete + 1


def test_a_single_text_file_has_two_sides(load: Load, tmp_path: Path) -> None:
    book = "".join(documents(50))
    (tmp_path / "book.txt").write_text(book, encoding="utf-8")
    corpus = load(tmp_path / "book.txt", seq_len=1)
    train, valid = stream_of(corpus.train), stream_of(corpus.valid)
    end = corpus.tokenizer.eos_token_id
    assert train.count(end) + valid.count(end) == 1  # one document, one end
    together = text_of(corpus, corpus.train) + text_of(corpus, corpus.valid)
    assert sorted(together.replace(END, "")) == sorted(book)
    assert corpus.train.num_bytes + corpus.valid.num_bytes == len(book.encode())


def test_bytes_and_tokens_are_those_of_whole_blocks(load: Load, write_jsonl: Write) -> None:
    texts = documents(200)
    one = load(write_jsonl(texts), seq_len=1)
    assert one.train.num_bytes + one.valid.num_bytes == sum(len(text.encode()) for text in texts)
    many = load(write_jsonl(texts), seq_len=500)
    assert many.train.num_tokens == len(many.train) * 500
    text = text_of(many, many.train).replace(END, "")
    assert many.train.num_bytes == pytest.approx(len(text.encode()), rel=0.01)


def test_the_second_run_does_not_tokenise(load: Load, write_jsonl: Write) -> None:
    path = write_jsonl(documents(2000))
    lines: list[str] = []
    first = load(path, log=lines.append)
    assert "tokenising the corpus" in lines
    lines.clear()
    started = time.monotonic()
    second = load(path, log=lines.append)
    assert time.monotonic() - started < 1.0
    assert len(lines) == 1
    assert stream_of(first.valid) == stream_of(second.valid)
    third = load(path, log=lines.append, seq_len=8)  # another block length reads the same files
    assert "tokenising the corpus" not in lines
    assert third.train[1].tolist() == first.train[0][8:16].tolist()


def test_the_cache_follows_the_corpus(load: Load, write_jsonl: Write) -> None:
    before = load(write_jsonl(documents(200)))
    after = load(write_jsonl(documents(200, start=1000)))
    assert stream_of(before.train) != stream_of(after.train)


def test_a_damaged_cache_is_built_again(load: Load, write_jsonl: Write, tmp_path: Path) -> None:
    path = write_jsonl(documents(200))
    want = stream_of(load(path).train)
    (shard,) = (tmp_path / "cache").glob("tokens-*/train-*.bin")
    shard.write_bytes(shard.read_bytes()[:100])
    assert stream_of(load(path).train) == want


def test_two_builds_agree_bitwise(load: Load, write_jsonl: Write, tmp_path: Path) -> None:
    path = write_jsonl(documents(300))
    built = []
    for cache in ("one", "two"):
        load(path, cache_dir=tmp_path / cache)
        built.append({f.name: f.read_bytes() for f in sorted((tmp_path / cache).glob("tokens-*/*"))})
    assert built[0] == built[1]


def test_memory_does_not_grow_with_the_corpus(load: Load, tmp_path: Path) -> None:
    path = tmp_path / "large.jsonl"
    with path.open("w") as file:
        for number in range(4500):
            file.write(json.dumps({"text": f"{number} lorem ipsum dolor sit amet " * 170}) + "\n")
    assert path.stat().st_size > 21e6
    (tmp_path / "small.txt").write_text("lorem ipsum dolor sit amet " * 3000)
    load(tmp_path / "small.txt", "train:400")  # imports are not what is measured
    (tokenizer,) = (tmp_path / "cache").glob("tokenizer-*/tokenizer.json")
    tracemalloc.start()
    try:
        corpus = load(path, str(tokenizer))
        sum(int(corpus.train[i].sum()) for i in range(0, len(corpus.train), 1000))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 16e6  # the survey holds 8 MiB of text, a batch 1 MiB and its ids as Python numbers


def test_t5_style_tokenizer(load: Load, write_jsonl: Write, tmp_path: Path) -> None:
    unigram().save_pretrained(tmp_path / "t5ish")
    texts = [f"the word {chr(97 + i % 26)}{chr(97 + i // 26)} the {'word ' * (i % 9)}end." for i in range(400)]
    corpus = load(write_jsonl(texts), str(tmp_path / "t5ish"), vocab_size=40)
    decoded = text_of(corpus, corpus.train).split("</s>")[:-1]
    assert len(decoded) > 250
    assert [text.strip() for text in decoded] == [text for text in texts if f" {text}" in decoded or text == decoded[0]]


def test_large_vocabularies_take_four_bytes(load: Load, write_jsonl: Write, tmp_path: Path) -> None:
    tokenizer = unigram()
    tokenizer.add_tokens([f"<extra{i}>" for i in range(70_000)])
    tokenizer.save_pretrained(tmp_path / "large")
    corpus = load(
        write_jsonl(["the <extra69999> word"] * 200 + [f"{i} the" for i in range(200)]), str(tmp_path / "large")
    )
    ids = stream_of(corpus.train) + stream_of(corpus.valid)
    assert tokenizer.convert_tokens_to_ids("<extra69999>") in ids


@pytest.mark.parametrize("content", ["", "\n\n", '{"text": ""}\n'])
def test_no_text_at_all(load: Load, tmp_path: Path, content: str) -> None:
    (tmp_path / "a.jsonl").write_text(content)
    with pytest.raises(UserError, match=r"empty|no text"):
        load(tmp_path / "a.jsonl")


@pytest.mark.parametrize("text", ["a", "too short for a block " * 3])
def test_too_small_for_one_block(load: Load, tmp_path: Path, text: str) -> None:
    (tmp_path / "a.txt").write_text(text)
    with pytest.raises(UserError, match=r"too small for one block of --seq-len 512 .*smaller --seq-len"):
        load(tmp_path / "a.txt", seq_len=512)


def test_a_bad_line_deep_in_the_corpus_leaves_no_half_cache(load: Load, write_jsonl: Write, tmp_path: Path) -> None:
    path = write_jsonl([f"{i} " * 2000 for i in range(1200)])  # beyond what is surveyed
    with path.open("a") as file:
        file.write("{bad\n")
    unigram().save_pretrained(tmp_path / "t5ish")
    with pytest.raises(UserError, match="line 1201 is not valid JSON"):
        load(path, str(tmp_path / "t5ish"))
    assert not list((tmp_path / "cache").glob("tokens-*[!k]")) and not list((tmp_path / "cache").glob(".*"))


def test_importing_data_is_quick() -> None:
    heavy = ("torch", "transformers", "datasets", "tokenizers", "pyarrow")
    code = f"import sys, switchlora.data; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True,
                          env={"PYTHONPATH": ":".join(sys.path)})  # fmt: skip
    assert done.stdout.strip() == "[]"


def test_several_sources_make_one_corpus(load: Load, write_jsonl: Write) -> None:
    one, two = write_jsonl(documents(100), "a.jsonl"), write_jsonl(documents(100, start=100), "b.jsonl")
    both = write_jsonl(documents(200), "both.jsonl")
    assert stream_of(load([one, two]).train) == stream_of(load(both).train)
    shutil.rmtree(one.parent / "cache")
