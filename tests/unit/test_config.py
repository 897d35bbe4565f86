"""SwitchLoraConfig: checked when it is built, frozen, and the same after JSON."""

import dataclasses
import json
import math

import hypothesis
import hypothesis.strategies as st
import pytest

from switchlora import SwitchLoraConfig, UserError

NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"]), min_size=1, max_size=6)


def test_the_defaults_are_the_paper_s():
    config = SwitchLoraConfig()
    assert (config.r, config.lora_alpha, config.target_modules) == (128, 1.0, "all-linear")
    assert (config.interval, config.decay_ratio, config.freeze_steps) == (40.0, 0.1, 5)
    assert (config.order, config.candidates, config.candidate_device) == ("cyclic", "pool", "cpu")
    assert (config.init_lora_weights, config.reset, config.seed) == ("switchlora", True, 0)
    assert config.exclude_modules is None
    assert not config.alternate
    assert config.rank_pattern == {}


@hypothesis.given(
    r=st.integers(2, 10**6), lora_alpha=st.floats(1e-6, 1e6),
    target_modules=st.just("all-linear") | st.lists(NAMES, min_size=1),
    exclude_modules=st.none() | st.lists(NAMES, min_size=1) | NAMES,
    rank_pattern=st.dictionaries(NAMES, st.integers(2, 999)), interval=st.floats(20, allow_nan=False),
    decay_ratio=st.none() | st.floats(1e-6, 10), freeze_steps=st.integers(0, 10),
    reset=st.booleans(), alternate=st.booleans(), order=st.sampled_from(["cyclic", "random"]),
    candidates=st.sampled_from(["pool", "fresh"]),
    candidate_device=st.sampled_from(["cpu", "model"]), seed=st.integers(0, 2**63 - 1),
    init_lora_weights=st.sampled_from(["switchlora", "lora"]),
)  # fmt: skip
def test_every_configuration_is_the_same_after_json_and_dict(**settings):
    config = SwitchLoraConfig(**settings)
    assert SwitchLoraConfig.from_json(config.to_json()) == config
    assert SwitchLoraConfig.from_dict(config.to_dict()) == config


def test_it_is_frozen_and_lists_become_tuples():
    names = ["q_proj"]
    config = SwitchLoraConfig(target_modules=names)
    with pytest.raises(dataclasses.FrozenInstanceError):
        config.r = 3
    names.append("k_proj")
    assert config.target_modules == ("q_proj",)
    assert json.loads(config.to_json())["target_modules"] == ["q_proj"]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"r": 0}, "r=0: must be at least 1"), ({"r": -3}, "r=-3"), ({"r": 2.0}, "r=2.0: must be an integer"),
        ({"r": True}, "r=True: must be an integer"), ({"r": "8"}, "r='8': must be an integer"),
        ({"r": 1}, "r=1: can never switch.*use r >= 2, or interval=inf"),
        ({"rank_pattern": {"q": 1}}, r"rank_pattern\['q'\]=1: can never switch"),
        ({"rank_pattern": {"q": 0}}, r"rank_pattern\['q'\]=0: must be at least 1"),
        ({"rank_pattern": {"q": 2.5}}, "rank_pattern.*integer ranks"), ({"rank_pattern": [4]}, "rank_pattern"),
        ({"lora_alpha": 0}, "lora_alpha=0: must be a finite number above 0"),
        ({"lora_alpha": math.inf}, "lora_alpha=inf"), ({"lora_alpha": math.nan}, "lora_alpha=nan"),
        ({"interval": 9.9}, r"interval=9.9: must be at least 2 \* freeze_steps = 10.*raise interval or lower"),
        ({"interval": 0, "freeze_steps": 0}, "interval=0: must be above 0"), ({"interval": math.nan}, "interval=nan"),
        ({"interval": "40"}, "interval='40': must be a number"),
        ({"decay_ratio": 0}, "decay_ratio=0: must be above 0, or None"), ({"decay_ratio": -0.1}, "decay_ratio=-0.1"),
        ({"polar": -0.1}, "polar=-0.1: must be a finite share.*0 or more"),
        ({"polar": math.inf}, "polar=inf"), ({"polar": True}, "polar=True: must be a number"),
        ({"polar": math.nan}, "polar=nan"), ({"polar": 10**400}, "polar=1000.*: must be a number"),
        ({"lora_dropout": 0.1}, "lora_dropout=0.1: is not supported.*leave it at 0"),
        ({"lora_dropout": "0"}, "lora_dropout=.0.: must be a number"),
        ({"freeze_steps": -1}, "freeze_steps=-1"), ({"freeze_steps": 1.0}, "freeze_steps=1.0: must be an integer"),
        ({"reset": 1}, "reset=1: must be True or False"), ({"alternate": "A"}, "alternate='A': must be True or False"),
        ({"seed": -1}, "seed=-1"), ({"seed": 2**63}, "seed="),
        ({"order": "ring"}, "order='ring': must be one of cyclic, random"),
        ({"candidates": "new"}, "candidates='new': must be one of pool, fresh"),
        ({"candidate_device": "cuda"}, "candidate_device='cuda': must be one of cpu, model"),
        ({"init_lora_weights": True}, "init_lora_weights=True: must be one of switchlora, lora"),
        ({"target_modules": []}, r"target_modules=\[\]"), ({"target_modules": ""}, "target_modules=''"),
        ({"target_modules": [1]}, r"target_modules=\[1\]"), ({"target_modules": None}, "target_modules=None"),
        ({"target_modules": "(q_proj"}, r"'\(q_proj' is not a regular expression"),
        ({"exclude_modules": "*"}, r"'\*' is not a regular expression"),
        ({"rank_pattern": {"[": 4}}, r"'\[' is not a regular expression"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_refused_with_value_rule_and_way_out(settings, message):
    with pytest.raises(UserError, match=message) as error:
        SwitchLoraConfig(**settings)
    assert isinstance(error.value, ValueError)
    assert "\n" not in str(error.value)


def test_the_limits_themselves_are_allowed():
    SwitchLoraConfig(interval=10, freeze_steps=5)
    SwitchLoraConfig(interval=0.5, freeze_steps=0)
    SwitchLoraConfig(seed=2**63 - 1)
    SwitchLoraConfig(r=1, interval=math.inf)
    SwitchLoraConfig(r=1, init_lora_weights="lora")  # B is not switched, so no partner is in the way


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"rr": 4}', "no field 'rr'; did you mean 'r'"),
        ('{"intervall": 4}', "did you mean 'interval'"),
        ('{"zzz": 4}', "fields are r, lora_alpha"),
        ("[1]", "a JSON object is needed, this is list"),
        ("{", "does not parse"),
        ('{"r": 0}', "r=0"),
    ],
)
def test_bad_json_is_refused(text, message):
    with pytest.raises(UserError, match=message):
        SwitchLoraConfig.from_json(text)


def test_what_is_no_text_or_no_mapping_is_refused():
    with pytest.raises(UserError, match="JSON text is needed, this is NoneType"):
        SwitchLoraConfig.from_json(None)
    with pytest.raises(UserError, match="a dict of its fields is needed, this is list"):
        SwitchLoraConfig.from_dict([1])


@pytest.mark.parametrize(
    ("settings", "switches", "switches_B"),
    [({}, True, True), ({"init_lora_weights": "lora"}, True, False), ({"interval": math.inf}, False, False)],
)
def test_whether_anything_is_switched(settings, switches, switches_B):
    config = SwitchLoraConfig(**settings)
    assert (config.switches, config.switches_B) == (switches, switches_B)


def test_json_is_strict_and_equal_configurations_have_equal_hashes():
    config = SwitchLoraConfig(r=4, interval=math.inf, rank_pattern={"q_proj": 2})
    again = SwitchLoraConfig.from_json(config.to_json())
    json.loads(config.to_json(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert again == config
    assert hash(again) == hash(config) != hash(SwitchLoraConfig(r=4))


@pytest.mark.parametrize(("one", "other", "same"), [
    ({"interval": 40}, {"interval": 40.0}, True),
    ({"decay_ratio": 1}, {"decay_ratio": 1.0}, True),
    ({"target_modules": {"q", "k", "v"}}, {"target_modules": ["k", "q", "v"]}, True),
    # The first entry that matches counts.
    ({"rank_pattern": {"q": 2, ".*": 3}}, {"rank_pattern": {".*": 3, "q": 2}}, False),
], ids=["interval", "decay", "set", "ranks"])  # fmt: skip
def test_what_is_equal_is_written_alike_and_what_ranks_otherwise_is_not_equal(one, other, same):
    one, other = SwitchLoraConfig(**one), SwitchLoraConfig(**other)
    assert (one == other) == (hash(one) == hash(other)) == (one.to_json() == other.to_json()) == same
    assert len({one, other}) == 2 - same
