"""Samples: any causal model and tokenizer of transformers, repeatable, and no trace on the global generator."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

from switchlora.report.sample import PROMPTS, continuations, end_tokens, start_tokens, write_sample

TEXT = "The cat sat on the mat. def __init__(self): return None. In this case we stop. " * 20


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=300, special_tokens=["<eos>"], initial_alphabet=alphabet, show_progress=False
    )
    inner.train_from_iterator([TEXT], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, eos_token="<eos>")


def model_of(kind: str, tokenizer: Any) -> Any:
    from transformers import AutoModelForCausalLM, GPT2Config, LlamaConfig

    size = len(tokenizer)
    if kind == "gpt2":
        config: Any = GPT2Config(
            vocab_size=size, n_embd=16, n_layer=1, n_head=2, n_positions=24, bos_token_id=0, eos_token_id=0
        )
    else:
        config = LlamaConfig(
            vocab_size=size, hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2,
            max_position_embeddings=64, bos_token_id=None, eos_token_id=0, pad_token_id=None,
        )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(1)
        return AutoModelForCausalLM.from_config(config)


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_a_sample_is_a_function_of_model_seed_and_prompt(tmp_path: Path, tokenizer: Any, kind: str) -> None:
    model = model_of(kind, tokenizer).train()
    before = torch.get_rng_state()
    texts = continuations(model, tokenizer, PROMPTS, seed=3, new_tokens=40)
    assert torch.equal(torch.get_rng_state(), before)
    assert model.training
    assert texts == continuations(model, tokenizer, PROMPTS, seed=3, new_tokens=40)
    assert texts != continuations(model, tokenizer, PROMPTS, seed=4, new_tokens=40)
    assert texts[:1] == continuations(model, tokenizer, PROMPTS[:1], seed=3, new_tokens=40)
    assert all(texts)
    write_sample(tmp_path / "sample.txt", continuations(model, tokenizer, PROMPTS, seed=3), seed=3)
    written = (tmp_path / "sample.txt").read_text(encoding="utf-8")
    assert "temperature 0.8, top_k 50" in written
    assert all(f"\n{prompt}" in written for prompt in PROMPTS)


@pytest.mark.parametrize("seed", [0, 20240101123456, 2**63 - 1])
def test_every_seed_that_a_run_may_have_gives_a_sample(tokenizer: Any, seed: int) -> None:
    model = model_of("llama", tokenizer)
    texts = continuations(model, tokenizer, ["The"] * 2, seed=seed, new_tokens=20)
    assert texts[0] != texts[1]  # the second prompt has its own generator
    assert texts != continuations(model, tokenizer, ["The"] * 2, seed=seed ^ 1, new_tokens=20)


def test_the_likeliest_token_is_taken_when_there_is_no_choice(tokenizer: Any) -> None:
    model = model_of("llama", tokenizer)
    [text] = continuations(model, tokenizer, ["The"], seed=0, new_tokens=5, top_k=1)
    ids = [0, *tokenizer.encode("The", add_special_tokens=False)]
    start = len(ids)
    for _ in range(5):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    assert text == tokenizer.decode(ids[start:], skip_special_tokens=True)


def test_the_end_of_the_text_ends_it(tokenizer: Any) -> None:
    model = model_of("llama", tokenizer)
    with torch.no_grad():
        model.lm_head.weight.zero_()  # all tokens alike: the end comes with a chance of 1/4 each time
    texts = continuations(model, tokenizer, ["a"] * 8, seed=0, new_tokens=60, top_k=4)
    lengths = [len(tokenizer.encode(text)) for text in texts]
    assert max(lengths) < 60 and len(set(lengths)) > 1
    assert not any("<eos>" in text for text in texts)


def test_ends_that_a_configuration_names_and_the_model_has_no_rows_for(tokenizer: Any) -> None:
    """GPT-2's default is 50256, also with a vocabulary of 300."""
    model = model_of("gpt2", tokenizer)
    model.config.bos_token_id = model.config.eos_token_id = 50256
    assert continuations(model, tokenizer, ["The"], seed=0, new_tokens=2)
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.eos_token = None
    assert start_tokens(model, tokenizer, "The") == tokenizer.encode("The")
    assert end_tokens(model, tokenizer) == set()


def test_a_special_token_in_a_prompt_is_that_token(tokenizer: Any) -> None:
    """For chats, whose turns are marked so."""
    end = tokenizer.eos_token_id
    assert start_tokens(model_of("llama", tokenizer), tokenizer, f"a{tokenizer.eos_token}a").count(end) == 2


def test_the_tokenizer_says_how_a_text_begins_and_both_say_how_it_ends(tokenizer: Any) -> None:
    model = model_of("llama", tokenizer)
    model.config.bos_token_id, model.config.eos_token_id = 7, [8, 9]
    assert start_tokens(model, tokenizer, "") == [tokenizer.eos_token_id]
    assert end_tokens(model, tokenizer) == {tokenizer.eos_token_id, 8, 9}
    tokenizer = copy.deepcopy(tokenizer)
    tokenizer.bos_token = "a"
    assert start_tokens(model, tokenizer, "") == [tokenizer.convert_tokens_to_ids("a")]
    tokenizer.bos_token = tokenizer.eos_token = None
    assert start_tokens(model, tokenizer, "") == [7]
