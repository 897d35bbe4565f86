"""What the options decide, and what they refuse, each with the way out."""

import pytest

from switchlora.bench.options import METHODS, SHAPES, BenchOptions
from switchlora.errors import UserError
from switchlora.training.models import preset_config
from tests.option_tables import assert_page_has_every_option


def test_the_defaults_are_the_reference_workload() -> None:
    options = BenchOptions()
    assert options.all_ranks == (64, 128)
    assert options.sequences == (4, 16) and options.seq_len == 256
    assert options.all_methods == METHODS
    config = preset_config(options.shape, options.seq_len)
    assert (config.hidden_size, config.intermediate_size, config.num_hidden_layers) == (512, 1376, 4)
    assert (config.num_attention_heads, config.vocab_size) == (8, 2048)


def test_full_always_takes_part() -> None:
    assert BenchOptions(methods="galore").all_methods == ("full", "galore")
    assert BenchOptions(methods=("peft", "switchlora")).all_methods == ("full", "switchlora", "peft")


def test_ranks_follow_the_model() -> None:
    assert {model: BenchOptions(model=model).all_ranks for model in ("tiny", "350m", "1.3b")} == {
        "tiny": (16, 32),
        "350m": (128, 256),
        "1.3b": (256, 512),
    }


def test_resolved_options_say_the_same() -> None:
    options = BenchOptions(model="tiny")
    assert options.resolved().ranks == (16, 32)
    assert options.resolved().resolved() == options.resolved()
    assert BenchOptions.merge(options.resolved().to_dict()) == options.resolved()


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"steps": 2}, ["--steps 2", "3 rounds", "--steps 30"]),
        ({"ranks": (64, 512)}, ["--ranks 512", "smaller than the hidden size of bench, 512"]),
        ({"ranks": 128, "model": "tiny"}, ["--ranks 128", "hidden size of tiny, 128", "16 and 32"]),
        ({"ranks": 1}, ["--ranks 1", "can never switch", "2 or more"]),
        ({"ranks": (8, 8)}, ["--ranks", "must not name 8 twice"]),
        ({"ranks": ()}, ["--ranks", "at least one"]),
        ({"ranks": (8, "x")}, ["--ranks", "whole number"]),
        ({"methods": ("full", "lora")}, ["--methods", "lora-adapter"]),
        ({"model": "13b"}, ["--model 13b", "1.3b"]),
        ({"sequences": 0}, ["--sequences 0", "at least 1"]),
        ({"sequences": 2**30}, ["--sequences 1073741824", "tokens in a step"]),
        ({"interval": 9}, ["--interval 9", "at least 10"]),
        ({"moments": "bf16"}, ["--moments bf16", "--dtype bf16"]),
        ({"factor_dtype": "bf16"}, ["--factor-dtype bf16", "--dtype bf16"]),
        ({"dtype": "bf16-mixed"}, ["--dtype bf16-mixed", "fp32 or bf16"]),
        ({"peak_tflops": 0}, ["--peak-tflops 0", "above 0"]),
        ({"switching_cost": True, "methods": "peft"}, ["--switching-cost", "--methods"]),
        ({"switching_cost": True, "interval": float("inf")}, ["--switching-cost", "finite --interval"]),
        ({"warmup_steps": 0}, ["--warmup-steps 0", "at least 1"]),
    ],
    ids=str,
)
def test_mistakes(values: dict[str, object], words: list[str]) -> None:
    with pytest.raises(UserError) as error:
        BenchOptions(**values)  # type: ignore[arg-type]
    for word in words:
        assert word in str(error.value)


def test_what_concerns_switching_is_free_without_it() -> None:
    BenchOptions(methods="lora-adapter", ranks=1, interval=1)


def test_every_shape_has_usable_default_ranks() -> None:
    for model in SHAPES:
        assert min(BenchOptions(model=model).all_ranks) >= 2


def test_the_reference_page_has_every_option_as_the_code_has_it() -> None:
    assert_page_has_every_option("bench.md", BenchOptions)
