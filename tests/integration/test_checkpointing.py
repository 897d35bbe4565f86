"""Activation checkpointing, by hand and by transformers, changes no bit of a gradient."""

import pytest
import torch
from torch.utils.checkpoint import checkpoint, checkpoint_sequential

from switchlora import convert
from tests.numerics.cases import config_of, start


def gradients(model) -> list[torch.Tensor]:
    return [p.grad.clone() for p in model.parameters() if p.requires_grad]


@pytest.mark.parametrize("use_reentrant", [True, False])
@pytest.mark.parametrize("autocast", [True, False])
@pytest.mark.parametrize("polar", [0.0, 0.5])
def test_checkpointed_layers_have_the_same_gradients(use_reentrant, autocast, polar):
    model, optimizer = start(config_of(polar=polar), (7, 13, 9, 5))
    x = torch.randn(6, 7, requires_grad=True)
    made = []
    for call in (
        model,
        lambda x: checkpoint(model, x, use_reentrant=use_reentrant),
        lambda x: checkpoint_sequential(model, 3, x, use_reentrant=use_reentrant),
    ):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            y = call(x)
        y.float().square().sum().backward()
        made.append(gradients(model))
        optimizer.zero_grad()
    for other in made[1:]:
        assert all(torch.equal(a, b) for a, b in zip(made[0], other, strict=True))


def test_a_transformers_model_with_checkpointing_has_the_same_gradients():
    from transformers import LlamaConfig, LlamaForCausalLM

    shape = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=64, **shape)).train()
    convert(model, config_of(r=4))
    tokens = torch.arange(32).view(2, 16)
    model(input_ids=tokens, labels=tokens).loss.backward()
    plain = gradients(model)
    model.zero_grad()
    enable = getattr(model, "activation_checkpointing_enable", None)
    if enable is not None:
        enable(activation_checkpointing_kwargs={"use_reentrant": False})
    else:
        model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": False})
    model(input_ids=tokens, labels=tokens, use_cache=False).loss.backward()
    assert all(torch.equal(a, b) for a, b in zip(plain, gradients(model), strict=True))
