"""What the report shows, from records with figures that can be worked out by hand."""

import json
import math

import pytest

from switchlora.compare.options import CompareOptions
from switchlora.compare.plan import make_plan
from switchlora.compare.tables import report_data, seconds_per_step
from switchlora.report.compare_figures import curves, highest_shown, mean_curve
from switchlora.report.compare_page import page
from tests.unit.compare.records import finish

LOSSES = {
    "full": {0: 4.0, 1: 4.2, 2: 4.1},
    "lora": {0: 4.5, 1: 4.8, 2: 4.5},
    "switchlora": {0: 3.9, 1: 4.2, 2: math.inf},
}


@pytest.fixture
def data():
    options = CompareOptions(
        pretrain={"model": "tiny", "steps": 100}, methods=("full", "lora", "switchlora"), ranks=(8,), tune=False
    )
    plan = make_plan(options)
    return report_data(plan, finish(plan, lambda run: LOSSES[run.contender.label][run.seed]))


def row_of(data, label):
    return next(row for row in data["rows"] if row["label"] == label)


def test_it_is_plain_data(data):
    assert json.loads(json.dumps(data, allow_nan=False)) == data


def test_a_setting_may_be_infinite():
    """As the interval of what is never switched."""
    methods = {"never": {"method": "switchlora", "interval": math.inf}}
    plan = make_plan(CompareOptions(pretrain={"model": "tiny", "steps": 100}, methods=methods, tune=False))
    data = report_data(plan, finish(plan, lambda run: 4.0))
    assert json.loads(json.dumps(data, allow_nan=False))["methods"]["never"]["interval"] == "inf"


def test_means_and_paired_differences(data):
    lora = row_of(data, "lora")
    assert lora["loss"] == {"mean": pytest.approx(4.6), "sd": pytest.approx(0.1732, abs=1e-4), "n": 3}
    assert lora["difference"]["mean"] == pytest.approx((0.5 + 0.6 + 0.4) / 3)
    assert lora["difference"]["sd"] == pytest.approx(0.1)
    assert row_of(data, "full")["difference"]["mean"] == 0


def test_a_run_that_diverged_is_counted_and_not_averaged_away(data):
    switchlora = row_of(data, "switchlora")
    assert switchlora["num_diverged"] == 1
    assert switchlora["loss"]["n"] == 2
    (lost,) = (run for run in data["runs"] if run["diverged"])
    assert lost["error"] == "step 3: loss nan"


def test_memory_is_that_of_its_kinds(data):
    full = row_of(data, "full")
    assert (full["device_bytes"], full["host_bytes"]) == (4300, 300)


def test_who_is_dominated(data):
    """LoRA has less memory than full rank and a higher loss. SwitchLoRA's other seeds would beat both; one diverged."""
    assert row_of(data, "full")["dominated_by"] is None
    assert row_of(data, "lora")["dominated_by"] is None
    assert row_of(data, "switchlora")["dominated_by"] == "a seed that diverged"


def test_a_cpu_has_no_other_memory_than_the_hosts():
    plan = make_plan(CompareOptions(pretrain={"model": "tiny", "steps": 100}, methods=("full",), tune=False))
    records = finish(plan, lambda run: 4.0)
    assert row_of(report_data(plan, records), "full")["memory_bytes"] == 4300
    for record in records.values():
        record["hardware"] = {"cpu": "one", "device": "cpu"}
    assert row_of(report_data(plan, records), "full")["memory_bytes"] == 4300 + 300


def test_a_row_without_all_seeds_dominates_nobody():
    """LoRA's one seed so far is better than the mean of full rank's three."""
    plan = make_plan(
        CompareOptions(pretrain={"model": "tiny", "steps": 100}, methods=("full", "lora"), ranks=(8,), tune=False)
    )
    records = finish(plan, lambda run: 4.0 - (run.contender.label == "lora"))
    data = report_data(plan, records)
    assert row_of(data, "full")["dominated_by"] == "lora r=8"
    kept = {id: one for id, one in records.items() if one["label"] == "full" or one["seed"] == 0}
    data = report_data(plan, kept)
    assert row_of(data, "full")["dominated_by"] is None
    assert row_of(data, "lora")["dominated_by"] == "not all seeds yet"


def test_seconds_per_step_count_what_comes_now_and_then_and_not_one_pause():
    """100 steps of a second, and ten more in every part, as an SVD may take; or a pause of an hour once."""
    tokens = [100 * part for part in range(1, 11)]
    curve = {"tokens": tokens, "seconds": [0.2 * t for t in tokens]}
    record = {"curve": curve, "steps": 100}
    assert seconds_per_step(record) == pytest.approx(2.0)
    curve["seconds"] = [seconds + (3600 if place > 3 else 0) for place, seconds in enumerate(curve["seconds"])]
    assert seconds_per_step(record) == pytest.approx(2.0)
    assert seconds_per_step({"curve": {"tokens": [1000], "seconds": [50.0]}, "steps": 10}) == pytest.approx(5.0)


def test_the_best_within_the_same_memory(data):
    """Full rank has room for LoRA and is better; LoRA's memory holds nothing better than itself."""
    assert row_of(data, "full")["equal_memory"] == {"best": "full", "difference": 0}
    assert row_of(data, "lora")["equal_memory"] == {"best": "lora r=8", "difference": 0}
    assert row_of(data, "switchlora")["equal_memory"]["best"] == "lora r=8"
    assert row_of(data, "switchlora")["equal_memory"]["difference"] == pytest.approx(4.05 - 4.6)


def test_loss_at_equal_time_is_that_after_fewer_tokens(data):
    """Full rank takes 0.5 s a step and the fastest 0.4: it is held at 80 % of its tokens, 20 % above the end's mean."""
    full = row_of(data, "full")
    assert full["equal_time"]["share"] == pytest.approx(0.8)
    assert full["equal_time"]["loss"] == pytest.approx(4.1 + 0.8)  # the curve falls by 1 in a quarter of the tokens
    assert row_of(data, "lora")["equal_time"]["loss"] == pytest.approx(4.6)


def test_a_baseline_with_several_rates_is_taken_at_its_best():
    methods = {"full": {"lr": [1e-4, 1e-2], "other_lr": 1e-2}, "muon": {"lr": 1e-2}}
    plan = make_plan(CompareOptions(pretrain={"model": "tiny", "steps": 100}, methods=methods, tune=False))
    data = report_data(plan, finish(plan, lambda run: 8.0 if run.lr < 1e-3 else 4.0 + (run.contender.label == "muon")))
    assert row_of(data, "muon")["difference"]["mean"] == pytest.approx(1.0)
    full = {row["lr"]: row for row in data["rows"] if row["label"] == "full"}
    assert {lr: row["is_baseline"] for lr, row in full.items()} == {1e-4: False, 1e-2: True}
    assert full[1e-4]["difference"]["mean"] == pytest.approx(4.0)


def test_times_of_several_machines_are_not_compared():
    """Full rank needs more memory, is worse and was faster, but elsewhere."""
    plan = make_plan(
        CompareOptions(pretrain={"model": "tiny", "steps": 100}, methods=("full", "lora"), ranks=(8,), tune=False)
    )
    records = finish(plan, lambda run: 4.0 + (run.contender.label == "full"))
    for record in records.values():
        if record["label"] == "full":
            record["curve"]["seconds"] = [seconds / 5 for seconds in record["curve"]["seconds"]]
    data = report_data(plan, records)
    assert (data["num_machines"], row_of(data, "full")["dominated_by"]) == (1, None)
    assert list(curves(data)["views"]) == ["against tokens", "against seconds", "against memory"]
    assert not row_of(data, "full")["best_for_memory"]
    next(iter(records.values()))["threads"] = 2
    data = report_data(plan, records)
    assert (data["num_machines"], row_of(data, "full")["dominated_by"]) == (2, "lora r=8")
    assert all(row["equal_time"]["loss"] is None for row in data["rows"])
    assert all(row["step_seconds"] is None and row["tokens_per_second"] is None for row in data["rows"])
    assert list(curves(data)["views"]) == ["against tokens", "against memory"]


def test_a_comparison_that_has_only_begun_can_be_shown():
    options = CompareOptions(pretrain={"model": "tiny", "steps": 100}, methods=("full", "lora"), tune_runs=5)
    plan = make_plan(options)
    data = report_data(plan, finish(plan, lambda run: run.lr, limit=3))
    assert data["rows"] == []
    assert data["runs_left"] > 0
    assert [len(one["points"]) for one in data["searches"]] == [2, 1]


def test_a_search_whose_runs_all_diverged_has_no_best_rates():
    plan = make_plan(CompareOptions(pretrain={"model": "tiny", "steps": 100}, methods=("full",), tune_runs=5))
    shown = page(report_data(plan, finish(plan, lambda run: math.inf)))
    assert "every run diverged; given up" in shown
    assert "best lr" not in shown


def test_a_mean_curve_has_the_points_that_all_seeds_have():
    """One seed was validated twice as often."""
    often = {"tokens": [50, 100, 150, 200], "seconds": [1.0, 2.0, 3.0, 4.0], "validation_loss": [9.0, 8.0, 7.0, 6.0]}
    rarely = {"tokens": [100, 200], "seconds": [4.0, 8.0], "validation_loss": [6.0, 4.0]}
    assert mean_curve([often, rarely]) == {"tokens": [100, 200], "seconds": [3.0, 6.0], "validation_loss": [7.0, 5.0]}


def test_what_is_far_above_the_others_does_not_flatten_the_figures():
    assert highest_shown([1.0, 1.1, 1.2, 9.0]) == 1.2
    assert highest_shown([1.0, 1.1, 1.2, 1.5]) is None
    assert highest_shown([]) is None


@pytest.mark.parametrize(
    ("others", "words"),
    [
        ({"full": 0.1, "muon": 0.1}, "Both learning rates of every method were searched for"),
        ({"full": 0.1, "muon": "tied"}, "Both learning rates of every method (one for all parameters: muon) were"),
        ({"full": "tied", "muon": "tied"}, "One learning rate for all parameters of a method was searched for"),
    ],
)
def test_the_page_says_whose_rates_are_tied(others, words):
    methods = {label: {"lr": 0.01, "other_lr": other} for label, other in others.items()}
    plan = make_plan(CompareOptions(pretrain={"model": "tiny", "steps": 100}, methods=methods, seeds=(0,)))
    data = report_data(plan, finish(plan, lambda run: 4 + math.log(run.lr / 0.01) ** 2 + math.log(run.other_lr) ** 2))
    assert words in page(data)
