"""LLM: a model to call: prompts in, texts out, in the caller's own process."""

import dataclasses
import sys
from collections.abc import Callable, Mapping
from collections.abc import Sequence as Seq
from pathlib import Path
from typing import Any, TypeAlias, final

from alpage.errors import InvalidValue, Unsupported
from alpage.models import Tokenizer, open_checkpoint, resolve
from alpage.serve.build import build_engine
from alpage.serve.config import EngineConfig
from alpage.serve.outputs import RequestOutput
from alpage.serve.params import BeamSearchParams, SamplingParams
from alpage.serve.prompts import Prompt, as_list, unwrap
from alpage.serve.request import Request
from alpage.serve.serves import Serves
from alpage.serve.stream import Stream

Params: TypeAlias = SamplingParams | BeamSearchParams
Message: TypeAlias = Mapping[str, Any]
Tool: TypeAlias = Mapping[str, Any]


@final
class LLM:
    """A language model with its paged memory.

    Args:
        model: a short name (`alpage models`), a Hugging Face directory or a .gguf file.
        notify: takes lines for the user, such as a limit that memory set; None prints them to
            stderr.
        **options: fields of `EngineConfig`: dtype, device, kv_memory and so on.

    Raises:
        AlpageError: the model cannot be found, read or held, or an option is out of range.

    Example:
        llm = LLM("smollm2-135m")
        for output in llm.generate(["Once upon a time"], SamplingParams(max_tokens=32)):
            print(output.outputs[0].text)
    """

    def __init__(
        self,
        model: str | Path = "smollm2-135m",
        *,
        notify: Callable[[str], None] | None = None,
        **options: Any,
    ) -> None:
        if notify is not None and not callable(notify):
            raise InvalidValue(
                field="notify",
                value=notify,
                limit="must be a function that takes a line",
                remedy="Leave it out to print the lines to stderr",
            )
        config = _config(options)
        self._checkpoint = open_checkpoint(resolve(model))
        self._engine = build_engine(self._checkpoint, config, notify or _print_to_stderr)

    @property
    def engine(self) -> Serves:
        """What makes the steps: an engine, or a fleet of them."""
        return self._engine

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer.

        Raises:
            BadCheckpoint: the model has none, or it is corrupt.
            Unsupported: it is of a kind that is not known.
        """
        return self._checkpoint.tokenizer()

    def generate(
        self,
        prompts: Prompt | Seq[Prompt],
        sampling_params: Params | Seq[Params] | None = None,
        *,
        priority: int = 0,
    ) -> list[RequestOutput]:
        """Continue prompts, all at once.

        Args:
            prompts: one prompt or several, each text, token ids, or vLLM's table of either:
                `{"prompt": text}` or `{"prompt_token_ids": ids}`.
            sampling_params: for all of them, or one for each; None: `SamplingParams()`.
            priority: the lower, the sooner they are served.

        Returns:
            An output per prompt, in their order.

        Raises:
            InvalidValue: a prompt or a parameter is out of range; nothing is generated then.
            OutOfMemory: a request could not finish even if it were alone.
        """
        listed = as_list(prompts)
        return self._run(listed, _params_for(len(listed), sampling_params), priority)

    def chat(
        self,
        messages: Seq[Message] | Seq[Seq[Message]],
        sampling_params: Params | None = None,
        *,
        tools: Seq[Tool] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation or several, each a list of {"role": ..., "content": ...}.

        Args:
            messages: the conversations.
            sampling_params: for all of them; None: `SamplingParams()`.
            tools: what the model may call, as OpenAI has them: {"type": "function", "function":
                ...}. The model's chat template puts them into the prompt; calls are texts.

        Raises:
            Unsupported: the model has no chat template, or one that knows no tools.
            InvalidValue: as for `generate`, or the template refuses the messages.
        """
        is_list = isinstance(messages, list | tuple) and bool(messages)
        is_many = is_list and isinstance(messages[0], list | tuple)
        conversations: Seq[Any] = messages if is_many else [messages]
        prompts = [self.encode_chat(conversation, tools) for conversation in conversations]
        return self._run(prompts, _params_for(len(prompts), sampling_params), 0)

    def stream(self, prompt: Prompt, sampling_params: Params | None = None) -> Stream:
        """Continue one prompt, a chunk at a time. Dropped early, the request is aborted.

        Returns:
            An iterator over chunks; its `output` is the whole, once it has ended.

        Raises:
            InvalidValue: the prompt or a parameter is out of range.
            OutOfMemory: the request could not finish even if it were alone.
        """
        params = SamplingParams() if sampling_params is None else sampling_params
        return Stream(self._engine, self._add(prompt, params, 0))

    def encode_chat(self, messages: Seq[Message], tools: Seq[Tool] | None = None) -> list[int]:
        """Return the prompt that asks for the next message of a conversation; see `chat`."""
        tokenizer = self.tokenizer
        if tools:
            _check_tools(tools, has_template=tokenizer.has_tool_template)
        text = tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, tools=tools or None
        )
        return tokenizer.encode(text, add_special_tokens=False)

    def _run(self, prompts: Seq[Prompt], params: Seq[Params], priority: int) -> list[RequestOutput]:
        requests: list[Request] = []
        try:
            for prompt, own_params in zip(prompts, params, strict=True):
                requests.append(self._add(prompt, own_params, priority))
            while not all(request.is_finished for request in requests):
                self._engine.step()
        finally:
            for request in requests:
                if not request.is_finished:
                    self._engine.abort(request.request_id)
        return [request.output() for request in requests]

    def _add(self, prompt: Prompt, params: Params, priority: int) -> Request:
        given = unwrap(prompt)
        if isinstance(given, str):
            tokens = self.tokenizer.encode(given, add_special_tokens=True)
            return self._engine.add(tokens, params, prompt=given, priority=priority)
        return self._engine.add(given, params, priority=priority)


def _config(options: Mapping[str, Any]) -> EngineConfig:
    known = [field.name for field in dataclasses.fields(EngineConfig)]
    for name in options:
        if name not in known:
            raise InvalidValue(
                field=name,
                value=options[name],
                limit="is not an option; the options are " + ", ".join(known),
                remedy="Check its spelling",
            )
    return EngineConfig(**options)


def _params_for(num_prompts: int, params: Params | Seq[Params] | None) -> list[Params]:
    if params is None:
        return [SamplingParams()] * num_prompts
    if not isinstance(params, Seq):
        return [params] * num_prompts
    if len(params) != num_prompts:
        raise InvalidValue(
            field="sampling_params",
            value=f"{len(params)} entries",
            limit=f"must be one for all prompts, or {num_prompts}, one for each",
            remedy="Give as many as there are prompts",
        )
    return list(params)


def _check_tools(tools: Seq[Tool], *, has_template: bool) -> None:
    if not isinstance(tools, list | tuple) or not all(isinstance(t, Mapping) for t in tools):
        raise InvalidValue(
            field="tools",
            value=tools,
            limit="must be a list of tables",
            remedy='Give such as [{"type": "function", "function": {"name": ...}}]',
        )
    if not has_template:
        raise Unsupported(
            field="tools",
            value=[*tools],
            limit="are nothing that this model's chat template knows",
            remedy="Describe them in a system message, or let `alpage serve` do so",
        )


def _print_to_stderr(line: str) -> None:
    sys.stderr.write(line + "\n")
