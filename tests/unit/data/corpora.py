"""Small texts and tokenizers that several tests share."""

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast


def documents(count: int, words: int = 60, start: int = 0) -> list[str]:
    """Distinct documents with line ends, indentation and letters beyond ASCII."""
    return [
        f"Dokument {number}: žluťoučký kůň\n" + "".join(f"    word{number * 7 + i} = {i}\n" for i in range(words))
        for number in range(start, start + count)
    ]


def unigram(end: str | None = "</s>") -> PreTrainedTokenizerFast:
    """A tokenizer of T5's kind: pieces with probabilities, word starts marked, spaces not kept exactly."""
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces += [(letter, -5.0) for letter in "▁abcdefghijklmnopqrstuvwxyz.,"] + [("▁word", -2.0), ("▁the", -1.0)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=end, unk_token="<unk>")
