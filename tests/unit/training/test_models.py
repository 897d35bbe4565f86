"""Models to go on from: every row of the embedding trains, and what is not there or not whole is said at once."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
import transformers
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig

from switchlora.errors import NonFiniteError, UserError
from switchlora.training import models
from switchlora.training.models import build_model, deferred_model, random_model
from switchlora.training.stored import hub_folder

SETTINGS: dict[str, Any] = {
    "seed": 0, "vocab_size": 50, "eos_token_id": 0, "seq_len": 8, "dtype": torch.float32,
}  # fmt: skip


def padding_config() -> LlamaConfig:
    """Of a model that pads with the token that ends its texts."""
    return LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
        max_position_embeddings=16, pad_token_id=0, bos_token_id=0, eos_token_id=0,
    )  # fmt: skip


@pytest.fixture
def padding(tmp_path: Path) -> str:
    AutoModelForCausalLM.from_config(padding_config()).save_pretrained(tmp_path / "padding")
    return str(tmp_path / "padding")


def of_weights(name: str) -> nn.Module:
    return build_model(name, **SETTINGS)


def shared_out(name: str) -> nn.Module:
    """As FSDP2 begins: without memory, which each process then fills."""
    model, recipes = deferred_model(name, **SETTINGS)
    assert recipes is not None
    model.to_empty(device="cpu")
    with torch.no_grad():
        for key, parameter in model.named_parameters():
            parameter.copy_(recipes[key].value(parameter.shape, torch.float32))
    return model


def of_a_configuration(name: str) -> nn.Module:
    return random_model(LlamaConfig.from_pretrained(name), seed=0, dtype=torch.float32)


@pytest.mark.parametrize("build", [of_weights, shared_out, of_a_configuration])
def test_the_row_of_the_token_that_pads_trains(padding: str, build: Callable[[str], nn.Module]) -> None:
    model: Any = build(padding)
    tokens = torch.tensor([[0, 5, 6, 0, 7, 8]])  # what follows the last is not predicted
    model(input_ids=tokens, labels=tokens).loss.backward()
    assert model.get_input_embeddings().weight.grad.norm(dim=1).nonzero()[:, 0].tolist() == [0, 5, 6, 7]
    assert model.config.pad_token_id == 0  # the model that is exported pads as it did


def test_its_first_values_are_those_of_transformers(padding: str) -> None:
    torch.manual_seed(0)
    theirs = AutoModelForCausalLM.from_config(padding_config())
    for (name, ours), other in zip(of_a_configuration(padding).named_parameters(), theirs.parameters(), strict=True):
        assert torch.equal(ours, other), name


@pytest.mark.parametrize("build", [of_weights, shared_out])
def test_weights_that_are_not_finite(padding: str, build: Callable[[str], nn.Module]) -> None:
    theirs: Any = AutoModelForCausalLM.from_pretrained(padding)
    with torch.no_grad():
        theirs.model.norm.weight[3] = float("inf")
    theirs.save_pretrained(padding)
    with pytest.raises(NonFiniteError, match=r"^--model .*padding: model\.norm\.weight is not finite; .*give another$"):
        build(padding)


def test_a_hub_that_is_not_there_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its client would try for a minute. Local files may hold what is asked for."""
    asked: list[bool] = []

    def ask(*_: Any, local_files_only: bool = False, **__: Any) -> Any:
        asked.append(local_files_only)
        raise OSError("nobody there")

    for place in (transformers.AutoConfig, transformers.AutoModelForCausalLM):
        monkeypatch.setattr(place, "from_pretrained", ask)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", ask)
    with pytest.raises(UserError, match="--model org/none: is no local path, and the hub did not give it"):
        build_model("org/none", **SETTINGS)
    with pytest.raises(UserError, match="--model org/none: is no local path, and the hub did not give it"):
        models._load_weights("org/none", padding_config())
    assert hub_folder("org/none") is None
    assert asked == [True] * 3
