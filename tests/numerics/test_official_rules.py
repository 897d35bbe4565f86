"""Replays of many other runs than the four recorded ones: those of official_rules.py, an independent numpy code."""

import json

import numpy as np
import pytest

from switchlora.golden import replay_file
from tests.numerics.official_rules import Recipe, record

RECIPES = [
    Recipe(r=2, interval=4, N=1, dims=(9, 17, 5)),
    Recipe(r=3, interval=7.3, N=3, dims=(9, 17, 5)),
    Recipe(r=7, interval=6, N=3, dims=(33, 19, 21)),
    Recipe(r=7, interval=6, N=3, dims=(33, 19, 21), order="random"),
    Recipe(r=5, interval=2, N=1, dims=(30, 20, 25, 11)),
    Recipe(r=5, interval=2, N=1, dims=(30, 20, 25, 12), order="random"),
    Recipe(r=12, interval=2, N=1, dims=(40, 28, 36), lr=0.05),
    Recipe(r=12, interval=12, N=6, dims=(40, 28, 36), order="random"),
    Recipe(r=12, interval=6, N=3, dims=(40, 28, 36), descend=9),
    Recipe(r=6, interval=2, N=1, dims=(20, 12, 24), betas=(0.8, 0.99), eps=1e-6, alpha=3.0),
    Recipe(r=6, interval=12, N=6, dims=(20, 20, 20)),
    Recipe(r=4, interval=20, N=6, dims=(16, 8), steps=80),
    Recipe(r=3, interval=2, N=1, dims=(12, 4, 12)),  # one idle candidate
]


@pytest.mark.parametrize(
    "recipe", RECIPES, ids=lambda x: f"r{x.r}-I{x.interval}-N{x.N}-{x.order}-{len(x.dims) - 1}layers"
)
def test_the_replay_agrees(tmp_path, recipe):
    switched = record(recipe, tmp_path / "run.npz")
    assert all(sum(nums) >= 3 for nums in switched.values())
    if recipe.r / recipe.interval >= 2:
        assert all(max(nums) >= 2 for nums in switched.values())
    deviations = replay_file(tmp_path / "run.npz")
    assert deviations.within, str(deviations)
    tolerances = {name: tolerance for name, (_, tolerance) in deviations.largest.items()}
    assert {name for name, tolerance in tolerances.items() if tolerance != 1e-10} == set()
    assert {"grad/A", "sw/A_map", "sw/overlap_B", "opt/B/step", "traj/cand_A", "final/eval_loss"} <= set(tolerances)


@pytest.mark.parametrize(
    "setting",
    [{"freeze_steps": 2}, {"lr": 0.011}, {"lora_alpha": 1.1}, {"base_interval": 7}, {"betas": [0.9, 0.998]},
     {"fixed_interval": False, "expect_switch_descend_step": 9}],
    ids=lambda setting: next(iter(setting)),
)  # fmt: skip
def test_the_same_numbers_under_other_settings_do_not_agree(tmp_path, setting):
    recipe = Recipe(r=5, interval=6, N=3, dims=(14, 10, 12))
    record(recipe, tmp_path / "run.npz")
    with np.load(tmp_path / "run.npz") as archive:
        data = dict(archive)
    data["meta_json"] = json.dumps(recipe.meta() | setting)
    np.savez(tmp_path / "other.npz", **data)
    assert not replay_file(tmp_path / "other.npz").within
