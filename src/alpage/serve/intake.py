"""Intake: what asks for tokens becomes a request, or is refused."""

import itertools
import time
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from typing import Any, final

import numpy as np

from alpage.errors import InvalidValue, OutOfMemory
from alpage.serve.beam import BeamSearch
from alpage.serve.completion import Ending
from alpage.serve.decoders import Decoder, ParallelSampling
from alpage.serve.detokenize import Decodes
from alpage.serve.grammars import Grammars, Matcher
from alpage.serve.params import BeamSearchParams, SamplingParams
from alpage.serve.request import Request
from alpage.serve.scheduler import PATIENCE
from alpage.serve.sequence import Group
from alpage.serve.slots import DrawRule

# Tokens of the prompt that the first tokens of the output are decoded after.
_CONTEXT_TOKENS = 6
# Bounds how many later requests can overtake one.
MAX_PRIORITY = 1000


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """What a request may ask for.

    Attributes:
        max_model_len: tokens of prompt and output together.
        max_num_seqs: continuations of one request.
        num_pages: pages there are.
        page_size: tokens in a page.
        vocab_size: token ids are below it.
        eos_ids: the model's own ends of text.
        has_whole_states: whether one rank has all that the model makes of a token.
    """

    max_model_len: int
    max_num_seqs: int
    num_pages: int
    page_size: int
    vocab_size: int
    eos_ids: frozenset[int]
    has_whole_states: bool = True


@final
class Intake:
    """Makes requests, one after another: numbers, names and seeds are its own.

    Replicas share one, so that what a request draws does not depend on how many there are.

    Args:
        limits: what a request may ask for.
        tokenizer: turns tokens into text; None leaves texts empty.
        grammars: compile the forms that texts must have; None where there is no tokenizer.
        seed: where the seeds of requests without one come from.
        clock: seconds, for metrics only.
    """

    def __init__(
        self,
        limits: Limits,
        tokenizer: Decodes | None,
        *,
        grammars: Grammars | None = None,
        seed: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.limits = limits
        self.clock = clock
        self.grammars = grammars
        self._tokenizer = tokenizer
        self._seeds = np.random.default_rng(seed)
        self._arrivals = itertools.count()

    def request(
        self,
        prompt_tokens: Seq[int],
        params: SamplingParams | BeamSearchParams,
        *,
        prompt: str | None,
        request_id: str | None,
        priority: int,
        salt: str,
    ) -> Request:
        """Return a request that could be served; see `Serves.add`.

        Raises:
            InvalidValue: the prompt is empty, too long or not of this vocabulary.
            OutOfMemory: it could not finish even if it were alone.
        """
        arrival = next(self._arrivals)
        _check_kinds(prompt_tokens, params)
        self._check_tokens(prompt_tokens, params)
        _check_priority(priority)
        ending = self._ending(prompt_tokens, params)
        group = Group(
            request_id=f"request-{arrival}" if request_id is None else request_id,
            key=(arrival + PATIENCE * priority, arrival),
            prompt_tokens=tuple(map(int, prompt_tokens)),
            num_sequences=params.num_sequences,
            max_new_tokens=ending.max_tokens,
            is_lockstep=isinstance(params, BeamSearchParams),
            wants_prompt_logprobs=isinstance(params, SamplingParams)
            and params.prompt_logprobs is not None,
            salt=salt,
        )
        self._check_fits(group)
        return Request(
            group,
            self._decoder(params, ending, group.prompt_tokens),
            DrawRule(params=params, seed=self._seed(params), end_ids=tuple(ending.ids)),
            prompt=prompt,
            tokenizer=self._tokenizer,
            arrival_s=self.clock(),
        )

    def _decoder(
        self,
        params: SamplingParams | BeamSearchParams,
        ending: Ending,
        prompt_tokens: Seq[int],
    ) -> Decoder:
        context = prompt_tokens[-_CONTEXT_TOKENS:]
        if isinstance(params, SamplingParams):
            matchers = self._matchers(params)
            return ParallelSampling(params, ending, self._tokenizer, context, matchers)
        return BeamSearch(params, ending, len(prompt_tokens), self._tokenizer, context)

    def _matchers(self, params: SamplingParams) -> list[Matcher] | None:
        """Return the beginning of each continuation's form, if the request wants one."""
        if params.guide is None:
            return None
        if self.grammars is None:
            raise InvalidValue(
                field="guide",
                value=params.guide.source,
                limit="needs a tokenizer, and this model has none",
                remedy="Leave it out, or get the tokenizer's files",
            )
        first = self.grammars.matcher(params.guide)
        return [first, *(first.fork() for _ in range(1, params.num_sequences))]

    def _ending(self, prompt_tokens: Seq[int], params: SamplingParams | BeamSearchParams) -> Ending:
        num_left = self.limits.max_model_len - len(prompt_tokens)
        return Ending(
            eos_ids=frozenset() if params.ignore_eos else self.limits.eos_ids,
            stop_ids=frozenset(params.stop_token_ids or ()),
            max_tokens=num_left if params.max_tokens is None else params.max_tokens,
        )

    def _seed(self, params: SamplingParams | BeamSearchParams) -> int:
        if isinstance(params, SamplingParams) and params.seed is not None:
            return params.seed % 2**64
        return int(self._seeds.integers(2**63))

    # -- what is refused ---------------------------------------------------------------------------

    def _check_tokens(
        self, prompt_tokens: Seq[int], params: SamplingParams | BeamSearchParams
    ) -> None:
        limits = self.limits
        if not prompt_tokens:
            raise InvalidValue(
                field="prompt",
                value=list(prompt_tokens),
                limit="must hold at least one token",
                remedy="Begin with a token such as the tokenizer's beginning of text",
            )
        ids = [*prompt_tokens, *(params.stop_token_ids or ())]
        if isinstance(params, SamplingParams):
            ids += params.logit_bias or ()
            self._check_text(params)
        stranger = next((token for token in ids if not 0 <= token < limits.vocab_size), None)
        if stranger is not None:
            raise InvalidValue(
                field="token id",
                value=stranger,
                limit=f"must be from 0 to {limits.vocab_size - 1}, the model's vocabulary",
                remedy="Encode with the model's own tokenizer",
            )
        num_least = max(1, params.min_tokens)
        num_output = num_least if params.max_tokens is None else params.max_tokens
        num_wanted = len(prompt_tokens) + num_output
        if num_wanted > limits.max_model_len:
            raise InvalidValue(
                field="prompt and max_tokens",
                value=f"{len(prompt_tokens)} + {num_output} tokens",
                limit=f"may be at most {limits.max_model_len} tokens together",
                remedy="Shorten the prompt, lower max_tokens (None: what is left), or raise "
                "max_model_len or kv_memory where they are the limit",
            )

    def _check_text(self, params: SamplingParams) -> None:
        num_wanted = max(params.logprobs or 0, params.prompt_logprobs or 0)
        if num_wanted > self.limits.vocab_size:
            raise InvalidValue(
                field="logprobs or prompt_logprobs",
                value=num_wanted,
                limit=f"may be at most {self.limits.vocab_size}, the model's vocabulary",
                remedy="Ask for fewer",
            )
        if params.has_embedding and not self.limits.has_whole_states:
            raise InvalidValue(
                field="has_embedding",
                value=True,
                limit="needs a model that is not cut over devices",
                remedy="Leave out devices, or have as many replicas",
            )
        if params.stop_strings and self._tokenizer is None:
            raise InvalidValue(
                field="stop",
                value=params.stop_strings,
                limit="needs a tokenizer, and this model has none",
                remedy="Use stop_token_ids",
            )

    def _check_fits(self, group: Group) -> None:
        limits = self.limits
        if group.num_sequences > limits.max_num_seqs:
            raise InvalidValue(
                field="n, best_of or beam_width",
                value=group.num_sequences,
                limit=f"may be at most max_num_seqs={limits.max_num_seqs}",
                remedy="Ask for fewer, or raise max_num_seqs",
            )
        num_needed = group.num_pages_at_most(limits.page_size)
        if num_needed > limits.num_pages:
            raise OutOfMemory(
                field="kv_memory",
                value=f"{limits.num_pages} pages of {limits.page_size} tokens",
                limit=f"cannot hold this request, which may need {num_needed} pages",
                remedy="Raise kv_memory, lower max_tokens, or ask for fewer continuations",
            )


def _check_kinds(prompt_tokens: Any, params: object) -> None:
    is_bytes = isinstance(prompt_tokens, bytes | bytearray | memoryview)
    if is_bytes or not isinstance(prompt_tokens, Seq) or not all(map(_is_whole, prompt_tokens)):
        raise InvalidValue(
            field="prompt",
            value=prompt_tokens,
            limit="must be text or a list of whole numbers, the token ids",
            remedy="Give one of these",
        )
    if not isinstance(params, SamplingParams | BeamSearchParams):
        raise InvalidValue(
            field="sampling_params",
            value=params,
            limit="must be SamplingParams or BeamSearchParams, one for all prompts or a list",
            remedy="Give one of these, such as SamplingParams(temperature=0)",
        )


def _is_whole(value: object) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_priority(priority: object) -> None:
    if not _is_whole(priority) or abs(priority) > MAX_PRIORITY:  # type: ignore[arg-type]
        raise InvalidValue(
            field="priority",
            value=priority,
            limit=f"must be a whole number from {-MAX_PRIORITY} to {MAX_PRIORITY}",
            remedy="Choose one of these; lower is sooner",
        )
