"""Texts: prompts and conversations become token ids, and tokens become text."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final, final

from alpage.errors import Unsupported
from alpage.serve.http.conversation import plain_messages, told
from alpage.serve.http.refusals import invalid
from alpage.serve.http.schema import ChatMessage, CompletionRequest, Prompt
from alpage.serve.http.tool_calls import MARKS, OPEN
from alpage.serve.http.tool_forms import HERMES, LIST, LLAMA, ToolStyle
from alpage.serve.intake import Limits

if TYPE_CHECKING:
    from alpage.models import Tokenizer

# No tokenizer makes so few tokens of a text that one that is longer could fit.
_MAX_CHARACTERS_PER_TOKEN: Final = 16
# What takes longer than a step of the asyncio loop may is done beside it.
_QUICK_CHARACTERS: Final = 4096


@final
class Texts:
    """A model's tokenizer, without the asyncio loop waiting for it.

    Args:
        tokenizer: None if the model has none: it takes token ids then, and gives no text.
        limits: of the engine.
    """

    def __init__(self, tokenizer: "Tokenizer | None", limits: Limits) -> None:
        self._tokenizer = tokenizer
        self._limits = limits

    @property
    def tokenizer(self) -> "Tokenizer":
        """The tokenizer.

        Raises:
            Unsupported: there is none.
        """
        if self._tokenizer is None:
            raise Unsupported(
                field="prompt",
                value="text",
                limit="needs a tokenizer, and this model has none",
                remedy="Send token ids",
            )
        return self._tokenizer

    async def encode(self, text: str, *, param: str, add_special_tokens: bool) -> list[int]:
        """Return a text's token ids.

        Raises:
            Refusal: it cannot fit.
        """
        tokenizer, limits = self.tokenizer, self._limits
        if len(text) > _MAX_CHARACTERS_PER_TOKEN * limits.max_model_len:
            raise invalid(
                f"This model's maximum context length is {limits.max_model_len} tokens. "
                f"'{param}' has {len(text)} characters, which cannot fit.",
                param,
                "context_length_exceeded",
            )
        if len(text) <= _QUICK_CHARACTERS:
            return tokenizer.encode(text, add_special_tokens=add_special_tokens)
        return await asyncio.to_thread(
            tokenizer.encode, text, add_special_tokens=add_special_tokens
        )

    async def encode_chat(
        self,
        messages: Sequence[ChatMessage],
        *,
        add_generation_prompt: bool | None,
        continue_final_message: bool | None,
        add_special_tokens: bool | None,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> list[int]:
        """Return the prompt that a conversation is, as token ids.

        Tools, calls and results are put into words if the model's template knows none.

        Raises:
            Refusal: a message holds what is not supported, or they cannot fit.
            Unsupported: the model has no chat template.
            InvalidValue: the template refuses the messages.
        """
        plain: Sequence[Mapping[str, Any]] = plain_messages(messages)
        if not self.tokenizer.has_tool_template:
            plain, tools = told(plain, tools), None
        # A template is the model's, and may take long.
        text = await asyncio.to_thread(
            self.tokenizer.apply_chat_template,
            plain,
            add_generation_prompt=add_generation_prompt is not False,
            continue_final_message=bool(continue_final_message),
            tools=tools,
        )
        return await self.encode(
            text, param="messages", add_special_tokens=bool(add_special_tokens)
        )

    @property
    def tool_style(self) -> ToolStyle:
        """How the model writes calls, as far as its template tells."""
        tokenizer = self.tokenizer
        template = tokenizer.chat_template or ""
        if not tokenizer.has_tool_template or OPEN in template:
            return HERMES
        return LLAMA if "ipython" in template else LIST

    @property
    def tool_mark_ids(self) -> list[int]:
        """Tokens that stand before calls and are no text, if the model has such."""
        found = map(self.tokenizer.token_to_id, (*MARKS, OPEN))
        return [token for token in found if token is not None and self.is_special(token)]

    def decode(self, ids: Sequence[int], *, skip_special_tokens: bool) -> str:
        """Return the text of tokens, none without a tokenizer."""
        if self._tokenizer is None:
            return ""
        return self._tokenizer.decode(ids, skip_special_tokens=skip_special_tokens)

    def spelling(self, token: int) -> bytes:
        """Return the bytes that a token stands for, none without a tokenizer."""
        return b"" if self._tokenizer is None else self._tokenizer.token_bytes(token)

    def is_special(self, token: int) -> bool:
        """Whether a token is no part of what people read."""
        return self._tokenizer is not None and token in self._tokenizer.special_ids


def prompts_of(asked: CompletionRequest) -> list[Prompt]:
    """Return the prompts of a completion: texts and lists of token ids.

    Raises:
        Refusal: there is none, or single token ids lie among other prompts.
    """
    prompt = asked.prompt
    if isinstance(prompt, str):
        return [prompt]
    ids = [item for item in prompt if isinstance(item, int)]
    if ids and len(ids) == len(prompt):
        return [ids]
    others = [item for item in prompt if not isinstance(item, int)]
    if ids or not others:
        raise invalid(
            "'prompt' must be a text, a list of texts, a list of token ids, or a list of such "
            "lists, and not be empty.",
            "prompt",
        )
    return others


def check_prompt_ids(ids: Sequence[int], limits: Limits, *, param: str = "prompt") -> None:
    """Refuse token ids that the model does not have.

    Raises:
        Refusal: there are such, or none at all.
    """
    if not ids:
        raise invalid(f"'{param}' must hold at least one token.", param)
    stranger = next((token for token in ids if not 0 <= token < limits.vocab_size), None)
    if stranger is not None:
        message = (
            f"'{param}' has the token id {stranger}; ids go from 0 to {limits.vocab_size - 1}."
        )
        raise invalid(message, param)
