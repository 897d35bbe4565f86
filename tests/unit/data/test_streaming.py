"""Hub data through the real `datasets` streaming code, opened from a local file instead of the network."""

import json
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from switchlora.data import Blocks, Corpus, batch
from switchlora.data.cache import locked
from switchlora.data.packing import BATCH_CHARS
from switchlora.data.sources import HubSource
from switchlora.data.split import HASH_RANGE, Split
from switchlora.data.streaming import Fetcher, StreamedTokens
from switchlora.errors import UserError
from tests.unit.data.corpora import documents

Opener = Callable[[str, str | None], Any]
Load = Callable[..., Corpus]
SPLIT = Split(HASH_RANGE // 10, 0)


@pytest.fixture
def opener(write_jsonl: Callable[..., Path]) -> Opener:
    path = write_jsonl(documents(400), "hub.jsonl")

    def open_local(name: str, configuration: str | None) -> Any:
        import datasets

        return datasets.load_dataset("json", data_files=str(path), split="train", streaming=True)

    return open_local


@pytest.fixture
def tokenizer(load: Load, write_jsonl: Callable[..., Path]) -> Any:
    return load(write_jsonl(documents(60), "for-tokenizer.jsonl")).tokenizer


@pytest.fixture
def fetch(tmp_path: Path, opener: Opener, tokenizer: Any) -> Iterator[Callable[..., Fetcher]]:
    fetchers = []

    def start(name: str = "stream", **others: Any) -> Fetcher:
        options = dict(num_train_tokens=5000, num_valid_tokens=500, batch_chars=4000, shard_tokens=1024)
        options["log"] = lambda line: None
        source = HubSource("local", None, others.pop("open_dataset", opener))
        fetchers.append(Fetcher(tmp_path / name, source, SPLIT, tokenizer, **{**options, **others}))
        return fetchers[-1]

    yield start
    for fetcher in fetchers:
        fetcher.close()


def tokens_of(fetcher: Fetcher, name: str, count: int) -> list[int]:
    stream = StreamedTokens(fetcher, name, num_wanted=count)
    there = min(count, stream.num_available(count))
    return stream.read(0, there).tolist()


def test_a_hub_corpus_trains_in_stream_order(load: Load, opener: Opener) -> None:
    corpus = load("hf:local:en", open_dataset=opener, num_sequences=20)
    try:
        assert not corpus.train.shuffled
        assert len(corpus.train) == 20
        first = batch(corpus.train, seed=0, step=0, batch_size=20)
        assert torch.equal(first, batch(corpus.train, seed=99, step=0, batch_size=20))
        assert torch.equal(first, torch.from_numpy(np.stack([corpus.train[i] for i in range(20)])))
        assert len(corpus.valid) > 0
        train, valid = (
            set(
                corpus.tokenizer.decode(np.concatenate([blocks[i] for i in range(len(blocks))])).split("<|endoftext|>")[
                    :-1
                ]
            )
            for blocks in (corpus.train, corpus.valid)
        )
        assert not train & valid
        assert 1 < corpus.valid.num_bytes / corpus.valid.num_tokens < 6
    finally:
        corpus.close()


def test_a_stream_that_ends_starts_again(load: Load, opener: Opener) -> None:
    corpus = load("hf:local", open_dataset=opener, num_sequences=10**6)
    try:
        assert len(corpus.valid) > 0  # waits for the end, since the stream has less than the validation set wants
        num_blocks = len(corpus.train)
        assert num_blocks < 10**6
        wrapped = batch(corpus.train, seed=0, step=1, batch_size=num_blocks)
        assert torch.equal(wrapped, batch(corpus.train, seed=0, step=0, batch_size=num_blocks))
        with pytest.raises(IndexError):
            corpus.train[num_blocks]
    finally:
        corpus.close()


def test_an_interrupted_fetch_goes_on(fetch: Callable[..., Fetcher], opener: Opener) -> None:
    whole = fetch("whole", num_train_tokens=20_000)
    want = {name: tokens_of(whole, name, count) for name, count in (("train", 20_000), ("valid", 500))}
    rows = []

    def counting(name: str, configuration: str | None) -> Any:
        rows.append(opener(name, configuration))
        return rows[-1]

    first = fetch("parts", num_train_tokens=3000)
    tokens_of(first, "train", 3000)
    first.close()
    progress = json.loads((first.folder / "progress.json").read_text())
    assert progress["position"] is not None
    (first.folder / "train-00099.bin").write_bytes(b"left behind by a killed process")
    second = fetch("parts", num_train_tokens=20_000, open_dataset=counting)
    assert {name: tokens_of(second, name, len(want[name])) for name in want} == want
    assert second.wait_for("train", 0).num_rows == whole.wait_for("train", 0).num_rows


def test_without_a_position_rows_are_skipped(fetch: Callable[..., Fetcher], opener: Opener) -> None:
    class NoState:
        def __init__(self, rows: Any):
            self.rows = rows

        def __iter__(self) -> Iterator[Any]:
            return iter(self.rows)

        def skip(self, count: int) -> "NoState":
            return NoState(self.rows.skip(count))

    def stateless(name: str, configuration: str | None) -> NoState:
        return NoState(opener(name, configuration))

    want = tokens_of(fetch("whole", num_train_tokens=20_000), "train", 20_000)
    first = fetch("parts", num_train_tokens=3000, open_dataset=stateless)
    tokens_of(first, "train", 3000)
    first.close()
    assert json.loads((first.folder / "progress.json").read_text())["position"] is None
    assert tokens_of(fetch("parts", num_train_tokens=20_000, open_dataset=stateless), "train", 20_000) == want


def test_what_is_cached_needs_no_network(fetch: Callable[..., Fetcher]) -> None:
    def no_network(name: str, configuration: str | None) -> Any:
        raise ConnectionError("no network")

    first = fetch()
    want = tokens_of(first, "train", 5000), tokens_of(first, "valid", 500)
    first.close()
    again = fetch(open_dataset=no_network)
    assert (tokens_of(again, "train", 5000), tokens_of(again, "valid", 500)) == want
    with pytest.raises(UserError, match=r"cannot be opened .*no network"):
        tokens_of(again, "train", 50_000)


def test_shards_shorter_than_the_progress_are_fetched_again(fetch: Callable[..., Fetcher]) -> None:
    first = fetch()
    want = tokens_of(first, "train", 5000)
    first.close()
    (first.folder / "train-00001.bin").write_bytes(b"short")
    assert tokens_of(fetch(), "train", 5000) == want


def test_asking_beyond_the_goal_fetches_more(fetch: Callable[..., Fetcher]) -> None:
    fetcher = fetch(num_train_tokens=100)
    assert len(tokens_of(fetcher, "train", 100)) == 100
    assert len(tokens_of(fetcher, "train", 15_000)) == 15_000


def test_training_starts_before_the_stream_is_there(fetch: Callable[..., Fetcher], opener: Opener) -> None:
    gate = threading.Event()

    class Slow:
        def __iter__(self) -> Iterator[Any]:
            for number, row in enumerate(opener("local", None)):
                if number == 30:
                    assert gate.wait(timeout=30)
                yield row

    fetcher = fetch(open_dataset=lambda name, configuration: Slow(), num_train_tokens=30_000)
    blocks = Blocks(StreamedTokens(fetcher, "train", num_wanted=30_000), 100, shuffled=False)
    assert blocks[3].shape == (100,)
    assert len(blocks) == 300
    assert not gate.is_set()
    gate.set()
    assert blocks[299].shape == (100,)


def test_another_process_that_fetches_is_waited_for(fetch: Callable[..., Fetcher], tmp_path: Path) -> None:
    with locked(tmp_path / "stream.lock"):
        fetcher = fetch()
        with pytest.raises(TimeoutError):
            _within(0.5, lambda: fetcher.wait_for("train", 1))
    assert fetcher.wait_for("train", 1).num_tokens["train"] >= 1


def _within(seconds: float, call: Callable[[], object]) -> None:
    thread = threading.Thread(target=call, daemon=True)
    thread.start()
    thread.join(seconds)
    if thread.is_alive():
        raise TimeoutError


def test_rows_without_text(fetch: Callable[..., Fetcher]) -> None:
    rows = [{"body": "x"}]
    with pytest.raises(UserError, match="hf:local#1: every record needs a string in the field 'text'"):
        fetch(open_dataset=lambda name, configuration: rows).wait_for("train", 1)


def test_a_stream_that_breaks(fetch: Callable[..., Fetcher]) -> None:
    def breaking() -> Iterator[dict[str, str]]:
        yield {"text": "x" * BATCH_CHARS}
        raise TimeoutError("the server went away")

    fetcher = fetch(open_dataset=lambda name, configuration: breaking())
    with pytest.raises(UserError, match=r"broke off after 1 documents .*the server went away"):
        fetcher.wait_for("train", 10**9)


def test_a_stream_too_small_for_one_block(load: Load, opener: Opener) -> None:
    with pytest.raises(UserError, match="hf:local: its training part is too small"):
        load("hf:local", open_dataset=lambda name, configuration: [{"text": "tiny"}], seq_len=4096)


def test_no_network_is_one_quick_line(load: Load, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(UserError, match="hf:allenai/c4:en: the data set cannot be opened") as caught:
        load("hf:allenai/c4:en")
    assert "\n" not in str(caught.value)
