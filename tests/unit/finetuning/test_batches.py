"""What the model gets to read: ids, cut to length, padded on the right."""

import pytest
import torch

from switchlora.errors import UserError
from switchlora.finetuning.batches import batches, encode
from switchlora.finetuning.rows import Row


class Tokenizer:
    """A letter is a token; 0 ends a text and 1 begins one."""

    eos_token_id, bos_token_id = 0, 1

    def __call__(self, texts, add_special_tokens):
        assert not add_special_tokens
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


def test_batches_are_padded_to_their_own_longest_row():
    examples = [([1, 5], 0.0), ([1, 5, 6, 7], 1.0), ([1], 1.0)]
    found = list(batches(examples, [2, 0, 1], 2, 9, torch.device("cpu")))
    (first, labels), (second, _) = found
    assert first["input_ids"].tolist() == [[1, 9], [1, 5]]
    assert first["attention_mask"].tolist() == [[1, 0], [1, 1]]
    assert labels.tolist() == [1.0, 0.0]
    assert second["input_ids"].tolist() == [[1, 5, 6, 7]]
