"""Text in pieces while its tokens are drawn, such that the pieces together are the text.

A token alone is not yet text: it may hold half a character, and a decoder such as Llama 2's drops the space that begins
what it is given. So a token is decoded behind the tokens of the piece before it, and what the two have more than that
one is the new piece; it waits while it ends in half a character. transformers' own streamer starts anew at every line
and loses there one space of the indentation; it also holds back whatever has no space in it.
"""

from collections.abc import Sequence
from typing import Any

HALF = "\ufffd"  # what decoders put where bytes are no character, or not yet


class Pieces:
    """The tokens after `start` as text: `add` returns what is whole by now, perhaps nothing; `rest`, what is left."""

    def __init__(self, tokenizer: Any, start: Sequence[int]) -> None:
        self.tokenizer = tokenizer
        self.tokens = list(start)
        self.context, self.shown = (
            0,
            len(self.tokens),
        )  # tokens[context:shown] have been handed over, and are decoded along

    def add(self, token: int) -> str:
        """The text that this token makes whole."""
        self.tokens.append(token)
        piece = self._new()
        if not piece or piece.endswith(HALF):
            return ""
        self.context, self.shown = self.shown, len(self.tokens)
        return piece

    def rest(self) -> str:
        """What still waited when the last token was drawn, without half a character at its end."""
        return self._new().rstrip(HALF)

    def _new(self) -> str:
        before, now = (self._text(self.tokens[self.context : end]) for end in (self.shown, len(self.tokens)))
        return now[len(before) :]

    def _text(self, tokens: list[int]) -> str:
        text: str = self.tokenizer.decode(tokens, skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return text
