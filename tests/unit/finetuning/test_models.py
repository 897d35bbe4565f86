"""Models of other makers as classifiers: transposed layers, a token that also pads, a head that was there before."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    FalconConfig,
    GPT2Config,
    GraniteConfig,
    LlamaConfig,
)

from switchlora.errors import NonFiniteError, UserError
from switchlora.finetuning.batches import batches
from switchlora.finetuning.glue import TASKS
from switchlora.finetuning.methods import prepare
from switchlora.finetuning.models import body, is_head, load_classifier, require_saveable
from switchlora.finetuning.options import FinetuneOptions
from switchlora.trained.loading import load_model, require_tokens

TOKENIZER = SimpleNamespace(pad_token_id=None, eos_token_id=0)


@pytest.fixture
def gpt2(tmp_path: Path) -> str:
    """A causal model whose linear layers are Conv1D, without a token of its own to pad with."""
    config = GPT2Config(vocab_size=50, n_embd=16, n_layer=2, n_head=2, n_positions=16, resid_pdrop=0.0)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "gpt2")
    return str(tmp_path / "gpt2")


def test_the_head_is_a_function_of_the_seed_alone(gpt2: str) -> None:
    torch.manual_seed(1)
    before = torch.get_rng_state()
    first = load_classifier(gpt2, TASKS["mnli"], TOKENIZER, 3)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    again, other = (load_classifier(gpt2, TASKS["mnli"], TOKENIZER, seed) for seed in (3, 4))
    heads: list[Any] = [model.score.weight for model in (first, again, other)]
    assert torch.equal(heads[0], heads[1])
    assert not torch.equal(heads[0], heads[2])
    assert heads[0].shape == (3, 16)
    assert all(torch.equal(p, q) for p, q in zip(body(first).values(), body(other).values(), strict=True))
    causal = AutoModelForCausalLM.from_pretrained(gpt2)
    assert all(torch.equal(p, causal.get_parameter(name)) for name, p in body(first).items())


def test_padding_changes_nothing_where_the_end_of_text_pads(gpt2: str) -> None:
    model = load_classifier(gpt2, TASKS["rte"], TOKENIZER, 0).eval()
    rows = [([0, 5, 6, 0, 7], 0.0), ([0, 5, 6, 0, 7, 8, 9, 10], 1.0)]
    (both, _), = batches(rows, [0, 1], 2, 0, torch.device("cpu"))  # fmt: skip
    alone = [inputs for inputs, _ in batches(rows, [0, 1], 1, 0, torch.device("cpu"))]
    with torch.no_grad():
        together = model(**both).logits
        each = torch.cat([model(**inputs).logits for inputs in alone])
    torch.testing.assert_close(together, each, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("method", ["lora", "switchlora"])
def test_factors_beside_gpt_2_s_layers_train_and_are_folded_in(gpt2: str, method: str) -> None:
    model = load_classifier(gpt2, TASKS["rte"], TOKENIZER, 0)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    method_ = prepare(model, FinetuneOptions(checkpoint=gpt2, task="rte", method=method, r=4), 1e-2, 3, 0)
    for _ in range(3):
        logits = model(input_ids=torch.tensor([[0, 5, 6, 7]]), attention_mask=torch.ones(1, 4)).logits
        logits.logsumexp(-1).sum().backward()
        method_.optimizer.step()
        method_.optimizer.zero_grad()
    method_.finish()
    after = dict(model.named_parameters())
    assert after.keys() == before.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    layers = {f"transformer.h.{i}.{name}.weight" for i in (0, 1) for name in
              ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")}  # fmt: skip
    assert changed == layers | {"score.weight"}
    assert {name for name in before if is_head(name)} == {"score.weight"}


def test_a_model_of_several_files_in_bfloat16(gpt2: str, tmp_path: Path) -> None:
    causal = AutoModelForCausalLM.from_pretrained(gpt2, dtype=torch.bfloat16)
    causal.save_pretrained(tmp_path / "parts", max_shard_size="4KB")
    assert len(list((tmp_path / "parts").glob("*.safetensors"))) > 1
    model = load_classifier(str(tmp_path / "parts"), TASKS["rte"], TOKENIZER, 0)
    assert {p.dtype for p in model.parameters()} == {torch.float32}
    assert all(torch.equal(p, causal.get_parameter(name).float()) for name, p in body(model).items())


def test_a_classifier_of_another_task_lends_its_body(gpt2: str, tmp_path: Path) -> None:
    """As from MNLI to RTE: the head is new, whatever was there."""
    first: Any = load_classifier(gpt2, TASKS["mnli"], TOKENIZER, 0)
    first.save_pretrained(tmp_path / "mnli")
    assert AutoModelForSequenceClassification.from_pretrained(tmp_path / "mnli").score.weight.shape == (3, 16)
    second: Any = load_classifier(str(tmp_path / "mnli"), TASKS["rte"], TOKENIZER, 0)
    assert second.score.weight.shape == (2, 16)
    assert all(torch.equal(p, second.get_parameter(name)) for name, p in body(first).items())


def test_a_family_without_a_classifier_gets_ours(tmp_path: Path) -> None:
    config = GraniteConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        num_key_value_heads=2, pad_token_id=None,
    )  # fmt: skip
    causal: Any = AutoModelForCausalLM.from_config(config).eval()
    causal.save_pretrained(tmp_path / "granite")
    model: Any = load_classifier(str(tmp_path / "granite"), TASKS["mnli"], TOKENIZER, 0).eval()
    rows = [([0, 5, 6, 0, 7], 0.0), ([0, 5, 6, 0, 7, 8, 9, 10], 1.0)]
    (both, _), = batches(rows, [0, 1], 2, 0, torch.device("cpu"))  # fmt: skip
    with torch.no_grad():
        for row, logits in zip(rows, model(**both).logits, strict=True):
            last = causal.model(input_ids=torch.tensor([row[0]])).last_hidden_state[0, -1]
            torch.testing.assert_close(logits, last @ model.score.weight.T, rtol=1e-5, atol=1e-6)
    with pytest.raises(UserError, match=r"--checkpoint .*granite: its tokenizer gives token 50, and the model has 50"):
        require_tokens(model, 50)
    with pytest.raises(UserError, match="--save: transformers has no classifier for granite"):
        require_saveable(model, "--save")
    with pytest.raises(
        UserError, match=r"--apply-delta: transformers has no classifier for granite.*; apply_delta_ of "
    ):
        require_saveable(model, "--apply-delta")


def test_full_fine_tuning_trains_the_row_of_the_token_that_pads(tmp_path: Path) -> None:
    """torch leaves the row out that an embedding calls padding_idx; here it also begins and parts texts."""
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, pad_token_id=0
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "llama")
    model = load_classifier(str(tmp_path / "llama"), TASKS["rte"], TOKENIZER, 0)
    model(input_ids=torch.tensor([[0, 5, 0, 7]]), attention_mask=torch.ones(1, 4)).logits.sum().backward()
    assert all(p.grad is not None for p in model.parameters())
    rows = body(model)["model.embed_tokens.weight"].grad
    assert rows is not None
    assert rows.norm(dim=1).nonzero()[:, 0].tolist() == [0, 5, 7]


def test_a_family_whose_layers_can_have_no_factors(tmp_path: Path) -> None:
    """Falcon's are a class of its own; the rank is not to blame."""
    config = FalconConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path / "falcon")
    model = load_classifier(str(tmp_path / "falcon"), TASKS["rte"], TOKENIZER, 0)
    with pytest.raises(UserError, match=r"^--method lora: .*FalconLinear.*; use full or subset$"):
        prepare(model, FinetuneOptions(method="lora", r=4), 1e-2, 3, 0)


def test_weights_that_are_not_finite(gpt2: str, tmp_path: Path) -> None:
    model: Any = AutoModelForCausalLM.from_pretrained(gpt2)
    with torch.no_grad():
        model.transformer.h[1].mlp.c_fc.weight[0, 0] = float("nan")
    model.save_pretrained(tmp_path / "nan")
    with pytest.raises(NonFiniteError, match=r"--checkpoint .*nan: transformer.h.1.mlp.c_fc.weight is not finite"):
        load_classifier(str(tmp_path / "nan"), TASKS["rte"], TOKENIZER, 0)
    with pytest.raises(NonFiniteError, match="give another"):
        load_model(str(tmp_path / "nan"))
