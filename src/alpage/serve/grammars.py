"""Grammars: guides compiled for a model's vocabulary, and where each continuation is in its own.

The automata are llguidance's. Compiling is for any thread that may wait; what comes out is kept, so
that the engine's thread finds it.
"""

import json
import threading
from collections import OrderedDict
from collections.abc import Collection, Sequence
from typing import Final, Literal, Protocol, final

import llguidance
from llguidance import gbnf_to_lark

from alpage.errors import InvalidValue
from alpage.serve.guide import Guide

_MAX_KEPT: Final = 128
# Space in JSON; without a bound a model may go on with it for ever.
_JSON_SPACE: Final = r"[ \t\n\r]{1,32}"
_NUM_STEPS_AHEAD: Final = 4
_MAX_SHOWN_ERROR: Final = 300


class Spells(Protocol):
    """What a grammar needs to know of a tokenizer."""

    @property
    def special_ids(self) -> Collection[int]:
        """Tokens that are no text."""

    def encode(self, text: str, *, add_special_tokens: bool) -> Sequence[int]:
        """Return a text's tokens."""

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token stands for."""


@final
class Matcher:
    """Where a continuation is in its form.

    Attributes:
        allowed: the tokens that may come next, a bit each, the first one the lowest of a byte.
    """

    def __init__(
        self, state: llguidance.LLMatcher, ends: bytes, allowed: bytes | None = None
    ) -> None:
        self._state = state
        self._ends = ends
        self.allowed = state.compute_bitmask() if allowed is None else allowed

    def fork(self) -> "Matcher":
        """Return another one, which goes on from here by itself."""
        return Matcher(self._state.deep_copy(), self._ends, self.allowed)

    @property
    def error(self) -> str:
        """Why nothing more can come, if its form got too hard to follow."""
        return self._state.get_error()

    @property
    def is_complete(self) -> bool:
        """Whether nothing can come but the end."""
        return not self._state.is_error() and (
            self._state.is_stopped() or self.allowed == self._ends
        )

    def push(self, token: int) -> Literal["stop", "abort"] | None:
        """Take the next token; return how the text ends, if it ends with it."""
        self._state.consume_token(token)
        if not self._state.is_error() and not self._state.is_stopped():
            self.allowed = self._state.compute_bitmask()
        if self._state.is_error() or not any(self.allowed):
            return "abort"
        return "stop" if self.is_complete else None


@final
class Grammars:
    """Compiles guides, and keeps the last ones.

    Args:
        spells: the model's tokenizer.
        vocab_size: tokens that the model gives logits for.
        eos_ids: tokens that end a text.
    """

    def __init__(self, spells: Spells, vocab_size: int, eos_ids: Collection[int]) -> None:
        self._spells = spells
        self._vocab_size = vocab_size
        self._eos_ids = sorted(eos_ids)
        self._lock = threading.Lock()
        self._tokenizer: llguidance.LLTokenizer | None = None
        self._kept: OrderedDict[Guide, Matcher] = OrderedDict()

    def prepare(self) -> None:
        """Lay out the vocabulary, which takes a second if it is large and is done once."""
        with self._lock:
            self._vocabulary()

    def matcher(self, guide: Guide) -> Matcher:
        """Return the beginning of a guide's form, compiled now unless it is kept.

        Raises:
            InvalidValue: it has no meaning, cannot be fulfilled, or is too hard.
        """
        with self._lock:
            found = self._kept.get(guide)
            if found is not None:
                self._kept.move_to_end(guide)
                return found.fork()
            tokenizer = self._vocabulary()
        found = self._compiled(guide, tokenizer)
        with self._lock:
            self._kept[guide] = found
            while len(self._kept) > _MAX_KEPT:
                self._kept.popitem(last=False)
            return found.fork()

    def _compiled(self, guide: Guide, tokenizer: llguidance.LLTokenizer) -> Matcher:
        ends = bytearray(-(-tokenizer.vocab_size // 32) * 4)
        for token in tokenizer.eos_tokens:
            ends[token // 8] |= 1 << token % 8
        limits = llguidance.LLParserLimits(verbose_errors=False)
        state = llguidance.LLMatcher(tokenizer, _source(guide), log_level=0, limits=limits)
        if state.is_error():
            raise _wrong(guide, state.get_error())
        found = Matcher(state, bytes(ends))
        if state.is_error() or found.is_complete or not any(found.allowed):
            raise _wrong(guide, state.get_error() or "no text but the empty one has this form")
        _look_ahead(guide, found.fork())
        return found

    def _vocabulary(self) -> llguidance.LLTokenizer:
        if self._tokenizer is None:
            vocabulary = _Vocabulary(self._spells, self._vocab_size, self._eos_ids)
            self._tokenizer = llguidance.LLTokenizer(
                llguidance.TokenizerWrapper(vocabulary), eos_token=vocabulary.eos_ids
            )
        return self._tokenizer


@final
class _Vocabulary:
    """A vocabulary as llguidance asks for it."""

    def __init__(self, spells: Spells, vocab_size: int, eos_ids: Sequence[int]) -> None:
        self.tokens = [spells.token_bytes(token) for token in range(vocab_size)]
        self.special_token_ids = [token for token in spells.special_ids if token < vocab_size]
        self.eos_ids = list(eos_ids)
        if not eos_ids:
            # Its texts have no end but their form's: a token that nobody draws stands for it.
            self.eos_ids = [vocab_size]
            self.tokens.append(b"<end>")
            self.special_token_ids.append(vocab_size)
        self.eos_token_id = self.eos_ids[0]
        self.bos_token_id = None
        self._spells = spells
        self._is_special = frozenset(self.special_token_ids)
        self._ids = {
            spelling: token
            for token, spelling in enumerate(self.tokens)
            if spelling and token not in self._is_special
        }
        self._max_bytes = max(map(len, self._ids), default=1)

    def __call__(self, text: str | bytes) -> list[int]:
        """Return the tokens of a text that is bound to come, none of them special.

        They have to spell it exactly, which a tokenizer's own may not: some begin with a space, and
        some texts look like special tokens.
        """
        if isinstance(text, bytes):
            raise TypeError("texts only, which are UTF-8")
        spelling = text.encode()
        ids = list(self._spells.encode(text, add_special_tokens=False))
        is_exact = b"".join(self.tokens[token] for token in ids) == spelling
        if is_exact and self._is_special.isdisjoint(ids):
            return ids
        return self._longest_first(spelling)

    def _longest_first(self, spelling: bytes) -> list[int]:
        ids, start = [], 0
        while start < len(spelling):
            ends = range(min(len(spelling), start + self._max_bytes), start, -1)
            end = next((end for end in ends if spelling[start:end] in self._ids), None)
            if end is None:
                break
            ids.append(self._ids[spelling[start:end]])
            start = end
        return ids


def _look_ahead(guide: Guide, matcher: Matcher) -> None:
    """Refuse a form that is too hard to follow: most such are from the first tokens on."""
    for _ in range(_NUM_STEPS_AHEAD):
        byte = next(number for number, bits in enumerate(matcher.allowed) if bits)
        bits = matcher.allowed[byte]
        reason = matcher.push(8 * byte + (bits & -bits).bit_length() - 1)
        if reason == "abort":
            raise _wrong(guide, matcher.error or "it has no end")
        if reason is not None:
            return


def _source(guide: Guide) -> str:
    """Return a guide in llguidance's words."""
    if guide.kind == "regex":
        return llguidance.LLMatcher.grammar_from_regex(guide.source)
    if guide.kind == "json":
        schema = json.loads(guide.source)
        if isinstance(schema, dict):
            style = {"whitespace_pattern": _JSON_SPACE}
            own = schema.get("x-guidance", {})
            schema = schema | {"x-guidance": style | own if isinstance(own, dict) else own}
        return json.dumps({"grammars": [{"json_schema": schema}]})
    lark = guide.source
    if guide.kind == "choice":
        texts = (json.dumps(text, ensure_ascii=False) for text in json.loads(guide.source))
        lark = "start: " + " | ".join(texts)
    elif "::=" in lark:
        lark = _lark_of(guide)
    return json.dumps({"grammars": [{"lark_grammar": lark}]})


def _lark_of(guide: Guide) -> str:
    """Return a grammar in llama.cpp's form in Lark's."""
    try:
        return gbnf_to_lark.any_to_lark(guide.source)
    except Exception as error:  # noqa: BLE001 - whatever a reader of hostile text may meet
        raise _wrong(guide, f"{type(error).__name__}: {error}") from None


def _wrong(guide: Guide, reason: str) -> InvalidValue:
    said = (
        " ".join(reason.removesuffix("<non-verbose/>").split())[:_MAX_SHOWN_ERROR]
        or "it is too hard"
    )
    return InvalidValue(
        field=guide.field,
        value=guide.source,
        limit=f"cannot be followed: {said.rstrip('.')}",
        remedy="Mend it, or make it simpler",
    )
