"""What each run is given, which learning rate wins, and how results of seeds are put together."""

import pytest
import torch

from switchlora.errors import NonFiniteError
from switchlora.finetuning import runs
from switchlora.finetuning.folder import RunsFolder
from switchlora.finetuning.glue import TASKS
from switchlora.finetuning.options import FinetuneOptions
from switchlora.finetuning.rows import Row, Rows
from switchlora.finetuning.runs import HELD_OUT, all_runs, best_rate, name_of, spread
from switchlora.finetuning.table import table
from switchlora.finetuning.training import Setting


def tried(lr, value):
    return {"lr": lr, "metrics": None if value is None else {HELD_OUT: {"f1": value, "accuracy": 100 - value}}}


@pytest.mark.parametrize(
    ("values", "best"),
    [
        ({1e-4: 50.0, 1e-3: 70.0, 1e-2: 60.0}, 1e-3),
        ({1e-4: 70.0, 1e-3: 70.0, 1e-2: 60.0}, 1e-4),
        ({1e-4: 0.0, 1e-3: None}, 1e-4),
        ({1e-4: None, 1e-3: -5.0}, 1e-3),
    ],
)
def test_the_best_by_the_first_metric_and_of_equal_ones_the_smallest(values, best):
    assert best_rate([tried(lr, value) for lr, value in values.items()], "f1") == best


def test_no_rate_is_finite():
    with pytest.raises(NonFiniteError, match=r"--lr 0\.001 0\.01: .*give lower ones"):
        best_rate([tried(1e-3, None), tried(1e-2, None)], "f1")


def test_spread_is_of_a_sample():
    assert spread([1.0, 2.0, 4.5]) == {"mean": 2.5, "sd": pytest.approx((6.5 / 2) ** 0.5), "n": 3}
    assert spread([7.0]) == {"mean": 7.0, "sd": None, "n": 1}


class Tokenizer:
    """A letter is a token; 0 ends a text."""

    eos_token_id, bos_token_id = 0, None

    def __call__(self, texts, **_):
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


@pytest.fixture
def done(monkeypatch, tmp_path):
    """`done(**options)`: the result of all runs, none of which trains, and what each was given."""
    rows = Rows([Row((f"{chr(65 + i)}bc",), i % 2) for i in range(20)], {"dev": [Row(("wxyz",), 1), Row(("v",), 0)]})
    given = []

    def run(setting, train, evaluated, *, lr, seed, folder=None):
        given.append({"train": train, "evaluated": evaluated, "lr": lr, "seed": seed})
        metrics = {split: {"accuracy": 50.0 + lr + seed} for split in evaluated}
        return {"seed": seed, "lr": lr, "seconds": 0.0, "metrics": metrics}

    monkeypatch.setattr(runs, "run", run)

    def do(**values):
        options = FinetuneOptions(**{"task": "sst2", "seeds": 2, "seq_len": 8, **values})
        folder = RunsFolder(tmp_path)
        folder.claim({"rows": rows.fingerprint}, overwrite=False)
        setting = Setting(options, TASKS["sst2"], Tokenizer(), torch.device("cpu"))
        return all_runs(setting, rows, folder), given

    return do


def test_what_is_held_out_is_not_trained_on_and_dev_has_no_part_in_the_search(done):
    result, given = done(lr=(1e-3, 1e-2), held_out=0.2)
    search, seeds = given[:2], given[2:]
    everything = {chr(65 + i) for i in range(20)}
    for one in search:
        assert list(one["evaluated"]) == [HELD_OUT]
        rest, part = ({chr(ids[1]) for ids, _ in some} for some in (one["train"], one["evaluated"][HELD_OUT]))
        assert (len(one["train"]), len(rest), len(part)) == (16, 16, 4)
        assert rest | part == everything and not rest & part
    assert [(one["lr"], one["seed"]) for one in seeds] == [(1e-2, 0), (1e-2, 1)]
    assert all({chr(ids[1]) for ids, _ in one["train"]} == everything for one in seeds)
    assert all(list(one["evaluated"]) == ["dev"] for one in seeds)
    assert result["lr"] == 1e-2


def test_rates_that_are_almost_equal_are_two_runs(done):
    result, given = done(lr=(1e-3, 1.0000001e-3))
    assert len(given) == 4
    assert [one["lr"] for one in result["tuning"]] == [1e-3, 1.0000001e-3]
    assert done(lr=(1e-3, 1.0000001e-3))[0] == result  # from the files alone
    assert len(given) == 4


@pytest.mark.parametrize("lr", [1e-6, 3e-5, 1e-4, 3e-3, 1e-2, 0.25, 1.0, 1.5, 100.0, 1e3])
def test_runs_of_ordinary_rates_are_called_as_ever(lr):
    """So that a folder of an earlier version goes on."""
    assert name_of(lr) == f"lr-{lr:g}"


def test_rows_that_were_cut_are_counted_and_said(done):
    whole, _ = done()
    assert whole["num_cut_rows"] == {"train": 0, "dev": 0}
    cut, _ = done(seq_len=4)
    assert cut["num_cut_rows"] == {"train": 0, "dev": 1}
    shown = [table({**result, "config": {"seq_len": 4}}) for result in (whole, cut)]
    assert "rows cut to 4 tokens: 1 of 2 in dev; a larger --seq-len keeps more of them" in shown[1]
    assert "cut" not in shown[0]
