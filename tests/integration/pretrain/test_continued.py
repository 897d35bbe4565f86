"""Continued pre-training: the common causal architectures, each a tiny random model with a tokenizer of its own."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from switchlora import SwitchLora, SwitchLoraConfig, convert, to_dense
from switchlora.data.tokenizer import END_OF_TEXT, train_bpe
from switchlora.errors import UserError
from switchlora.layer import SwitchLoraLinear
from switchlora.planning.estimate import plan_of
from switchlora.planning.options import PlanOptions
from switchlora.trained.loading import load_tokenizer
from switchlora.training import dry_run, models
from switchlora.training.loop import pretrain
from switchlora.training.models import deferred_model
from switchlora.training.options import PretrainOptions
from switchlora.training.resolve import resolve
from tests.distributed.ranks import on_ranks, warm
from tests.integration.pretrain.test_parallel import pretrain_on_a_rank, weights_of

warm()
MakeOptions = Callable[..., PretrainOptions]

COMMON = {"vocab_size": 300, "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": None}
LLAMA_LIKE = {
    **COMMON,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
}
GPT2 = {**COMMON, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64, "n_inner": 48, "resid_pdrop": 0.0}
GPT2 |= {"embd_pdrop": 0.0, "attn_pdrop": 0.0}  # dropout draws otherwise in two processes
# name: (configuration, how many of its linear layers train through factors)
MODELS: dict[str, tuple[Callable[[], Any], int]] = {
    "llama": (lambda: transformers.LlamaConfig(**LLAMA_LIKE, tie_word_embeddings=False), 14),
    "llama-tied": (lambda: transformers.LlamaConfig(**LLAMA_LIKE, tie_word_embeddings=True), 14),
    "qwen2": (lambda: transformers.Qwen2Config(**LLAMA_LIKE, tie_word_embeddings=True), 14),
    "qwen3": (lambda: transformers.Qwen3Config(**LLAMA_LIKE, head_dim=8, tie_word_embeddings=False), 14),
    "mistral": (lambda: transformers.MistralConfig(**LLAMA_LIKE, sliding_window=16), 14),
    "gemma": (lambda: transformers.GemmaConfig(**LLAMA_LIKE, head_dim=8), 14),
    "gpt-neox": (
        lambda: transformers.GPTNeoXConfig(
            **{name: value for name, value in LLAMA_LIKE.items() if name != "num_key_value_heads"}
        ),
        8,
    ),
    "opt": (
        lambda: transformers.OPTConfig(
            **COMMON, hidden_size=32, ffn_dim=48, num_hidden_layers=2, num_attention_heads=4,
            max_position_embeddings=64, word_embed_proj_dim=32, dropout=0.1,
        ),
        12,
    ),
    "gpt2": (
        lambda: transformers.GPT2Config(**GPT2, tie_word_embeddings=True),
        8,
    ),
    "gpt2-untied": (lambda: transformers.GPT2Config(**GPT2, tie_word_embeddings=False), 8),
}  # fmt: skip
each_model = pytest.mark.parametrize("kind", list(MODELS))


@pytest.fixture(scope="session")
def tokenizer(corpus: Path) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(300, iter([(corpus / "ast.txt").read_text()])), eos_token=END_OF_TEXT
    )


@pytest.fixture
def checkpoint(tmp_path: Path, kind: str, tokenizer: PreTrainedTokenizerFast) -> Path:
    """Somebody's model: weights, configuration and tokenizer in a folder."""
    torch.manual_seed(7)
    folder = tmp_path / "theirs"
    model = AutoModelForCausalLM.from_config(MODELS[kind][0]())
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def batch(step: int) -> torch.Tensor:
    return torch.randint(0, 300, (2, 24), generator=torch.Generator().manual_seed(step))


@each_model
def test_it_converts_trains_exports_and_reloads_with_equal_logits(tmp_path: Path, checkpoint: Path, kind: str) -> None:
    model = AutoModelForCausalLM.from_pretrained(checkpoint)
    model.eval()
    plain_keys, before = set(model.state_dict()), model(input_ids=batch(0)).logits
    config = SwitchLoraConfig(r=8, interval=10.0)
    report = convert(model, config)
    assert len(report.converted) == MODELS[kind][1]
    torch.testing.assert_close(model(input_ids=batch(0)).logits, before, rtol=1e-5, atol=1e-6)  # W as it was
    optimizer = SwitchLora(model, config, total_steps=20, lr=1e-2)
    start = {name: layer.weight.clone() for name, layer in model.named_modules() if isinstance(layer, SwitchLoraLinear)}
    losses, switches = [], 0
    for _ in range(20):
        loss = model(input_ids=batch(0), labels=batch(0)).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
        switches += sum(bool(outcome.switches) for outcome in optimizer.outcomes.values())
    assert losses[-1] < losses[0] - 0.5
    assert switches > 0
    for name, layer in model.named_modules():
        assert name not in start or not torch.equal(layer.weight, start[name]), name
    after = to_dense(model)(input_ids=batch(1)).logits
    model.save_pretrained(tmp_path / "ours")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "ours").eval()
    assert type(again) is type(model)
    assert set(again.state_dict()) == plain_keys
    assert torch.equal(again(input_ids=batch(1)).logits, after)


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind not in ("llama", "gpt2-untied")])
def test_pretrain_goes_on_from_its_weights_and_keeps_its_tokenizer(
    tmp_path: Path, checkpoint: Path, kind: str, options: MakeOptions, tokenizer: PreTrainedTokenizerFast
) -> None:
    from_weights = {"model": str(checkpoint), "tokenizer": None, "steps": 20}
    pretrain(options(tmp_path / "run", lr=1e-8, other_lr=1e-8, **from_weights))  # all but at rest
    theirs, ours = load_file(checkpoint / "model.safetensors"), load_file(tmp_path / "run" / "model.safetensors")
    assert set(ours) == set(theirs)
    for name, tensor in theirs.items():
        torch.testing.assert_close(ours[name], tensor, rtol=0, atol=1e-4, msg=name)
    exported = load_tokenizer(str(tmp_path / "run"))  # AutoTokenizer would split text otherwise for qwen2
    assert exported.backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
    assert exported.eos_token_id == tokenizer.eos_token_id
    trained = pretrain(options(tmp_path / "trained", lr=1e-2, **from_weights))
    assert trained["validation_loss"] < json.loads((tmp_path / "run" / "result.json").read_text())["validation_loss"]


@pytest.mark.parametrize("kind", ["gpt2"])
def test_weights_without_their_tokenizer_are_refused(checkpoint: Path, tmp_path: Path, options: MakeOptions) -> None:
    for path in checkpoint.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(UserError, match=r"--model .*theirs: has weights but no tokenizer.*or give --tokenizer"):
        pretrain(options(tmp_path / "run", model=str(checkpoint), tokenizer=None))


def exported(folder: Path) -> dict[str, torch.Tensor]:
    """What the files hold: as transformers has it, tied weights once."""
    AutoModelForCausalLM.from_pretrained(folder)
    return weights_of(folder)


@pytest.mark.parametrize(
    ("kind", "strategy"),
    [("gpt2-untied", "fsdp"), ("gpt2", "fsdp"), ("qwen2", "fsdp"), ("gpt2", "ddp"), ("qwen2", "ddp")],
)
def test_two_processes_go_on_from_weights_as_one_does(
    tmp_path: Path, checkpoint: Path, options: MakeOptions, strategy: str
) -> None:
    """Conv1D, transposed while it trains; under FSDP2 shared out, and gathered again as it was."""
    changes = {"model": str(checkpoint), "tokenizer": None, "steps": 6, "save_every": 0}
    pretrain(options(tmp_path / "none", **changes))
    on_ranks(pretrain_on_a_rank, options(tmp_path / "two", parallel=strategy, **changes), group=False)
    one, two = (exported(tmp_path / name) for name in ("none", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-4, msg=name)


@pytest.mark.parametrize("kind", MODELS)
def test_weights_are_read_one_by_one_where_models_are_shared_out(checkpoint: Path, kind: str) -> None:
    """No rank holds the whole, unless transformers has to rename tensors."""
    model, recipes = deferred_model(
        str(checkpoint), seed=0, vocab_size=300, eos_token_id=0, seq_len=32, dtype=torch.bfloat16
    )
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint)
    if kind == "gpt-neox":  # whose head has another name in files
        assert recipes is None and not any(parameter.is_meta for parameter in model.parameters())
        return
    assert recipes is not None and all(parameter.is_meta for parameter in model.parameters())
    for name, parameter in theirs.named_parameters():
        assert torch.equal(recipes[name].value(parameter.shape, torch.bfloat16), parameter.bfloat16()), name
    for (name, buffer), other in zip(theirs.named_buffers(), model.buffers(), strict=True):
        assert torch.equal(buffer, other), name


@pytest.mark.parametrize("kind", ["llama"])
def test_a_model_of_the_hub_is_planned_and_loaded_without_a_network(
    tmp_path: Path, checkpoint: Path, options: MakeOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "hub" / "models--somebody--tiny"
    shutil.copytree(checkpoint, kept / "snapshots" / "0123")
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0123")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(models, "hub_resolves", lambda: False)
    run = resolve(options(tmp_path / "run", model="somebody/tiny", r=None, tokenizer=str(checkpoint)))
    assert run.r is None
    assert "r=8" in str(dry_run.plan(run))
    assert plan_of(PlanOptions(model="somebody/tiny", seq_len=32)).r == 8
    asked: dict[str, Any] = {}

    def from_pretrained(name: str, **settings: Any) -> Any:
        asked.update(settings)
        raise OSError

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", from_pretrained)
    with pytest.raises(UserError, match="the hub did not give it"):
        models.build_model("somebody/tiny", seed=0, seq_len=32)
    assert asked["local_files_only"] and asked["adapter_kwargs"]["local_files_only"]  # else it retries for a minute


@pytest.mark.parametrize("kind", ["qwen2"])
@pytest.mark.parametrize("largest", ["1GB", "50kB"])  # in one file, in several
def test_weights_of_the_hub_are_read_one_by_one_as_well(
    tmp_path: Path, checkpoint: Path, largest: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = tmp_path / "hub" / "models--somebody--tiny"
    theirs = AutoModelForCausalLM.from_pretrained(checkpoint)
    theirs.save_pretrained(kept / "snapshots" / "0123", max_shard_size=largest)
    (kept / "refs").mkdir()
    (kept / "refs" / "main").write_text("0123")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    model, recipes = deferred_model(
        "somebody/tiny", seed=0, vocab_size=300, eos_token_id=0, seq_len=32, dtype=torch.float32
    )
    assert recipes is not None and all(parameter.is_meta for parameter in model.parameters())
    for name, parameter in theirs.named_parameters():
        assert torch.equal(recipes[name].value(parameter.shape, torch.float32), parameter), name


@pytest.mark.parametrize("kind", ["gpt2-untied", "gpt2", "qwen2"])
def test_two_processes_begin_with_the_random_weights_of_one(
    tmp_path: Path, checkpoint: Path, options: MakeOptions
) -> None:
    """Under FSDP2 each process draws its rows, of layers that lie transposed as well."""
    changes = {"model": str(checkpoint / "config.json"), "tokenizer": str(checkpoint), "steps": 6, "save_every": 0}
    pretrain(options(tmp_path / "none", **changes))
    on_ranks(pretrain_on_a_rank, options(tmp_path / "two", parallel="fsdp", **changes), group=False)
    one, two = (exported(tmp_path / name) for name in ("none", "two"))
    assert one.keys() == two.keys()
    for name, tensor in one.items():
        torch.testing.assert_close(two[name], tensor, rtol=0, atol=1e-4, msg=name)
