"""Tokenizer: from text to token ids and back, and from a conversation to a prompt."""

import json
import re
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, final

import tokenizers
from tokenizers.processors import TemplateProcessing

from alpage.errors import BadCheckpoint, InvalidValue, Unsupported

if TYPE_CHECKING:
    from alpage.models.chat_template import ChatTemplate, Message

_DEFAULT, _TOOL_USE = "default", "tool_use"
_SPACE: Final = "▁"  # how SentencePiece writes a space
_BYTE_TOKEN: Final = re.compile("<0x([0-9A-F]{2})>")


@final
class Tokenizer:
    """A model's tokenizer.

    Args:
        backend: what splits and joins. It is taken over: truncation and padding are switched off.
        source: the file it came from, for errors.
        special_tokens: texts by their Hugging Face names: `bos_token`, `eos_token` and so on.
        eos_ids: ids that end a generation besides `eos_token`.
        chat_templates: templates by name; the one called "default" is used, and the one called
            "tool_use" where tools are given.
        boundaries: which of `bos_token` and `eos_token` go around a sequence; None leaves that to
            the backend.

    Raises:
        BadCheckpoint: `bos_token` or `eos_token` is not in the vocabulary.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        source: Path,
        special_tokens: Mapping[str, str],
        eos_ids: frozenset[int] = frozenset(),
        chat_templates: Mapping[str, str] | None = None,
        boundaries: Collection[str] | None = None,
    ) -> None:
        backend.no_truncation()
        backend.no_padding()
        self._backend = backend
        self._source = source
        self._special_tokens = dict(special_tokens)
        self._template_sources = dict(chat_templates or {})
        self._templates: dict[str, ChatTemplate] = {}
        added_tokens = backend.get_added_tokens_decoder()
        self._added = {token_id: token.content for token_id, token in added_tokens.items()}
        self._bytes_of = _bytes_of_tokens(backend)
        self.bos_id = self._named_id("bos_token")
        self.eos_id = self._named_id("eos_token")
        self.eos_ids = eos_ids if self.eos_id is None else eos_ids | {self.eos_id}
        self.special_ids = frozenset(
            token_id for token_id, token in added_tokens.items() if token.special
        )
        if boundaries is not None:
            bos_id = self.bos_id if "bos_token" in boundaries else None
            eos_id = self.eos_id if "eos_token" in boundaries else None
            backend.post_processor = _boundaries(bos_id, eos_id)

    @property
    def vocab_size(self) -> int:
        """Number of tokens with a text. A model may have more ids than that, as padding."""
        return self._backend.get_vocab_size(with_added_tokens=True)

    @property
    def chat_template(self) -> str | None:
        """The text of the default chat template."""
        return self._template_sources.get(_DEFAULT)

    @property
    def has_tool_template(self) -> bool:
        """Whether a chat template says what tools there are."""
        default = self._template(_DEFAULT)
        return _TOOL_USE in self._template_sources or (default is not None and default.knows_tools)

    def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        """Return the text's token ids.

        Args:
            text: special tokens that are written out in it become one id each.
            add_special_tokens: add what the model wants at the start and end of a sequence. Prompts
                from `apply_chat_template` have it already.

        Raises:
            InvalidValue: it is no text, or holds half of a surrogate pair.
        """
        try:
            return list(self._backend.encode(text, add_special_tokens=add_special_tokens).ids)
        except TypeError as error:
            raise InvalidValue(
                field="text",
                value=text,
                limit="must be a text that UTF-8 can encode",
                remedy="Leave out halves of surrogate pairs",
            ) from error

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool = True) -> str:
        """Return the ids' text; bytes that are no whole character become U+FFFD.

        Raises:
            InvalidValue: an id is negative or absurdly large. Ids without a token are no text.
        """
        try:
            return self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens)
        except OverflowError as error:
            raise InvalidValue(
                field="token_ids",
                value=list(ids),
                limit="must be numbers from 0 to 4294967295",
                remedy="Give ids of the model's vocabulary",
            ) from error

    def id_to_token(self, token_id: int) -> str | None:
        """Return the vocabulary's own spelling of a token, or None where there is none."""
        return self._backend.id_to_token(token_id) if token_id >= 0 else None

    def token_to_id(self, token: str) -> int | None:
        """Return the id of a token in the vocabulary's own spelling, or None."""
        return self._backend.token_to_id(token)

    def token_bytes(self, token_id: int) -> bytes:
        """Return the bytes that a token adds to a text; ids without a token add none.

        Joined over a sequence and decoded they are the text, special tokens included. One thing is
        not undone: SentencePiece models start a sequence with a space that `decode` leaves out.
        """
        if token_id in self._added:
            return self._added[token_id].encode()
        token = self.id_to_token(token_id)
        return b"" if token is None else self._bytes_of(token)

    def apply_chat_template(
        self,
        messages: Sequence["Message"],
        *,
        add_generation_prompt: bool,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Return a conversation as a prompt; see `ChatTemplate.render`.

        Raises:
            InvalidValue: the messages are malformed, or the template refuses them.
            Unsupported: the model has no chat template, or a faulty one.
        """
        has_own = tools is not None and _TOOL_USE in self._template_sources
        template = self._template(_TOOL_USE if has_own else _DEFAULT)
        if template is None:
            raise Unsupported(
                field="chat_template",
                value=None,
                limit=f"{self._source} holds no chat template",
                remedy="Give a prompt as text, or use a model that is tuned for chat",
            )
        return template.render(
            messages,
            special_tokens=self._special_tokens,
            add_generation_prompt=add_generation_prompt,
            continue_final_message=continue_final_message,
            tools=tools,
        )

    def _template(self, name: str) -> "ChatTemplate | None":
        # Jinja is for those who chat.
        from alpage.models.chat_template import ChatTemplate  # noqa: PLC0415

        if name in self._template_sources and name not in self._templates:
            self._templates[name] = ChatTemplate(self._template_sources[name])
        return self._templates.get(name)

    def _named_id(self, name: str) -> int | None:
        token = self._special_tokens.get(name)
        token_id = None if token is None else self._backend.token_to_id(token)
        if token is not None and token_id is None:
            raise BadCheckpoint(
                field=f"{self._source.name}: {name}",
                value=token,
                limit="is not in the vocabulary",
                remedy="Get the model's tokenizer files again, all of the same version",
            )
        return token_id


def _boundaries(bos_id: int | None, eos_id: int | None) -> TemplateProcessing:
    ids = {name: i for name, i in (("bos", bos_id), ("eos", eos_id)) if i is not None}
    order = [name for name in ("bos", "$A", "eos") if name in ids or name == "$A"]
    return TemplateProcessing(
        single=order,
        pair=[*order, "$B:1"],
        special_tokens=[{"id": name, "ids": [i], "tokens": [name]} for name, i in ids.items()],
    )


def byte_alphabet() -> dict[str, int]:
    """Return the bytes by the characters that byte-level BPE writes them as (GPT-2's table).

    Printable Latin-1 characters stand for themselves, the other bytes for U+0100 and onwards.
    """
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(0x100) if byte not in printable]
    shifted = {chr(0x100 + index): byte for index, byte in enumerate(others)}
    return {chr(byte): byte for byte in printable} | shifted


def _bytes_of_tokens(backend: tokenizers.Tokenizer) -> Callable[[str], bytes]:
    """Return the function from a token to its bytes that fits the backend's decoder."""
    decoder = backend.decoder
    state = json.loads(decoder.__getstate__()) if decoder is not None else {}
    kinds = {part["type"] for part in [state, *state.get("decoders", [])] if "type" in part}
    if "ByteLevel" in kinds:
        return _ByteLevel()
    return _sentencepiece_bytes if kinds & {"ByteFallback", "Metaspace", "Replace"} else str.encode


@final
class _ByteLevel:
    def __init__(self) -> None:
        self._alphabet = byte_alphabet()

    def __call__(self, token: str) -> bytes:
        try:
            return bytes(self._alphabet[character] for character in token)
        except KeyError:
            return token.encode()


def _sentencepiece_bytes(token: str) -> bytes:
    byte = _BYTE_TOKEN.fullmatch(token)
    if byte is not None:
        return bytes.fromhex(byte[1])
    return token.replace(_SPACE, " ").encode()
