"""Detokenize: turn tokens into text as they come, never half a character.

A token may hold part of a UTF-8 character, and a tokenizer may join neighbours (a leading space, a
byte pair), so new text is the difference between a short window decoded without and with the new
tokens.
"""

from collections.abc import Sequence
from typing import Protocol, final

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
# A UTF-8 character has at most 4 bytes; tokens may begin in one character and end in the next, so a
# few more than 4 can wait for an end. What waits longer is broken, and stays so.
_MAX_WAITING_TOKENS = 8


class Decodes(Protocol):
    """What detokenizing needs of a tokenizer."""

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of some tokens."""


@final
class Detokenizer:
    """The text of one growing token sequence.

    Args:
        tokenizer: what decodes.
        context: tokens before the first one, whose text is known; a few are enough. Without them a
            leading space may be lost: SentencePiece drops it at the start of a text.
        skip_special_tokens: leave special tokens out of the text.
    """

    def __init__(
        self, tokenizer: Decodes, context: Sequence[int] = (), *, skip_special_tokens: bool
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._tokens: list[int] = list(context)
        self._window = 0  # tokens from here are decoded again, as context for new ones
        self._read = len(self._tokens)  # the text of the tokens up to here is known

    def push(self, tokens: Sequence[int]) -> str:
        """Return the text that these tokens complete."""
        self._tokens += tokens
        known = self._decode(self._read)
        last = len(self._tokens)
        for end in range(last, max(self._read, last - _MAX_WAITING_TOKENS), -1):
            text = self._decode(end)
            if not text.endswith(_REPLACEMENT):
                break
        else:
            end = max(self._read, last - _MAX_WAITING_TOKENS)
            text = self._decode(end)
        if len(text) <= len(known):
            return ""
        self._window, self._read = self._read, end
        return text[len(known) :]

    def flush(self) -> str:
        """Return what is left at the end; an unfinished character becomes U+FFFD."""
        known, text = self._decode(self._read), self._decode(len(self._tokens))
        self._read = len(self._tokens)
        return text[len(known) :]

    def _decode(self, end: int) -> str:
        return self._tokenizer.decode(
            self._tokens[self._window : end], skip_special_tokens=self._skip_special_tokens
        )
