"""Prompts: the forms in which `LLM` takes them, made one."""

from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Sequence as Seq
from typing import Any, TypeAlias

import numpy as np

from alpage.errors import InvalidValue

# Text, token ids, or vLLM's table of either.
Prompt: TypeAlias = str | Seq[int] | Mapping[str, Any]


def as_list(prompts: Prompt | Iterable[Prompt]) -> list[Prompt]:
    """Return prompts as a list; a text, a table and a list of token ids are one prompt.

    What is no prompt stays what it is: the engine refuses it.
    """
    is_text = isinstance(prompts, str | bytes | bytearray | memoryview)
    if is_text or not isinstance(prompts, Seq | Iterator):
        return [prompts]  # type: ignore[list-item]
    listed: list[Any] = list(prompts)
    return [listed] if listed and isinstance(listed[0], int | np.integer) else listed


def unwrap(prompt: Prompt) -> str | Seq[int]:
    """Return a prompt's text or token ids.

    Raises:
        InvalidValue: it is a table of something else.
    """
    if not isinstance(prompt, Mapping):
        return prompt
    match dict(prompt):
        case {"prompt": str(text), **others} if not others:
            return text
        case {"prompt_token_ids": list() | tuple() as tokens, **others} if not others:
            return tokens
    raise InvalidValue(
        field="prompt",
        value=prompt,
        limit='as a table must be {"prompt": text} or {"prompt_token_ids": list} and no more',
        remedy="Give one of these, or the text or the list itself",
    )
