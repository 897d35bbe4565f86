"""Records on disk: what is damaged is named, whatever the damage."""

import json
import math

import pytest

from switchlora.compare import results
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
        (lambda one: one.pop("config"), "config"),
    ],
)
def test_damage_is_named(tmp_path, damage, word):
    run = plan_of().ready({})[0]
    whole = record(run, 4.0)
    results.write(whole, tmp_path)
    assert results.read(tmp_path, [run]) == {run.id: whole}
    damaged = json.loads(json.dumps(whole))
    damage(damaged)
    (tmp_path / f"{run.id}.json").write_text(json.dumps(damaged))
    with pytest.raises(UserError, match=rf"{run.id}.*cannot be read.*{word}.*remove it"):
        results.read(tmp_path, [run])


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
        results.refuse_other_comparisons(tmp_path, {plan.steps, plan.tune_steps}, like)


def test_results_of_methods_that_left_the_comparison_may_stay(tmp_path):
    lora = CompareOptions(pretrain={"model": "tiny", "steps": 100}, methods=("lora",), ranks=(4,), tune=False)
    results.write(record(make_plan(lora).ready({})[0], 4.0), tmp_path)
    (tmp_path / "note-100steps.json").write_text("[]")
    plan = plan_of(eval_every=50)
    results.refuse_other_comparisons(tmp_path, {100}, plan.first_run(plan.contenders[0]).options())
