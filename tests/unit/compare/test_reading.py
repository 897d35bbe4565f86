"""Records on disk: what is damaged is named, whatever the damage."""

import json
import math

import pytest

from switchlora.compare import reading, results
from switchlora.compare.options import CompareOptions
from switchlora.compare.plan import make_plan
from switchlora.errors import UserError
from tests.unit.compare.records import record


def plan_of(**pretrain):
    options = {"model": "tiny", "steps": 100, **pretrain}
    return make_plan(CompareOptions(pretrain=options, methods=("full",), tune=False))


@pytest.mark.parametrize(
    ("damage", "word"),
    [
        (lambda one: one.update(validation_loss=math.nan), "validation_loss"),
        (lambda one: one.update(step_seconds=None), "step_seconds"),
        (lambda one: one["bytes_by_kind"].pop("buffer_bytes"), "buffer_bytes"),
        (lambda one: one["curve"].pop("tokens"), "tokens"),
        (lambda one: one["curve"].update(tokens=[]), "curve"),
        (lambda one: one["curve"]["seconds"].pop(), "as many values"),
        (lambda one: one["curve"].update(validation_loss=["4", None, 1, 2]), "validation_loss"),
        (lambda one: one.pop("hardware"), "hardware"),
        (lambda one: one["hardware"].update(cpu=[1]), "hardware"),
        (lambda one: one.update(steps="100"), "steps"),
        (lambda one: one.update(steps=0), "steps"),
        (lambda one: one.update(diverged="yes"), "diverged"),
        (lambda one: one.update(id="another"), "id"),
        (lambda one: one.update(seed=77), "seed"),
        (lambda one: one.update(traffic_bytes=3), "traffic_bytes"),
        (lambda one: one.update(trainable_parameters="many"), "trainable_parameters"),
        (lambda one: one["curve"].update(tokens=[0] * 4), "tokens: ascending"),
        (lambda one: one.pop("config"), "config"),
    ],
)
def test_damage_is_named(tmp_path, damage, word):
    run = plan_of().ready({})[0]
    whole = record(run, 4.0)
    results.write(whole, tmp_path)
    assert reading.read(tmp_path, [run]) == {run.id: whole}
    damaged = json.loads(json.dumps(whole))
    damage(damaged)
    (tmp_path / f"{run.id}.json").write_text(json.dumps(damaged))
    with pytest.raises(UserError, match=rf"{run.id}.*cannot be read.*{word}.*remove it"):
        reading.read(tmp_path, [run])


@pytest.mark.parametrize(
    ("other", "what"),
    [
        ({"batch_size": 4}, "batch_size 4 there, 8 here"),
        ({"seq_len": 64}, "seq_len 64 there"),
        ({"steps": 50}, "steps 50"),
    ],
)
def test_results_of_another_configuration_are_refused_whatever_method_they_are_of(tmp_path, other, what):
    """A label that this comparison does not have."""
    lora = CompareOptions(pretrain={"model": "tiny", "steps": 100, **other}, methods=("lora",), ranks=(4,), tune=False)
    results.write(record(make_plan(lora).ready({})[0], 4.0), tmp_path)
    plan = plan_of(batch_size=8)
    like = plan.first_run(plan.contenders[0]).options()
    with pytest.raises(UserError, match=f"lora-r4.* is of another configuration .*{what}.* give another --output"):
        reading.refuse_other_comparisons(tmp_path, {plan.steps, plan.tune_steps}, like)


def test_results_of_methods_that_left_the_comparison_may_stay(tmp_path):
    lora = CompareOptions(pretrain={"model": "tiny", "steps": 100}, methods=("lora",), ranks=(4,), tune=False)
    results.write(record(make_plan(lora).ready({})[0], 4.0), tmp_path)
    (tmp_path / "note-100steps.json").write_text("[]")
    plan = plan_of(eval_every=50)
    reading.refuse_other_comparisons(tmp_path, {100}, plan.first_run(plan.contenders[0]).options())


def test_a_folder_in_the_place_of_a_result_is_named(tmp_path):
    run = plan_of().ready({})[0]
    (tmp_path / f"{run.id}.json").mkdir()
    reading.refuse_other_comparisons(tmp_path, {100}, run.options())
    with pytest.raises(UserError, match=r"Is a directory.*remove it"):
        reading.read(tmp_path, [run])


def test_results_on_different_data_are_told_apart(tmp_path):
    runs = plan_of().ready({})
    assert len(runs) == 3
    for run in runs:
        results.write(record(run, 4.0) | {"data_fingerprint": "xyz" if run.seed == 1 else "abc"}, tmp_path)
    with pytest.raises(UserError, match=r"different data, full.*seed1-100steps; full.*seed0-100steps and 1 more"):
        reading.read(tmp_path, runs)
    same = reading.read(tmp_path, [runs[0], runs[2]])
    assert reading.of_same_data(same, "abc") and not reading.of_same_data(same, "xyz")
    assert reading.of_same_data({}, "xyz")
