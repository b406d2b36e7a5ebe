"""Replay: a workload through an engine, each request at its time, and what every step had to do."""

import time
from collections import deque
from collections.abc import Callable, Iterator
from collections.abc import Sequence as Seq
from contextlib import contextmanager
from dataclasses import dataclass
from typing import final

import numpy as np
from numpy.typing import NDArray

from alpage.errors import AlpageError, InvalidValue
from alpage.models import Tokenizer
from alpage.serve.batch import Batch
from alpage.serve.kv_memory import KvUsage
from alpage.serve.params import BeamSearchParams, SamplingParams
from alpage.serve.request import Request
from alpage.serve.serves import Serves
from alpage.workload_file import RequestSpec, line_field

_WARM_UP_TOKENS = 256


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class TimedRequest:
    """A request as the engine takes it, and the seconds after the start at which it arrives."""

    tokens: tuple[int, ...]
    params: SamplingParams | BeamSearchParams
    arrival_s: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class StepSample:
    """One step.

    Attributes:
        duration_s: from its scheduling to its commit; of replicas, whose steps overlap, from the
            commit before it, so that the durations of all steps add up to the time they took.
        num_tokens: tokens the model ran over.
        num_attended_pairs: pairs of a query and a key it may see.
        num_logit_rows: tokens whose logits were wanted.
        num_kv_tokens_read: tokens of earlier steps whose keys and values are attended to; those
            that several sequences share count once.
        usage: the KV memory it ran in, that of its own replica.
    """

    duration_s: float
    num_tokens: int
    num_attended_pairs: int
    num_logit_rows: int
    num_kv_tokens_read: int
    usage: KvUsage


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class RequestSample:
    """One request; its times are in seconds after the start of the replay."""

    arrival_s: float
    num_prompt_tokens: int
    num_output_tokens: int
    token_times_s: tuple[float, ...]


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """What was seen of a workload."""

    wall_s: float
    steps: Seq[StepSample]
    requests: Seq[RequestSample]
    num_preemptions: int


def prepare(
    specs: Seq[RequestSpec], engine: Serves, tokenizer: Tokenizer | None, *, seed: int
) -> list[TimedRequest]:
    """Return the requests of a workload file for an engine, which has accepted each of them.

    Args:
        specs: the requests, the first from line 1.
        engine: what is going to run them; it is left as it was.
        tokenizer: encodes prompts that are text, and knows which ids random prompts leave out.
        seed: of the random prompts.

    Raises:
        AlpageError: the engine could not run a request; its line is named.
    """
    draw = np.random.default_rng(seed)
    special_ids = engine.limits.eos_ids | (tokenizer.special_ids if tokenizer else frozenset())
    vocab_size = tokenizer.vocab_size if tokenizer else engine.limits.vocab_size
    plain_ids = np.array([token for token in range(vocab_size) if token not in special_ids])
    requests = []
    for number, spec in enumerate(specs, start=1):
        with _named_line(number):
            if isinstance(spec.prompt, str):
                tokens = _encode(spec.prompt, tokenizer)
            else:
                tokens = spec.prompt or _random(draw, plain_ids, spec.prompt_tokens, engine)
            request = TimedRequest(
                tokens=tuple(tokens), params=_params(spec), arrival_s=spec.arrival_s
            )
            # A benchmark should not find on its last line what it could have known at the start.
            engine.abort(engine.add(request.tokens, request.params).request_id)
            requests.append(request)
    return requests


def warm_up(engine: Serves) -> None:
    """Run a short request on each engine, so that what happens once is not measured.

    Its prefix is forgotten.
    """
    num_tokens = min(_WARM_UP_TOKENS, engine.limits.max_model_len - 2)
    # With a seed of its own it takes none from the requests that are measured.
    params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True, seed=0)
    for each in engine.engines:
        request = each.add([0] * max(1, num_tokens), params)
        while not request.is_finished:
            each.step()
        each.scheduler.forget_prefixes()


def replay(
    engine: Serves,
    requests: Seq[TimedRequest],
    *,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    notify: Callable[[int], None] = lambda _: None,
) -> Replay:
    """Run requests to their ends, each from its arrival on.

    Args:
        engine: runs them, and has nothing else to do.
        requests: in any order.
        clock: seconds; the same as the engine's.
        sleep: waits where nothing has arrived.
        notify: takes the number of requests that a step finished.
    """
    waiting = deque(sorted(requests, key=lambda request: request.arrival_s))
    handed: list[tuple[TimedRequest, Request]] = []
    steps: list[StepSample] = []
    num_preemptions = _num_preemptions(engine)
    start_s = clock()
    while waiting or engine.has_unfinished:
        while waiting and waiting[0].arrival_s <= clock() - start_s:
            arrived = waiting.popleft()
            handed.append((arrived, engine.add(arrived.tokens, arrived.params)))
        if engine.has_unfinished:
            advanced = _step(engine, steps, clock)
            notify(sum(request.is_finished for request in advanced))
        else:
            sleep(max(0.0, start_s + waiting[0].arrival_s - clock()))
    return Replay(
        wall_s=clock() - start_s,
        steps=steps,
        requests=[_sample(timed, request, start_s) for timed, request in handed],
        num_preemptions=_num_preemptions(engine) - num_preemptions,
    )


def _step(engine: Serves, steps: list[StepSample], clock: Callable[[], float]) -> list[Request]:
    seen: list[tuple[Batch, KvUsage]] = []
    begin_s = clock()
    advanced = engine.step(lambda batch, usage: seen.append((batch, usage())))
    duration_s = clock() - begin_s
    steps += [to_sample(batch, usage, duration_s) for batch, usage in seen]
    return advanced


def _num_preemptions(engine: Serves) -> int:
    return sum(each.scheduler.num_preemptions for each in engine.engines)


def to_sample(batch: Batch, usage: KvUsage, duration_s: float) -> StepSample:
    """Return what a step had to do: neither padding nor what an implementation reads twice."""
    num_pairs = 0
    for row in batch.rows:
        num_new = len(row.tokens)
        num_pairs += num_new * row.start + num_new * (num_new + 1) // 2
    return StepSample(
        duration_s=duration_s,
        num_tokens=batch.num_tokens,
        num_attended_pairs=num_pairs,
        num_logit_rows=sum(row.num_draws > 0 for row in batch.rows),
        # Two bounds: the first counts what rows share more than once, the second counts sequences
        # that take no part in the step.
        num_kv_tokens_read=min(
            sum(row.start for row in batch.rows), usage.num_filled_slots - batch.num_tokens
        ),
        usage=usage,
    )


def _sample(timed: TimedRequest, request: Request, start_s: float) -> RequestSample:
    return RequestSample(
        arrival_s=timed.arrival_s,
        num_prompt_tokens=len(timed.tokens),
        num_output_tokens=sum(len(output.token_ids) for output in request.output().outputs),
        token_times_s=tuple(time_s - start_s for time_s in request.token_times_s),
    )


def _random(
    draw: np.random.Generator, plain_ids: NDArray[np.int64], num_tokens: int | None, engine: Serves
) -> list[int]:
    """Return random tokens, no more than what the engine will refuse as too many."""
    num_drawn = min(num_tokens or 0, engine.limits.max_model_len + 1)
    tokens: list[int] = draw.choice(plain_ids, num_drawn).tolist()
    return tokens


def _encode(text: str, tokenizer: Tokenizer | None) -> list[int]:
    if tokenizer is None:
        raise InvalidValue(
            field="prompt",
            value=text,
            limit="is text, and this model has no tokenizer",
            remedy="Give token ids, or prompt_tokens for random ones",
        )
    return tokenizer.encode(text, add_special_tokens=True)


def _params(spec: RequestSpec) -> SamplingParams | BeamSearchParams:
    if spec.beam_width is not None:
        return BeamSearchParams(
            beam_width=spec.beam_width, max_tokens=spec.output_tokens, ignore_eos=True
        )
    return SamplingParams(
        n=spec.n,
        temperature=0.0 if spec.n == 1 else 1.0,
        max_tokens=spec.output_tokens,
        ignore_eos=True,
    )


@contextmanager
def _named_line(number: int) -> Iterator[None]:
    """Let errors name the line of the workload file that they are about."""
    try:
        yield
    except AlpageError as error:
        raise type(error)(
            field=line_field(number, error.field),
            value=error.value,
            limit=error.limit,
            remedy=error.remedy,
        ) from error
