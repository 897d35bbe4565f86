"""What the model gets to read: ids, cut to length, padded on the right."""

import pytest
import torch
from transformers import PreTrainedTokenizerFast

from switchlora.data.tokenizer import END_OF_TEXT, encoder_of, train_bpe
from switchlora.errors import UserError
from switchlora.finetuning.batches import batches, encode
from switchlora.finetuning.rows import Row


class Tokenizer:
    """A letter is a token; 0 ends a text and 1 begins one."""

    eos_token_id, bos_token_id = 0, 1

    def __call__(self, texts, add_special_tokens, split_special_tokens):
        assert not add_special_tokens and split_special_tokens
        return {"input_ids": [[ord(letter) for letter in text] for text in texts]}


def ids(text):
    return [ord(letter) for letter in text]


def test_two_texts_and_which_of_them_is_cut():
    rows = [
        Row(("abc", "xy"), 1),
        Row(("abcdefgh", "xy"), 0),
        Row(("ab", "uvwxyz"), 0),
        Row(("abcdefgh", "stuvwxyz"), 1),
    ]
    found, num_cut = encode(rows, Tokenizer(), 8)
    assert num_cut == 3
    assert found == [
        ([1, *ids("abc"), 0, *ids("xy")], 1),
        ([1, *ids("abcd"), 0, *ids("xy")], 0),
        ([1, *ids("ab"), 0, *ids("uvwx")], 0),
        ([1, *ids("abc"), 0, *ids("stu")], 1),
    ]
    with pytest.raises(UserError, match="no room"):
        encode(rows, Tokenizer(), 3)


def test_a_special_token_in_a_text_is_text_as_in_pre_training():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=train_bpe(300, iter(["what ends a text"])), eos_token=END_OF_TEXT
    )
    text = f"a {END_OF_TEXT} b"
    [(found, _)], _ = encode([Row((text,), 1)], tokenizer, 64)
    assert found == [0, *encoder_of(tokenizer).encode(text, add_special_tokens=False).ids]
    assert found.count(0) == 1
    assert tokenizer.encode(text).count(0) == 1  # elsewhere it is what it was


def test_batches_are_padded_to_their_own_longest_row():
    examples = [([1, 5], 0.0), ([1, 5, 6, 7], 1.0), ([1], 1.0)]
    found = list(batches(examples, [2, 0, 1], 2, 9, torch.device("cpu")))
    (first, labels), (second, _) = found
    assert first["input_ids"].tolist() == [[1, 9], [1, 5]]
    assert first["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert labels.tolist() == [1.0, 0.0]
    assert second["input_ids"].tolist() == [[1, 5, 6, 7]]
