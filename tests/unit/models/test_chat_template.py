"""Chat templates: equal to transformers' rendering, and bounded."""

import time
from collections.abc import Mapping
from typing import Any

import pytest
from transformers.utils.chat_template_utils import (  # noqa: TID253 - the oracle
    render_jinja_template,
)

from alpage.errors import InvalidValue, Unsupported
from alpage.models.chat_template import ChatTemplate

_CHATML = """{% for message in messages %}
    {% if loop.first and message['role'] != 'system' %}
{{ '<|im_start|>system\\nDefault<|im_end|>\\n' }}{% endif %}
{{'<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>' + '\\n'}}
{% endfor %}
{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""

_LLAMA2 = """{% if messages[0]['role'] == 'system' %}{% set system = messages[0]['content'] %}
{% set loop_messages = messages[1:] %}{% else %}{% set loop_messages = messages %}
{% set system = false %}{% endif %}{{ bos_token }}{% for message in loop_messages %}
{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}
{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}
{% if loop.index0 == 0 and system is not false %}
{% set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}
{% else %}{% set content = message['content'] %}{% endif %}
{% if message['role'] == 'user' %}{{ '[INST] ' + content | trim + ' [/INST]' }}
{% else %}{{ ' ' + content | trim + ' ' + eos_token }}{% endif %}{% endfor %}"""

_TOOLS = """{%- set ns = namespace(count=0, last=none) %}
{%- if tools is not none %}{{- '[TOOLS]' }}{% for tool in tools %}{{ tool | tojson(indent=2) }}
{%- if not loop.last %},{% endif %}{% endfor %}{%- endif %}
{%- macro show(part) -%}<{{ part.type }}:{{ part.text | default('none') | upper }}>{%- endmacro %}
{%- for message in messages if message.role != 'tool' -%}
    {%- if message.role == 'skip' %}{% continue %}{% endif -%}
    {%- set ns.count = ns.count + 1 -%}
    {%- if message.content is string %}{{ message.content[:40] }}{% else -%}
    {%- for part in message.content %}{{ show(part) }}{% endfor %}{%- endif %}
    {%- generation %}{{ message.extra }}{{ unset_token }}{% endgeneration %}
    {%- if ns.count > 5 %}{% break %}{% endif %}
{%- endfor %}{{ messages | map(attribute='role') | unique | join('|') }}
{{ dict(a=1).items() | list }}{{ 'é' | tojson }}{{ range(3) | list }}{{ '%03d' | format(7) }}"""

_USER = {"role": "user", "content": " Hé <b>&\n"}
_ASSISTANT = {"role": "assistant", "content": "Yes: 日本 "}
_CHATS: list[list[dict[str, Any]]] = [
    [_USER],
    [{"role": "system", "content": "Be brief."}, _USER, _ASSISTANT, _USER],
    [_USER, _ASSISTANT],
]
_RICH = [
    {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "image"}]},
    {"role": "skip", "content": "x"},
    {"role": "user", "content": "y" * 50, "extra": {"deep": {"value": 3.5}}},
    {"role": "assistant", "content": None, "tool_calls": [{"name": "f"}]},
    {"role": "tool", "content": "z"},
]
_SPECIAL = {"bos_token": "<s>", "eos_token": "</s>"}


def _theirs(template: str, messages: list[dict[str, Any]], **options: Any) -> str:
    rendered, _ = render_jinja_template(
        [messages],
        chat_template=template,
        **({"add_generation_prompt": False} | options),
        **_SPECIAL,
    )
    return str(rendered[0])


def _ours(template: str, messages: Any, **options: Any) -> str:
    arguments: Mapping[str, Any] = {"add_generation_prompt": False} | options
    return ChatTemplate(template).render(messages, special_tokens=_SPECIAL, **arguments)


@pytest.mark.parametrize("messages", _CHATS)
@pytest.mark.parametrize("template", [_CHATML, _LLAMA2])
@pytest.mark.parametrize("adds", [True, False])
def test_equals_transformers(template: str, messages: list[dict[str, Any]], adds: bool) -> None:
    expected = _theirs(template, messages, add_generation_prompt=adds)
    assert _ours(template, messages, add_generation_prompt=adds) == expected


@pytest.mark.parametrize("tools", [None, [], [{"name": "größe", "b": [1, None, True]}, {"a": 1}]])
def test_equals_transformers_on_all_a_template_may_use(tools: list[dict[str, Any]] | None) -> None:
    messages = [message for message in _RICH if message["content"] is not None]
    assert _ours(_TOOLS, messages, tools=tools) == _theirs(_TOOLS, messages, tools=tools)


@pytest.mark.parametrize("template", [_CHATML, _LLAMA2])
@pytest.mark.parametrize("end", ["Sure, ", "Sure,\n", "S"])
def test_continuing_equals_transformers(template: str, end: str) -> None:
    messages = [_USER, {"role": "assistant", "content": end}]
    expected = _theirs(template, messages, continue_final_message=True)
    found = _ours(template, messages, continue_final_message=True)
    assert found == expected


def test_continuing_a_list_of_parts() -> None:
    template = (
        "{% for m in messages %}[{% for p in m.content %}{{ p.text }}{% endfor %}]{% endfor %}"
    )
    content = [{"type": "text", "text": "one "}, {"type": "text", "text": "two "}]
    messages = [{"role": "user", "content": content}]
    assert _ours(template, messages, continue_final_message=True) == "[one two "
    assert content[1]["text"] == "two "


def test_the_clock_is_the_only_thing_from_outside() -> None:
    assert _ours("{{ strftime_now('%Y') }}", [_USER]) == time.strftime("%Y")
    assert _ours("{{ lipsum is defined }}", [_USER]) == "False"


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], "at least one message"),
        ("hi", "at least one message"),
        (None, "at least one message"),
        (["hi"], r"messages\[0\]='hi': must be a table"),
        ([_USER, {"content": "x"}], r"messages\[1\].role=None"),
        ([{"role": 3, "content": "x"}], r"messages\[0\].role=3"),
        ([{"role": "user"}], r"messages\[0\].content=None"),
        ([{"role": "user", "content": b"x"}], r"messages\[0\].content"),
        ([{"role": "user", "content": [object()]}], r"messages\[0\].content\[0\]"),
    ],
)
def test_malformed_messages(messages: Any, message: str) -> None:
    with pytest.raises(InvalidValue, match=message):
        _ours(_CHATML, messages)


def test_what_the_template_refuses_is_told() -> None:
    with pytest.raises(InvalidValue, match="the template says: Roles must alternate"):
        _ours(_LLAMA2, [_USER, _USER])


def test_continuing_what_cannot_be_continued() -> None:
    with pytest.raises(InvalidValue, match="cannot go together"):
        _ours(_CHATML, [_USER], continue_final_message=True, add_generation_prompt=True)
    with pytest.raises(InvalidValue, match="leaves the final message out"):
        _ours("nothing", [_USER], continue_final_message=True)
    with pytest.raises(InvalidValue, match="holds no text"):
        _ours(_CHATML, [{"role": "user", "content": ""}], continue_final_message=True)


@pytest.mark.parametrize(
    ("template", "message"),
    [
        ("{% for %}", "line 1"),
        ("{{ messages.x.y }}", "fails on these messages: UndefinedError"),
        ("{{ messages[0]['content'] + 1 }}", "fails on these messages: TypeError"),
        ("{{ 1 / 0 }}", "ZeroDivisionError"),
        ("{{ ''.__class__.__mro__ }}", "sandbox"),
        ("{{ messages.append(1) }}", "sandbox"),
        ("{{ messages[0].update(role='x') }}", "sandbox"),
        ("{{ raise_exception.__globals__.x }}", "sandbox"),
        ("{% include '/etc/passwd' %}", "fails on these messages"),
        ("{% for i in range(10**6) %}{% endfor %}", "sandbox|OverflowError|Range too big"),
        ("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "RecursionError|steps"),
    ],
)
def test_faulty_and_hostile_templates(template: str, message: str) -> None:
    with pytest.raises(Unsupported, match=message) as caught:
        _ours(template, [_USER])
    assert caught.value.field == "chat_template"


_NEST = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
_TREE = "{% macro f(n) %}{% if n %}{% set a = [f(n - 1), f(n - 1)] %}{% endif %}{% endmacro %}"


@pytest.mark.parametrize(
    ("template", "message"),
    [
        (_NEST, "more than 200000 steps"),
        (_TREE + "{{ f(60) }}", "more than 200000 steps"),
        ("{% for a in range(99999) %}{{ 'x' * 9999 }}{% endfor %}", "writes more than"),
        ("{{ 'x' * 10**12 }}", "repeats to more than"),
        ("{{ 10**12 * [1] }}", "repeats to more than"),
        ("{{ 9**(9**9) }}", "number of more than"),
    ],
)
def test_no_template_runs_or_grows_forever(template: str, message: str) -> None:
    start = time.perf_counter()
    with pytest.raises(Unsupported, match=message):
        _ours(template, [_USER])
    assert time.perf_counter() - start < 10


def test_one_rendering_does_not_use_up_the_next_ones_steps() -> None:
    template = ChatTemplate("{% for a in range(90000) %}{% endfor %}{{ bos_token }}")
    for _ in range(4):
        found = template.render([_USER], special_tokens=_SPECIAL, add_generation_prompt=False)
        assert found == "<s>"
