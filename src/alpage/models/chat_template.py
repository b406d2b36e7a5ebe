"""Chat templates: from messages to a prompt, rendered in a sandbox.

A template comes with the model and is not trusted. It runs in Jinja's immutable sandbox, with the
names that Hugging Face gives to templates and nothing else. It always ends: turns of its loops and
calls of its macros are counted, products are bounded, and so is the length of what it writes. Its
memory is not measured: a text that is doubled in every turn grows until the machine says no.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from typing import Any, Final, NoReturn, final

from jinja2 import Template, TemplateError, TemplateSyntaxError, meta, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.exceptions import SecurityError
from jinja2.ext import Extension, loopcontrols
from jinja2.parser import Parser
from jinja2.runtime import Context
from jinja2.sandbox import ImmutableSandboxedEnvironment

from alpage.errors import InvalidValue, Unsupported

_MAX_STEPS: Final = 200_000
_MAX_CHARACTERS: Final = 2**24
_MAX_BITS: Final = 4096
# Rendered after the final message's text, to find where it ends. The space shows whether the
# template strips its messages.
_CONTINUES: Final = "ALPAGE_CONTINUES_HERE "

Message = Mapping[str, Any]


@final
class ChatTemplate:
    """A Jinja template that turns a conversation into a prompt.

    Args:
        source: the template's text. It is compiled when it is first rendered.
    """

    def __init__(self, source: str) -> None:
        self.source = source
        self._code: Any = None
        self._knows_tools: bool | None = None

    @property
    def knows_tools(self) -> bool:
        """Whether it does anything with tools."""
        if self._knows_tools is None:
            try:
                names = meta.find_undeclared_variables(_Environment().parse(self.source))
            except TemplateError:
                names = set()
            self._knows_tools = "tools" in names
        return self._knows_tools

    def render(
        self,
        messages: Sequence[Message],
        *,
        special_tokens: Mapping[str, str],
        add_generation_prompt: bool,
        continue_final_message: bool = False,
        tools: Sequence[Mapping[str, Any]] | None = None,
    ) -> str:
        """Return the prompt.

        Args:
            messages: tables with `role` and `content`, oldest first.
            special_tokens: texts by their Hugging Face names, such as `bos_token`.
            add_generation_prompt: end with what starts the assistant's turn.
            continue_final_message: end inside the final message, so that the model goes on with it.
            tools: JSON schemas of functions, for templates that know of tools.

        Raises:
            InvalidValue: the messages are malformed, or the template refuses them.
            Unsupported: the template is faulty, or does what the sandbox forbids.
        """
        if continue_final_message and add_generation_prompt:
            raise _bad_messages(
                "continue_final_message",
                value=True,
                limit="cannot go together with add_generation_prompt, which starts a new message",
            )
        plain_messages = _check_messages(messages)
        if continue_final_message:
            _mark_end(plain_messages[-1])
        text = self._run(
            {
                **special_tokens,
                "messages": plain_messages,
                "tools": None if tools is None else _plain(list(tools), "tools"),
                "documents": None,
                "add_generation_prompt": add_generation_prompt,
            }
        )
        return _cut_at_mark(text) if continue_final_message else text

    def _run(self, variables: Mapping[str, Any]) -> str:
        # A fresh environment counts the steps of this rendering alone; the code is compiled once.
        environment = _Environment()
        try:
            if self._code is None:
                self._code = environment.compile(self.source)
            template = Template.from_code(environment, self._code, dict(environment.globals))
            return _join(template.generate(variables))
        except _RefusalError as error:
            raise _bad_messages(
                "messages", variables["messages"], f"the template says: {error}"
            ) from error
        except TemplateSyntaxError as error:
            raise _bad_template(self.source, f"line {error.lineno}: {error.message}") from error
        except SecurityError as error:
            raise _bad_template(self.source, f"does what the sandbox forbids: {error}") from error
        except Exception as error:
            # An expression of a template can raise whatever Python's operators and methods do.
            raise _bad_template(
                self.source, f"fails on these messages: {type(error).__name__}: {error}"
            ) from error


def _join(pieces: Iterable[str]) -> str:
    found: list[str] = []
    num_characters = 0
    for piece in pieces:
        found.append(piece)
        num_characters += len(piece)
        if num_characters > _MAX_CHARACTERS:
            raise SecurityError(f"writes more than {_MAX_CHARACTERS} characters")
    return "".join(found)


@final
class _RefusalError(TemplateError):
    """What a template raises by `raise_exception`."""


@final
class _CountingCode(CodeGenerator):
    """Compiles a template so that it counts its loops' turns and its macros' calls."""

    def visit_For(self, node: nodes.For, frame: Frame) -> None:
        node.body.insert(0, _count_step(node))
        super().visit_For(node, frame)

    def visit_Macro(self, node: nodes.Macro, frame: Frame) -> None:
        node.body.insert(0, _count_step(node))
        super().visit_Macro(node, frame)


def _count_step(node: nodes.Node) -> nodes.Node:
    # Not a variable of the template's, which it could overwrite.
    function = nodes.EnvironmentAttribute("count_step", lineno=node.lineno)
    call = nodes.Call(function, [], [], None, None, lineno=node.lineno)
    return nodes.ExprStmt(call, lineno=node.lineno)


@final
class _GenerationTag(Extension):
    """`{% generation %}`, which marks the assistant's text for training; here it only groups."""

    tags = {"generation"}  # noqa: RUF012 - as Jinja declares it

    def parse(self, parser: Parser) -> nodes.Node:
        """Return the tag's body."""
        line = next(parser.stream).lineno
        body = parser.parse_statements(("name:endgeneration",), drop_needle=True)
        return nodes.Scope(body, lineno=line)


@final
class _Environment(ImmutableSandboxedEnvironment):
    """What one rendering may use."""

    code_generator_class = _CountingCode
    intercepted_binops = frozenset({"*", "**"})

    def __init__(self) -> None:
        super().__init__(
            trim_blocks=True, lstrip_blocks=True, extensions=[_GenerationTag, loopcontrols]
        )
        self.num_steps = 0
        self.filters["tojson"] = _to_json
        self.globals["raise_exception"] = _refuse
        self.globals["strftime_now"] = _now
        del self.globals["lipsum"]

    def count_step(self) -> None:
        """Count one turn of a loop or one call of a macro."""
        self.num_steps += 1
        if self.num_steps > _MAX_STEPS:
            raise SecurityError(f"takes more than {_MAX_STEPS} steps")

    def call_binop(self, context: Context, operator: str, left: Any, right: Any) -> Any:
        """Multiply or raise to a power, where the result is of bounded size."""
        if isinstance(left, int) and isinstance(right, int):
            num_bits = left.bit_length() * right if operator == "**" else left.bit_length()
            if num_bits + right.bit_length() > _MAX_BITS:
                raise SecurityError(f"computes a number of more than {_MAX_BITS} bits")
        for sequence, times in ((left, right), (right, left)):
            can_repeat = isinstance(sequence, Sequence) and isinstance(times, int)
            if can_repeat and len(sequence) * times > _MAX_CHARACTERS:
                raise SecurityError(f"repeats to more than {_MAX_CHARACTERS} items")
        return super().call_binop(context, operator, left, right)


def _refuse(message: str) -> NoReturn:
    raise _RefusalError(message)


def _now(format: str) -> str:  # noqa: A002 - templates may pass it by this name
    return datetime.now().strftime(format)


def _to_json(
    value: Any,
    *,
    ensure_ascii: bool = False,
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,
) -> str:
    # Jinja's own filter escapes for HTML, which a prompt is not.
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _check_messages(messages: object) -> list[dict[str, Any]]:
    """Return the messages as plain JSON values of our own, which a template can do nothing to."""
    if not isinstance(messages, Sequence) or isinstance(messages, str) or not messages:
        raise _bad_messages("messages", messages, "must be a list of at least one message")
    plain = [_plain(message, f"messages[{index}]") for index, message in enumerate(messages)]
    for index, message in enumerate(plain):
        field = f"messages[{index}]"
        if not isinstance(message, dict):
            raise _bad_messages(field, message, "must be a table with role and content")
        role, content = message.get("role"), message.get("content")
        if not isinstance(role, str) or not role:
            raise _bad_messages(f"{field}.role", role, "must be a text, such as user")
        if not isinstance(content, str | list) and not message.get("tool_calls"):
            raise _bad_messages(f"{field}.content", content, "must be a text or a list of parts")
    return plain


def _plain(value: Any, field: str) -> Any:
    if value is None or isinstance(value, bool):
        return value
    # Subclasses could bring methods that the sandbox does not know.
    for kind in (str, int, float):
        if isinstance(value, kind):
            return kind(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, f"{field}.{key}") for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item, f"{field}[{index}]") for index, item in enumerate(value)]
    raise _bad_messages(field, value, "must be made of texts, numbers, lists and tables")


def _mark_end(message: dict[str, Any]) -> None:
    content = message.get("content")
    if isinstance(content, str) and content:
        message["content"] = content + _CONTINUES
        return
    for part in reversed(content if isinstance(content, list) else []):
        if isinstance(part, dict) and isinstance(part.get("text"), str):
            part["text"] += _CONTINUES
            return
    raise _bad_messages("messages[-1].content", content, "holds no text that could be continued")


def _cut_at_mark(text: str) -> str:
    start = text.rfind(_CONTINUES.strip())
    if start < 0:
        raise _bad_messages(
            "continue_final_message",
            value=True,
            limit="cannot be done: the chat template leaves the final message out",
        )
    before = text[:start]
    return before if text.startswith(_CONTINUES, start) else before.rstrip()


def _bad_messages(field: str, value: object, limit: str) -> InvalidValue:
    return InvalidValue(
        field=field,
        value=value,
        limit=limit,
        remedy="Change the messages to what the model accepts",
    )


def _bad_template(source: str, limit: str) -> Unsupported:
    return Unsupported(
        field="chat_template",
        value=source,
        limit=limit,
        remedy="Give a prompt as text, or use a model with a sound chat template",
    )
