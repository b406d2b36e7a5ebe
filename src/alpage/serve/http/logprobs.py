"""Logprobs: log-probabilities in the two forms in which OpenAI gives them."""

import codecs
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Final, final

from alpage.serve.http.replies import (
    ChatLogprobs,
    ChatTokenLogprob,
    CompletionLogprobs,
    TokenLogprob,
)
from alpage.serve.http.texts import Texts
from alpage.serve.outputs import TokenLogprobs

# JSON has no infinity; OpenAI writes this.
_LEAST: Final = -9999.0


@final
class Offsets:
    """Where each token of a growing text begins, in characters.

    Args:
        texts: spell tokens.
        has_special: whether special tokens are part of the text.
    """

    def __init__(self, texts: Texts, *, has_special: bool) -> None:
        self._texts = texts
        self._has_special = has_special
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._num_characters = 0

    def next(self, token: int) -> int:
        """Return where a token begins that comes after all before it."""
        start = self._num_characters
        if self._has_special or not self._texts.is_special(token):
            self._num_characters += len(self._decoder.decode(self._texts.spelling(token)))
        return start


def completion_logprobs(
    tokens: Sequence[int],
    entries: Sequence[TokenLogprobs | None],
    texts: Texts,
    offsets: Offsets,
) -> CompletionLogprobs:
    """Return a completion's form; where an entry is None, nothing came before the token."""
    found = CompletionLogprobs([], [], [], [])
    for token, entry in zip(tokens, entries, strict=True):
        found.tokens.append(_name(token, texts))
        found.text_offset.append(offsets.next(token))
        found.token_logprobs.append(None if entry is None else _bounded(entry[token].logprob))
        found.top_logprobs.append(None if entry is None else _by_name(entry, texts))
    return found


def chat_logprobs(
    tokens: Sequence[int], entries: Sequence[TokenLogprobs], num_top: int, texts: Texts
) -> ChatLogprobs:
    """Return a chat's form, with so many of the likeliest tokens beside each."""
    return ChatLogprobs(
        [
            ChatTokenLogprob(
                _name(token, texts),
                _bounded(entry[token].logprob),
                list(texts.spelling(token)),
                [
                    TokenLogprob(
                        _name(id_, texts), _bounded(entry[id_].logprob), list(texts.spelling(id_))
                    )
                    for id_ in islice(_ranked(entry), num_top)
                ],
            )
            for token, entry in zip(tokens, entries, strict=True)
        ]
    )


def _by_name(entry: TokenLogprobs, texts: Texts) -> dict[str, float]:
    # Several tokens may be spelled alike: the likeliest of them, which comes first, is shown.
    found: dict[str, float] = {}
    for token in _ranked(entry):
        found.setdefault(_name(token, texts), _bounded(entry[token].logprob))
    return found


def _ranked(entry: TokenLogprobs) -> Iterable[int]:
    return sorted(entry, key=lambda token: entry[token].rank)


def _bounded(logprob: float) -> float:
    return max(logprob, _LEAST)


def _name(token: int, texts: Texts) -> str:
    """Return a token's text; its bytes, in OpenAI's writing, if it is none by itself.

    Ids without a token, which models have as padding, get a name each.
    """
    spelling = texts.spelling(token)
    if not spelling:
        return f"token_id:{token}"
    try:
        return spelling.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in spelling)
