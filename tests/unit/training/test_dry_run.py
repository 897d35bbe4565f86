"""--dry-run: the counts are those of the paper, and those of a real run."""

import json
from pathlib import Path

import pytest

from switchlora.data.tokenizer import num_ids
from switchlora.errors import UserError
from switchlora.methods import METHODS
from switchlora.training.dry_run import plan
from switchlora.training.models import build_model
from switchlora.training.options import PretrainOptions
from switchlora.training.resolve import resolve
from tests.unit.data.corpora import unigram


@pytest.mark.parametrize(
    ("model", "r", "millions"),
    [
        ("250m", 128, 98.9),
        ("250m", 256, 148.4),
        ("350m", 128, 125.6),
        ("350m", 256, 185.4),
        ("1.3b", 256, 370.7),
        ("1.3b", 512, 609.7),
    ],
)
def test_trainable_parameters_are_the_papers(model: str, r: int, millions: float) -> None:
    planned = plan(resolve(PretrainOptions(model=model, r=r)))
    assert planned.trainable_parameters / 1e6 == pytest.approx(millions, abs=0.1)
    assert planned.total_parameters / 1e6 == pytest.approx({"2": 247.5, "3": 368.2, "1": 1339.5}[model[0]], abs=0.1)


@pytest.mark.parametrize("method", ["switchlora", "switchlora-polar", "lora", "full"])
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_bytes_are_those_of_the_real_thing(method: str, dtype: str) -> None:
    import torch

    options = resolve(PretrainOptions(method=method, dtype=dtype))
    planned = plan(options)
    model = build_model("tiny", seed=0, dtype=torch.bfloat16 if dtype == "bf16" else torch.float32)
    METHODS[method].prepare(model, options)
    optimizer = METHODS[method].optimizer(model, options)
    tokens = torch.zeros(1, 8, dtype=torch.int64)
    model(input_ids=tokens, labels=tokens).loss.backward()
    optimizer.step()
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    pools = [state["candidates"] for state in optimizer.state.values() if "candidates" in state]
    others = [t for state in optimizer.state.values() for name, t in state.items() if name != "candidates"]
    assert planned.weight_bytes == sum(p.nbytes for p in model.parameters())
    assert planned.gradient_bytes == sum(g.nbytes for g in gradients)
    assert planned.candidate_host_bytes == sum(pool.nbytes for pool in pools)
    assert planned.optimizer_bytes == sum(t.nbytes for t in others)
    assert planned.candidate_device_bytes == 0  # the command keeps its pools in host memory
    assert (planned.candidate_host_bytes > 0) == method.startswith("switchlora")


@pytest.mark.parametrize("method", ["switchlora", "switchlora-polar"])
def test_gradients_of_one_layer_are_there_at_a_time_where_each_is_stepped_in_the_backward_pass(method: str) -> None:
    options = resolve(PretrainOptions(method=method, fused_backward=True, clip=0.0))
    h, ffn, vocabulary, r = 128, 344, 2048, 32
    of_layer = r * (h + ffn) + (h * ffn if method == "switchlora-polar" else 0)
    assert plan(options).gradient_bytes == 4 * max(of_layer, vocabulary * h)  # of the embedding


@pytest.mark.parametrize("tied", [True, False])
def test_an_embedding_that_is_the_head_counts_once(tmp_path: Path, tied: bool) -> None:
    config = {"model_type": "llama", "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    config |= {"num_attention_heads": 2, "vocab_size": 300, "tie_word_embeddings": tied}
    (tmp_path / "config.json").write_text(json.dumps(config))
    options = resolve(PretrainOptions(model=str(tmp_path), method="full", tokenizer="train:300"))
    real = build_model(str(tmp_path), seed=0)
    assert plan(options).total_parameters == sum(parameter.numel() for parameter in real.parameters())


def test_tokens() -> None:
    planned = plan(resolve(PretrainOptions(steps=10, batch_size=4, seq_len=32)))
    assert (planned.tokens_per_step, planned.total_tokens) == (128, 1280)


def test_a_local_tokenizer_decides_the_vocabulary(tmp_path: Path) -> None:
    small, large = unigram(), resolve(PretrainOptions())
    small.save_pretrained(tmp_path / "small")
    for name in ("small", "small/tokenizer.json"):
        planned = plan(resolve(PretrainOptions(tokenizer=str(tmp_path / name))))
        built = build_model("tiny", seed=0, vocab_size=num_ids(small), meta=True)
        assert planned.total_parameters == sum(p.numel() for p in built.parameters())
        assert planned.total_parameters < plan(large).total_parameters
        assert planned.vocabulary == f"{num_ids(small)} tokens (of the tokenizer)"


def test_a_hub_tokenizer_is_not_asked_for_and_the_plan_says_so() -> None:
    planned = plan(resolve(PretrainOptions(tokenizer="t5-base")))
    assert planned.vocabulary.startswith("2,048 tokens (the model's: assumed")
    assert "--tokenizer t5-base" in str(planned)


def test_a_tokenizer_that_is_not_there_is_refused_as_in_a_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"--tokenizer .*no such file or folder"):
        plan(resolve(PretrainOptions(tokenizer=str(tmp_path / "missing"))))


def test_the_text_names_layers_parameters_bytes_and_tokens() -> None:
    text = str(plan(resolve(PretrainOptions())))
    for words in (
        "q_proj",
        "r=32",
        "LM head",
        "trainable parameters",
        "candidate host bytes",
        "total tokens",
        "vocabulary: 2,048",
    ):
        assert words in text
