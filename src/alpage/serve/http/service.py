"""Service: what the routes have in common: a model, its engine, and what requests of it become."""

import time
from collections.abc import Callable, Sequence
from http import HTTPStatus
from typing import TYPE_CHECKING, final

from alpage.serve.guide import Guide
from alpage.serve.http.answers import Answer
from alpage.serve.http.asking import (
    chat_params,
    check_chat,
    check_generates,
    check_length,
    completion_params,
)
from alpage.serve.http.chat_answer import ChatCompletionAnswer
from alpage.serve.http.completion_answer import CompletionAnswer
from alpage.serve.http.embedding_answer import EmbeddingAnswer
from alpage.serve.http.engine_client import EngineClient
from alpage.serve.http.engine_link import EngineLink
from alpage.serve.http.engine_messages import Ask
from alpage.serve.http.guiding import Guides, guide_of
from alpage.serve.http.metrics import Metrics
from alpage.serve.http.refusals import Refusal, invalid, unknown_model, unsupported
from alpage.serve.http.replies import ModelCard, Text, Tokens
from alpage.serve.http.responding import CHAT_NAMES, chat_of, renamed
from alpage.serve.http.response_answer import ResponseAnswer
from alpage.serve.http.response_schema import ResponseRequest
from alpage.serve.http.schema import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    Generates,
    TokenizeRequest,
)
from alpage.serve.http.settings import Settings
from alpage.serve.http.texts import Texts, check_prompt_ids, prompts_of
from alpage.serve.http.ticket import Ticket
from alpage.serve.http.tool_forms import tool_guide
from alpage.serve.http.tools import Tooling, check_beams, tooling_of
from alpage.serve.http.visits import Visit, Visits
from alpage.serve.params import BeamSearchParams, SamplingParams

if TYPE_CHECKING:
    from alpage.models import Tokenizer


@final
class Service:
    """A model that is served.

    Args:
        link: to what makes its steps; the service has it to itself.
        tokenizer: the model's, if it has one.
        settings: how it is served.
        watch: takes each HTTP request once it is over.
    """

    def __init__(
        self,
        link: EngineLink,
        tokenizer: "Tokenizer | None",
        settings: Settings,
        *,
        watch: Callable[[Visit], None] | None = None,
    ) -> None:
        self.settings = settings
        self.limits = link.limits
        self.texts = Texts(tokenizer, link.limits)
        self.engine = EngineClient(
            link,
            max_open_sequences=link.limits.max_num_seqs * (1 + settings.queue_factor),
            stall_s=settings.stall_s,
        )
        has_tokenizer = tokenizer is not None
        self.guides = Guides(self.engine, settings.guide_timeout_s, has_tokenizer=has_tokenizer)
        self.visits = Visits(is_logged=settings.logs_requests, watch=watch)
        self.metrics = Metrics(
            self.visits,
            model=settings.names[0],
            engine_pid=lambda: self.engine.pid,
            has_vllm_names=settings.has_vllm_metrics,
        )
        self._created = int(time.time())

    async def complete(self, asked: CompletionRequest) -> tuple[Ticket, Answer]:
        """Begin a completion.

        Raises:
            Refusal: it cannot be.
            AlpageError: a value is out of range.
        """
        model = self._model(asked.model)
        check_generates(asked)
        guide = await self.guides.compiled(*guide_of(asked))
        asks = []
        for prompt, tokens in await self._prompts(asked):
            params = completion_params(asked, len(tokens), self.limits, guide)
            asks.append(_ask(asked, tokens, params, prompt))
        answer = CompletionAnswer(model, asked, asks, self.texts)
        return self.engine.open(asks, is_streamed=bool(asked.stream)), answer

    async def embed(self, asked: EmbeddingRequest) -> tuple[Ticket, Answer]:
        """Begin embeddings.

        Raises:
            Refusal: they cannot be.
            AlpageError: a value is out of range.
        """
        model = self._model(asked.model)
        if asked.dimensions is not None:
            limit = "is not supported: the numbers of this model do not come by their weight"
            raise unsupported("dimensions", limit)
        completion = CompletionRequest(
            prompt=asked.input,
            add_special_tokens=asked.add_special_tokens,
            priority=asked.priority,
        )
        params = SamplingParams(max_tokens=0, has_embedding=True)
        with renamed({"prompt": "input"}):
            prompts = await self._prompts(completion)
            for _, tokens in prompts:
                check_length("prompt", "max_tokens", len(tokens), 0, self.limits)
        asks = [_ask(completion, tokens, params, prompt) for prompt, tokens in prompts]
        answer = EmbeddingAnswer(model, asked, completion, asks)
        return self.engine.open(asks, is_streamed=False), answer

    async def _prompts(self, asked: CompletionRequest) -> list[tuple[str | None, list[int]]]:
        """Return the prompts, as texts where they are, and their tokens."""
        prompts = prompts_of(asked)
        if len(prompts) > self.settings.max_prompts:
            message = (
                f"'prompt' has {len(prompts)} prompts; up to {self.settings.max_prompts} may be."
            )
            raise invalid(message, "prompt")
        found: list[tuple[str | None, list[int]]] = []
        for prompt in prompts:
            if isinstance(prompt, str):
                has_special = asked.add_special_tokens is not False
                tokens = await self.texts.encode(
                    prompt, param="prompt", add_special_tokens=has_special
                )
            else:
                tokens = prompt
            check_prompt_ids(tokens, self.limits)
            found.append((prompt if isinstance(prompt, str) else None, tokens))
        return found

    async def chat(self, asked: ChatRequest) -> tuple[Ticket, Answer]:
        """Begin a chat completion.

        Raises:
            Refusal: it cannot be.
            AlpageError: a value is out of range.
        """
        model, asks, tooling = await self._talk(asked)
        answer = ChatCompletionAnswer(model, asked, asks, self.texts, tooling)
        return self.engine.open(asks, is_streamed=bool(asked.stream)), answer

    async def respond(self, asked: ResponseRequest) -> tuple[Ticket, Answer]:
        """Begin a response.

        Raises:
            Refusal: it cannot be.
            AlpageError: a value is out of range.
        """
        chat = chat_of(asked)
        with renamed(CHAT_NAMES):
            model, asks, tooling = await self._talk(chat)
        answer = ResponseAnswer(model, asked, chat, asks, tooling)
        return self.engine.open(asks, is_streamed=bool(asked.stream)), answer

    async def _talk(self, asked: ChatRequest) -> tuple[str, list[Ask], Tooling | None]:
        """Return what the model is called, the conversation for the engine, and its tools."""
        model = self._model(asked.model)
        check_generates(asked)
        check_chat(asked)
        tooling = tooling_of(asked)
        check_beams(asked, tooling)
        tokens = await self.texts.encode_chat(
            asked.messages,
            add_generation_prompt=asked.add_generation_prompt,
            continue_final_message=asked.continue_final_message,
            add_special_tokens=asked.add_special_tokens,
            tools=None if tooling is None else tooling.plain,
        )
        guide = await self._form(asked, tooling)
        params = chat_params(asked, len(tokens), self.limits, guide)
        asks = [_ask(asked, tokens, params, None)]
        return model, asks, tooling

    async def _form(self, asked: ChatRequest, tooling: Tooling | None) -> Guide | None:
        """Return the form of a chat's answers; None if they have none."""
        form = guide_of(asked)
        if tooling is None or asked.use_beam_search:
            return await self.guides.compiled(*form)
        is_dispensable = tooling.is_free and form[0] is None
        if is_dispensable and asked.ignore_eos:
            # A form ends where the model ends it.
            return None
        texts = self.texts
        try:
            return await self.guides.compiled(
                *tool_guide(tooling, texts.tool_style, form, texts.tool_mark_ids)
            )
        except Refusal as refusal:
            if not is_dispensable or refusal.status != HTTPStatus.BAD_REQUEST:
                raise
            return None

    async def tokenize(self, asked: TokenizeRequest) -> Tokens:
        """Return a text's tokens, or a conversation's.

        Raises:
            Refusal: it is neither of them, or both.
            AlpageError: the model has no tokenizer, or no chat template.
        """
        self._model(asked.model)
        if (asked.prompt is None) == (asked.messages is None):
            raise invalid("Give either 'prompt' or 'messages'.", "prompt")
        if asked.prompt is not None:
            has_special = asked.add_special_tokens is not False
            tokens = await self.texts.encode(
                asked.prompt, param="prompt", add_special_tokens=has_special
            )
        else:
            tokens = await self.texts.encode_chat(
                asked.messages or (),
                add_generation_prompt=asked.add_generation_prompt,
                continue_final_message=asked.continue_final_message,
                add_special_tokens=asked.add_special_tokens,
            )
        tokenizer = self.texts.tokenizer
        names = [tokenizer.id_to_token(token) or "" for token in tokens]
        return Tokens(
            count=len(tokens),
            max_model_len=self.limits.max_model_len,
            tokens=tokens,
            token_strs=names if asked.return_token_strs else None,
        )

    def detokenize(self, asked: DetokenizeRequest) -> Text:
        """Return the text of tokens.

        Raises:
            Refusal: one is not of the model's vocabulary.
            AlpageError: the model has no tokenizer.
        """
        self._model(asked.model)
        if asked.tokens:
            check_prompt_ids(asked.tokens, self.limits, param="tokens")
        return Text(self.texts.tokenizer.decode(asked.tokens, skip_special_tokens=False))

    def cards(self) -> list[ModelCard]:
        """Return the names of the model."""
        return [
            ModelCard(
                id=name,
                created=self._created,
                max_model_len=self.limits.max_model_len,
                root=self.settings.names[0],
            )
            for name in self.settings.names
        ]

    def card(self, name: str) -> ModelCard:
        """Return one of them.

        Raises:
            Refusal: it is none of them.
        """
        self._model(name)
        return next(card for card in self.cards() if card.id == name)

    def _model(self, name: str | None) -> str:
        if name is not None and name not in self.settings.names:
            raise unknown_model(name)
        return name or self.settings.names[0]


def _ask(
    asked: Generates,
    tokens: Sequence[int],
    params: SamplingParams | BeamSearchParams,
    prompt: str | None,
) -> Ask:
    return Ask(
        prompt_tokens=tokens,
        sampling=params if isinstance(params, SamplingParams) else None,
        beam=params if isinstance(params, BeamSearchParams) else None,
        prompt=prompt,
        priority=asked.priority or 0,
        salt=asked.cache_salt or "",
    )
