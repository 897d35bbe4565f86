"""What of a model's configuration must be as it was, and what may change."""

import copy

import pytest
from transformers import LlamaConfig, LlamaForCausalLM

from switchlora.errors import UserError
from switchlora.machine.description import version_of
from switchlora.training.architecture import WITHOUT_EFFECT, architecture, require_architecture


@pytest.fixture
def model() -> LlamaForCausalLM:
    return LlamaForCausalLM(LlamaConfig(
        vocab_size=31, hidden_size=16, intermediate_size=24, num_hidden_layers=1, num_attention_heads=2,
    ))  # fmt: skip


def meta_of(model: LlamaForCausalLM) -> dict:
    return {"model": copy.deepcopy(architecture(model)), "machine": {"transformers": version_of("transformers")}}


def test_all_that_differs_is_named(model):
    meta = meta_of(model)
    meta["model"]["num_attention_heads"] = 4
    meta["model"]["rope_parameters"]["rope_theta"] = 5e5
    with pytest.raises(
        UserError,
        match=r"--model m.json: .*num_attention_heads 4 before, 2 now, rope_parameters.rope_theta 500000.0 bef",
    ):
        require_architecture(model, "m.json", meta)


def test_what_changes_nothing_may_differ(model):
    meta = meta_of(model)
    assert "hidden_act" in meta["model"] and not WITHOUT_EFFECT & meta["model"].keys()
    model.config.use_cache, model.config.id2label = not model.config.use_cache, {0: "a", 1: "b"}
    require_architecture(model, "m.json", meta)


def test_what_only_one_has_and_other_versions_are_not_compared(model):
    meta = meta_of(model)
    del meta["model"]["rope_parameters"]["rope_type"], meta["model"]["hidden_act"]
    meta["model"]["of_another_version"] = 1
    require_architecture(model, "m.json", meta)
    meta["model"]["num_attention_heads"] = 4
    require_architecture(model, "m.json", meta | {"machine": {"transformers": "4.0"}})
    require_architecture(model, "m.json", {"machine": meta["machine"]})


def test_how_attention_is_computed_is_no_part_of_it(model):
    meta = meta_of(model)
    model.set_attn_implementation("eager")
    require_architecture(model, "m.json", meta)
