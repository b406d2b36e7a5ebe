"""Generator: sends a load, each request at its time, and gathers what comes of it."""

import asyncio
import random
import time
from collections.abc import Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from typing import final

from alpage.errors import InvalidValue
from alpage.load.outcome import Outcome
from alpage.load.target import Body, Endpoint, Target, to_body
from alpage.workload_file import RequestSpec

# In most vocabularies what is special comes first.
_NUM_SPECIAL = 1000
# Each is one token of most vocabularies, with the blank before it.
_WORDS = (
    "the of and to in is that for it as was with be by on not he his but at are this have from or "
    "had an they which one you were all her she there would their we him been has when who will "
    "more no if out so said what up its about than into them can only other time new some"
)
_WARM_UP = RequestSpec(prompt_tokens=16, output_tokens=2)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Load:
    """Requests to be sent.

    Attributes:
        specs: what each asks for; their own arrival times do not count here.
        arrivals_s: seconds after the start at which each is to be sent.
        vocab_size: random prompts have ids below it.
        seed: of random prompts.
        extra: fields that every request gets.
        endpoint: what they are sent to; a chat's random prompts are about as many words.
        max_concurrency: requests that are under way at a time; the others wait, and their waiting
            counts. None: no limit.
    """

    specs: Sequence[RequestSpec]
    arrivals_s: Sequence[float]
    vocab_size: int
    seed: int
    extra: Body
    endpoint: Endpoint = "completions"
    max_concurrency: int | None = None


async def generate(
    target: Target, load: Load, *, notify: Callable[[int], None] = lambda _: None
) -> list[Outcome]:
    """Send a load after one request for warming up; return what came of each, in their order.

    Args:
        target: where to; its connections are open.
        load: what to send.
        notify: takes the number of requests that have ended.

    Raises:
        InvalidValue: the server could not be reached, or refused the first request.
    """
    await target.check()
    draw = random.Random(load.seed)
    bodies = [_body(spec, load, draw) for spec in load.specs]
    await _warm_up(target, load, draw)
    limit = asyncio.Semaphore(load.max_concurrency) if load.max_concurrency else None
    start_s = time.perf_counter()

    async def send(body: Body, arrival_s: float) -> Outcome:
        async with AsyncExitStack() as stack:
            if limit is not None:
                await stack.enter_async_context(limit)
            outcome = await target.send(body, arrival_s, start_s)
        notify(1)
        return outcome

    async with asyncio.TaskGroup() as tasks:
        sent = {}
        for number in sorted(range(len(bodies)), key=load.arrivals_s.__getitem__):
            arrival_s = load.arrivals_s[number]
            await asyncio.sleep(max(0.0, start_s + arrival_s - time.perf_counter()))
            sent[number] = tasks.create_task(send(bodies[number], arrival_s))
    return [sent[number].result() for number in range(len(bodies))]


async def _warm_up(target: Target, load: Load, draw: random.Random) -> None:
    body = _body(_WARM_UP, load, draw)
    failure = (await target.send(body, 0.0, time.perf_counter())).failure
    if failure is not None:
        raise InvalidValue(
            field="target",
            value=target.url,
            limit=f"did not answer the first request: {failure}",
            remedy="See what the server says; --vocab-size, --model, --no-ignore-eos and "
            "--extra-body change what is sent",
        )


def _body(spec: RequestSpec, load: Load, draw: random.Random) -> Body:
    return to_body(spec, _prompt(spec, load, draw), load.extra, load.endpoint)


def _prompt(spec: RequestSpec, load: Load, draw: random.Random) -> str | list[int]:
    if spec.prompt is not None:
        return spec.prompt
    if load.endpoint == "chat":
        return " ".join(draw.choices(_WORDS.split(), k=spec.prompt_tokens or 0))
    low = min(_NUM_SPECIAL, load.vocab_size // 2)
    return [draw.randrange(low, load.vocab_size) for _ in range(spec.prompt_tokens or 0)]
