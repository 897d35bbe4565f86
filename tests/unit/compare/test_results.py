"""Records on disk: what is damaged is named, whatever the damage."""

import json
import math

import pytest

from switchlora.compare import results
from switchlora.compare.options import CompareOptions
from switchlora.compare.plan import make_plan
from switchlora.errors import UserError
from tests.unit.compare.records import record


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
    plan = make_plan(CompareOptions(pretrain={"model": "tiny", "steps": 100}, methods=("full",), tune=False))
    run = plan.ready({})[0]
    whole = record(run, 4.0)
    results.write(whole, tmp_path)
    assert results.read(tmp_path, [run]) == {run.id: whole}
    damaged = json.loads(json.dumps(whole))
    damage(damaged)
    (tmp_path / f"{run.id}.json").write_text(json.dumps(damaged))
    with pytest.raises(UserError, match=rf"{run.id}.*cannot be read.*{word}.*remove it"):
        results.read(tmp_path, [run])
