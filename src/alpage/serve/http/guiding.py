"""Guiding: what form a request's texts must have, compiled beside the engine's steps."""

import asyncio
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, final

from alpage.errors import InvalidValue
from alpage.serve.guide import Guide
from alpage.serve.http.engine_client import MAX_LOSSES, EngineClient
from alpage.serve.http.refusals import RESTARTING, Refusal, interrupted, invalid, unsupported
from alpage.serve.http.schema import Generates, ResponseFormat, StructuredOutputs

# The status of what is the request's own fault.
_WRONG: Final = 400


@final
class Guides:
    """Has compiled what requests ask for, so that the engine finds it done.

    Args:
        engine: that has it compiled.
        timeout_s: seconds that one may take.
        has_tokenizer: whether the model has one.
    """

    def __init__(self, engine: EngineClient, timeout_s: float, *, has_tokenizer: bool) -> None:
        self._engine = engine
        self._timeout_s = timeout_s
        self._has_tokenizer = has_tokenizer

    async def compiled(self, guide: Guide | None, param: str) -> Guide | None:
        """Return a guide that can be followed.

        Args:
            guide: None is returned as it is.
            param: the field of the request that it came from.

        Raises:
            Refusal: it cannot be followed, or is not compiled in time; the engine is lost for good,
                or two were while they compiled it.
        """
        if guide is None:
            return None
        if not self._has_tokenizer:
            raise unsupported(param, "needs a tokenizer, and this model has none")
        for _ in range(MAX_LOSSES):
            # What an engine needs at first, and another one itself, is no form's time.
            await self._engine.check(None)
            try:
                async with asyncio.timeout(self._timeout_s):
                    await self._engine.check(guide)
            except Refusal as refusal:
                if refusal.status == _WRONG:
                    raise invalid(str(refusal), param) from refusal
                if refusal.code != RESTARTING:
                    raise
            except TimeoutError:
                limit = f"could not be compiled within {self._timeout_s:g} s"
                raise invalid(f"'{param}' {limit}. Simplify it.", param) from None
            else:
                return guide
        raise interrupted(is_last=True)


def guide_of(asked: Generates) -> tuple[Guide | None, str]:
    """Return the form that a request asks for, and the field that says so.

    Raises:
        Refusal: it makes no sense, or there are two.
    """
    wishes = _wishes(asked)
    if len(wishes) > 1:
        message = "A text has one form: give either " + " or ".join(f"'{n}'" for n in wishes) + "."
        raise invalid(message, next(iter(wishes)))
    if not wishes:
        return None, "response_format"
    ((param, make),) = wishes.items()
    try:
        guide = make()
    except InvalidValue as error:
        raise invalid(str(error), param) from error
    if asked.use_beam_search:
        raise unsupported(param, "cannot go together with 'use_beam_search'")
    return guide, param


def _wishes(asked: Generates) -> dict[str, Callable[[], Guide]]:
    """Return the forms that a request asks for, by the fields that say so."""
    wishes: dict[str, Callable[[], Guide]] = {}
    format_, outputs = asked.response_format, asked.structured_outputs
    if format_ is not None and format_.type != "text":
        wishes["response_format"] = partial(_of_format, format_)
    if outputs is not None:
        wishes["structured_outputs"] = partial(_of_outputs, outputs)
    for kind in ("json", "regex", "choice", "grammar"):
        value = getattr(asked, f"guided_{kind}")
        if value is not None:
            wishes[f"guided_{kind}"] = partial(getattr(Guide, kind), value)
    return wishes


def _of_format(format_: ResponseFormat) -> Guide:
    if format_.type == "json_object":
        return Guide.json_object()
    if format_.type != "json_schema":
        limit = f"of type '{format_.type}' is not known: text, json_object and json_schema are"
        raise unsupported("response_format", limit)
    wanted = format_.json_schema
    if wanted is None or wanted.schema is None:
        param = "response_format.json_schema" + ("" if wanted is None else ".schema")
        raise _missing(param)
    return Guide.json(wanted.schema if wanted.strict else lenient(wanted.schema))


def lenient(schema: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return a schema of which is kept what can be, without a complaint about the rest."""
    return {"x-guidance": {"lenient": True}, **schema}


def _of_outputs(outputs: StructuredOutputs) -> Guide:
    given = {
        name: value
        for name in ("json", "regex", "choice", "grammar", "json_object")
        if (value := getattr(outputs, name)) not in (None, False)
    }
    if len(given) != 1:
        raise invalid(
            "'structured_outputs' must have one of json, regex, choice, grammar and json_object.",
            "structured_outputs",
        )
    if outputs.json is not None:
        return Guide.json(outputs.json)
    if outputs.regex is not None:
        return Guide.regex(outputs.regex)
    if outputs.choice is not None:
        return Guide.choice(outputs.choice)
    return Guide.json_object() if outputs.grammar is None else Guide.grammar(outputs.grammar)


def _missing(param: str) -> Refusal:
    message = f"Missing required parameter: '{param}'."
    return invalid(message, param, "missing_required_parameter")
