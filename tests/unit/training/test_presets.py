"""Presets and models: the paper's shapes, random weights that depend on the seed alone, and foreign models."""

import json
from pathlib import Path

import pytest

from switchlora.errors import UserError
from switchlora.training.options import PretrainOptions
from switchlora.training.presets import (
    PRESETS,
    ModelFacts,
    brings_tokenizer,
    has_weights,
    model_facts,
    preset_defaults,
)
from switchlora.training.resolve import resolve

torch = pytest.importorskip("torch")

from switchlora.training.models import build_model, load_config  # noqa: E402

SHAPE = {
    "model_type": "llama",
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "vocab_size": 50,
    "max_position_embeddings": 64,
}


@pytest.fixture
def shape_only(tmp_path: Path) -> Path:
    """A folder with a config.json and nothing else."""
    folder = tmp_path / "shape"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(SHAPE), encoding="utf-8")
    return folder


@pytest.fixture
def trained(shape_only: Path, tmp_path: Path) -> Path:
    """A folder with weights, as save_pretrained writes it."""
    folder = tmp_path / "trained"
    build_model(str(shape_only), seed=5).save_pretrained(folder)
    return folder


# The paper's, in millions. 60m and tiny stand in no table of the paper.
@pytest.mark.parametrize(("model", "millions"), [("250m", 247.5), ("350m", 368.2), ("1.3b", 1339.5)])
def test_parameter_counts_are_the_papers(model: str, millions: float) -> None:
    built = build_model(model, seed=0, meta=True)
    assert {parameter.device.type for parameter in built.parameters()} == {"meta"}
    assert round(sum(p.numel() for p in built.parameters()) / 1e6, 1) == millions


@pytest.mark.parametrize(
    ("model", "shape", "run"),
    [
        ("130m", (768, 12, 12, 2048), (40_000, 600, 256)),
        ("250m", (768, 16, 24, 2560), (40_000, 1152, 512)),
        ("350m", (1024, 16, 24, 2736), (40_000, 1152, 512)),
        ("1.3b", (2048, 32, 24, 5461), (40_000, 1536, 512)),
        ("tiny", (128, 4, 4, 344), (400, 16, 128)),
    ],
)
def test_shapes_and_runs(model: str, shape: tuple[int, ...], run: tuple[int, ...]) -> None:
    config = load_config(model)
    found = (
        config.hidden_size,
        config.num_attention_heads,
        config.num_hidden_layers,
        config.intermediate_size,
    )
    defaults = preset_defaults(model)
    assert found == shape
    assert (defaults.steps, defaults.batch_size, defaults.seq_len) == run
    assert config.vocab_size == (2048 if model == "tiny" else 32_100)
    assert not config.tie_word_embeddings
    assert not config.use_cache


def test_random_weights_depend_on_the_seed_alone_and_move_no_generator() -> None:
    before = torch.random.get_rng_state()
    first = build_model("tiny", seed=1).state_dict()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    again = build_model("tiny", seed=1).state_dict()
    other = build_model("tiny", seed=2).state_dict()
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["lm_head.weight"], other["lm_head.weight"])


def test_bf16_weights_are_the_rounded_fp32_weights_and_rotary_frequencies_stay() -> None:
    full = build_model("tiny", seed=1)
    half = build_model("tiny", seed=1, dtype=torch.bfloat16)
    halves = dict(half.named_parameters())
    for name, parameter in full.named_parameters():
        assert torch.equal(parameter.to(torch.bfloat16), halves[name])
    for name, buffer in full.named_buffers():
        assert torch.equal(buffer, half.get_buffer(name))
    assert (full.config.dtype, half.config.dtype) == (torch.float32, torch.bfloat16)


def test_a_random_model_takes_the_tokenizers_vocabulary_and_ends() -> None:
    built = build_model("tiny", seed=0, vocab_size=300, eos_token_id=7, seq_len=3000)
    assert built.lm_head.weight.shape == (300, 128)
    assert (built.config.eos_token_id, built.config.bos_token_id, built.config.pad_token_id) == (7, 7, None)
    assert built.config.max_position_embeddings == 3000


def test_a_config_json_is_a_shape(shape_only: Path) -> None:
    for model in (str(shape_only), str(shape_only / "config.json")):
        assert not has_weights(model)
        assert not brings_tokenizer(model)
        assert model_facts(model) == ModelFacts(32, 50, 64)
        assert preset_defaults(model).seq_len == 64
        built = build_model(model, seed=0, vocab_size=40)
        assert built.lm_head.weight.shape == (40, 32)
    options = resolve(PretrainOptions(model=str(shape_only)))
    assert (options.r, options.tokenizer, options.seq_len) == (8, "train:257", 64)


def test_training_goes_on_from_weights(trained: Path) -> None:
    assert has_weights(str(trained))
    one, two = (build_model(str(trained), seed=seed) for seed in (0, 1))
    for name, tensor in one.state_dict().items():
        assert torch.equal(tensor, two.state_dict()[name])
    from safetensors.torch import load_file

    assert torch.equal(one.lm_head.weight, load_file(trained / "model.safetensors")["lm_head.weight"])
    half = build_model(str(trained), seed=0, dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in half.parameters()} == {torch.bfloat16}
    assert not one.config.use_cache
    assert next(build_model(str(trained), seed=0, meta=True).parameters()).device.type == "meta"


def test_a_folder_may_bring_a_tokenizer(trained: Path) -> None:
    assert not brings_tokenizer(str(trained))
    (trained / "tokenizer.json").write_text("{}", encoding="utf-8")
    assert brings_tokenizer(str(trained))
    assert resolve(PretrainOptions(model=str(trained))).tokenizer == str(trained)


def test_what_a_model_cannot_hold_is_refused(trained: Path, shape_only: Path) -> None:
    with pytest.raises(UserError, match=r"--seq-len 65: .* has 64 positions; use --seq-len 64 or less"):
        build_model(str(shape_only), seed=0, seq_len=65)
    with pytest.raises(UserError, match=r"--tokenizer: has 51 tokens, .* embeddings for 50"):
        build_model(str(trained), seed=0, vocab_size=51)


def test_incomplete_or_broken_weights_are_refused(trained: Path) -> None:
    from safetensors.torch import load_file, save_file

    file = trained / "model.safetensors"
    weights = load_file(file)
    del weights["model.norm.weight"]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"lack 1 tensors, first model\.norm\.weight"):
        build_model(str(trained), seed=0)
    file.write_bytes(b"not safetensors")
    with pytest.raises(UserError, match="cannot be loaded") as refused:
        build_model(str(trained), seed=0)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize(
    ("content", "part"),
    [("{", "cannot be read as JSON"), ("[]", "no model_type"), ("{}", "no model_type")],
)
def test_a_broken_config_json_is_refused_before_anything_slow(tmp_path: Path, content: str, part: str) -> None:
    (tmp_path / "config.json").write_text(content, encoding="utf-8")
    for model in (tmp_path, tmp_path / "config.json"):
        with pytest.raises(UserError, match=part):
            resolve(PretrainOptions(model=str(model)))


def test_a_model_that_writes_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "vit"}', encoding="utf-8")
    with pytest.raises(UserError, match="no causal language model") as refused:
        build_model(str(tmp_path), seed=0)
    assert "\n" not in str(refused.value)


def test_names_that_are_nothing() -> None:
    with pytest.raises(UserError, match=r"--model 1\.3: no such preset, file or folder; did you mean 1\.3b\?"):
        model_facts("1.3")
    for model in ("./missing/config.json", "a/b/c", "/nowhere", "~/nowhere"):
        with pytest.raises(UserError, match="no such preset, file or folder"):
            has_weights(model)
    assert has_weights("some/model")
    assert brings_tokenizer("some/model")
    assert model_facts("some/model") == ModelFacts()


def test_a_hub_name_without_a_network_is_one_line() -> None:
    with pytest.raises(UserError, match="--model some/model: is no local path, and the hub did not give it") as refused:
        build_model("some/model", seed=0)
    assert "\n" not in str(refused.value)


def test_the_constants_of_models_and_tokenizers_are_one() -> None:
    from switchlora.data.tokenizer import SMALLEST_VOCAB
    from switchlora.options import values
    from switchlora.training import models, presets

    assert models.MIN_POSITIONS is presets.MIN_POSITIONS
    assert values.SMALLEST_VOCABULARY == SMALLEST_VOCAB


def test_every_preset_can_switch() -> None:
    for name in PRESETS:
        options = resolve(PretrainOptions(model=name))
        assert options.r is not None
        assert 1 < options.r < PRESETS[name].hidden_size
