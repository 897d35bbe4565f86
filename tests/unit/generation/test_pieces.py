"""Pieces together are the text, for tokenizers of both kinds: bytes as GPT-2 has them, and Llama 2's spaces."""

from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from switchlora.generation.pieces import Pieces

TEXTS = [
    "def f():\n    return 1\n  x = 2\n",
    "ein Käfer für 3 € 🙂🙂é 字字\n\n  🙂",
    " begins with a space, has  two, and ends with one ",
    "withoutanyspace" * 3,
]
ENDS = ["<unk>", "<s>", "</s>"]


def like_gpt2() -> Any:
    inner = Tokenizer(models.BPE())
    inner.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    inner.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=290, special_tokens=ENDS, initial_alphabet=alphabet, show_progress=False)
    inner.train_from_iterator(["def return x = 2 has two"], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


def like_llama2() -> Any:
    words = [*ENDS, *(f"<0x{byte:02X}>" for byte in range(256)), *"▁abcdefhinoprstuwxy():=", "▁▁", "de", "f(", "re"]
    inner = Tokenizer(
        models.BPE(
            vocab={word: number for number, word in enumerate(words)},
            merges=[("▁", "▁"), ("d", "e"), ("f", "("), ("r", "e")],
            byte_fallback=True,
            unk_token="<unk>",
        )
    )
    inner.pre_tokenizer = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="first", split=False)
    inner.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=inner, bos_token="<s>", eos_token="</s>")


@pytest.fixture(params=[like_gpt2, like_llama2], ids=["gpt2", "llama2"])
def tokenizer(request: pytest.FixtureRequest) -> Any:
    return request.param()


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("prompt", [0, 1, 7])
def test_the_pieces_together_are_the_text(tokenizer: Any, text: str, prompt: int) -> None:
    tokens = [tokenizer.bos_token_id, *tokenizer.encode(text, add_special_tokens=False)]
    start, drawn = tokens[: 1 + prompt], [*tokens[1 + prompt :], tokenizer.eos_token_id]
    before = tokenizer.decode(start, skip_special_tokens=True).rstrip("\ufffd")
    pieces = Pieces(tokenizer, start)
    found = [pieces.add(token) for token in drawn]
    whole = tokenizer.decode(tokens, skip_special_tokens=True)
    assert whole.strip() == text.strip()
    if "\ufffd" not in tokenizer.decode(start):  # else the prompt ends in the middle of a character
        assert before + "".join(found) + pieces.rest() == whole
        assert not any("\ufffd" in piece for piece in found)
    assert len(set(found)) > 5


def test_half_a_character_is_not_shown_and_a_wrong_one_is_not_waited_for(tokenizer: Any) -> None:
    letter = tokenizer.encode("x", add_special_tokens=False)
    halves = tokenizer.encode("x🙂", add_special_tokens=False)[len(letter) :]
    pieces = Pieces(tokenizer, letter)
    assert [pieces.add(token) for token in halves[:-1]] == [""] * (len(halves) - 1)
    assert pieces.rest() == ""
    assert pieces.add(letter[-1]).strip("\ufffd ") == "x"
