"""Engine client: what becomes of those who wait when an engine is lost and another comes."""

import asyncio
from dataclasses import replace

import pytest

from alpage.serve.guide import Guide
from alpage.serve.http.engine_client import EngineClient
from alpage.serve.http.engine_messages import (
    Accepted,
    Ask,
    Beat,
    Down,
    Drop,
    Look,
    Lost,
    News,
    Piece,
    Ready,
    Take,
    Told,
)
from alpage.serve.http.guiding import Guides
from alpage.serve.http.refusals import Refusal
from alpage.serve.http.reports import Report
from alpage.serve.http.tallies import Counts
from alpage.serve.intake import Limits
from alpage.serve.kv_memory import KvUsage
from alpage.serve.outputs import RequestMetrics, RequestOutput, StreamChunk
from alpage.serve.params import SamplingParams

FORM = Guide.regex("a+")
ASKS = [Ask(prompt_tokens=[number], sampling=SamplingParams(seed=number)) for number in range(2)]
METRICS = RequestMetrics(arrival_s=0.0, first_token_s=None, finished_s=0.0, cached_tokens=0)


def report(num_running=0):
    usage = KvUsage(num_held_pages=1, num_table_entries=1, num_filled_slots=1, num_held_slots=1)
    return Report(
        counts=Counts(),
        num_running=num_running,
        num_waiting=0,
        num_preemptions=0,
        num_swap_preemptions=0,
        num_pages=1,
        usage=usage,
    )


def output(name):
    return RequestOutput(
        request_id=name, prompt=None, prompt_token_ids=[], outputs=[], metrics=METRICS
    )


def done(number, name):
    return Piece(number=number, output=output(name))


CHUNK = Piece(number=0, chunks=[StreamChunk(index=0, text="a", token_ids=[1])])


class Link:
    """An engine that says what the test says."""

    limits = Limits(
        max_model_len=10,
        max_num_seqs=2,
        num_pages=4,
        page_size=16,
        vocab_size=9,
        eos_ids=frozenset(),
    )
    report = report(num_running=1)
    pid = None
    failure = None

    def __init__(self):
        self.sent = []
        self.say = None

    def start(self, hear):
        self.say = hear

    def send(self, command):
        self.sent.append(command)

    def stop(self):
        pass

    @property
    def taken(self):
        return [command.ticket for command in self.sent if isinstance(command, Take)]


@pytest.fixture
def link():
    return Link()


@pytest.fixture
def clock():
    return [0.0]


@pytest.fixture
def client(link, clock):
    client = EngineClient(link, max_open_sequences=8, stall_s=5.0, clock=lambda: clock[0])
    client.start()
    return client


def again(link):
    link.say(Down())
    link.say(Ready(Link.limits, report()))


async def settle():
    for _ in range(5):
        await asyncio.sleep(0)


def test_whole_answers_are_asked_for_once_more(client, link):
    async def run():
        ticket = client.open(ASKS, is_streamed=False)
        waiting = asyncio.create_task(ticket.outputs())
        link.say(Accepted(ticket.number))
        link.say(News({ticket.number: [done(1, "void")]}))
        await settle()
        again(link)
        await settle()
        assert link.taken == [ticket.number] * 2
        assert link.sent[0] == link.sent[1]
        assert not ticket.finished, "a part of an answer is none"
        link.say(News({ticket.number: [done(0, "first"), done(1, "second")]}))
        assert [each.request_id for each in await waiting] == ["first", "second"]
        assert client._num_open == 0

    asyncio.run(run())
    assert client.num_restarts == 1


def test_stream_of_which_nothing_came_goes_on(client, link):
    async def run():
        ticket = client.open(ASKS[:1], is_streamed=True)
        link.say(Accepted(ticket.number))
        await ticket.accepted()
        again(link)
        link.say(Accepted(ticket.number))
        link.say(News({ticket.number: [CHUNK, done(0, "whole")]}))
        assert await ticket.take() == [CHUNK, done(0, "whole")]
        assert ticket.is_finished

    asyncio.run(run())


def test_stream_of_which_something_came_is_told(client, link):
    async def run():
        ticket = client.open(ASKS[:1], is_streamed=True)
        link.say(News({ticket.number: [CHUNK]}))
        again(link)
        await settle()
        assert await ticket.take() == [CHUNK]
        with pytest.raises(Refusal) as raised:
            await ticket.take()
        assert (raised.value.status, raised.value.code) == (503, "engine_lost")
        assert link.taken == [ticket.number]
        assert client._num_open == 0

    asyncio.run(run())


def test_request_that_loses_two_engines_gets_no_third(client, link):
    async def run():
        ticket = client.open(ASKS, is_streamed=False)
        for _ in range(2):
            again(link)
            await settle()
        with pytest.raises(Refusal) as raised:
            await ticket.outputs()
        assert (raised.value.status, raised.value.code) == (500, "engine_lost")
        assert len(link.taken) == 2

    asyncio.run(run())


def test_while_there_is_no_engine_prompts_wait_and_questions_do_not(client, link):
    async def run():
        asked = asyncio.create_task(client.moment())
        await settle()
        assert isinstance(link.sent.pop(), Look)
        link.say(Down())
        for question in (asked, client.moment(), client.check(FORM)):
            with pytest.raises(Refusal) as raised:
                await question
            assert (raised.value.status, raised.value.code) == (503, "engine_restarting")
        seen = await client.report(1.0)
        assert (seen.num_running, seen.usage.num_held_pages) == (0, 0)
        assert client.state == "restarting"
        one = client.open(ASKS, is_streamed=False)
        other = client.open(ASKS, is_streamed=True)
        other.close()
        await settle()
        assert link.taken == []
        link.say(Ready(Link.limits, report()))
        await settle()
        assert client.state == "running"
        assert link.taken == [one.number]
        # Those that never had an engine have lost none.
        again(link)
        await settle()
        assert link.taken == [one.number] * 2
        one.close()
        assert link.sent[-1] == Drop(one.number)

    asyncio.run(run())


@pytest.mark.parametrize("num_losses", [1, 2])
def test_form_that_is_being_compiled_goes_to_the_next_engine(client, link, num_losses):
    guides = Guides(client, 0.2, has_tokenizer=True)

    async def run():
        compiled = asyncio.create_task(guides.compiled(FORM, "guided_regex"))
        for _ in range(num_losses):
            await settle()
            preparing = link.sent.pop()
            assert preparing.guide is None
            # While what all forms need is prepared, losses are not held against it.
            again(link)
            assert link.sent.pop() == preparing
            link.say(Told(preparing.question))
            await settle()
            assert link.sent.pop().guide == FORM
            link.say(Down())
            await asyncio.sleep(0.3)
            assert link.sent == []
            link.say(Ready(Link.limits, report()))
        if num_losses == 2:
            with pytest.raises(Refusal) as raised:
                await compiled
            assert (raised.value.status, raised.value.code) == (500, "engine_lost")
            return
        await settle()
        for guide in (None, FORM):
            asked = link.sent.pop()
            assert asked.guide == guide
            link.say(Told(asked.question))
            await settle()
        assert await compiled == FORM

    asyncio.run(run())


def test_forms_that_wait_are_bounded(client, link):
    async def run():
        link.say(Down())
        waiting = [asyncio.create_task(client.check(None)) for _ in range(8)]
        await settle()
        with pytest.raises(Refusal) as raised:
            await client.check(None)
        assert raised.value.status == 429
        client.refuse_all()
        for each in waiting:
            with pytest.raises(Refusal) as raised:
                await each
            assert raised.value.code == "shutting_down"

    asyncio.run(run())


def test_counts_go_on_over_engines(client, link):
    def counted(num_steps, num_preemptions):
        counts = Counts(num_steps=num_steps, num_finished={"stop": num_steps, "length": 0})
        counts.step_s.add(0.5)
        return replace(report(), counts=counts, num_preemptions=num_preemptions)

    async def seen(told):
        asked = asyncio.create_task(client.report(1.0))
        await settle()
        link.say(Told(link.sent.pop().question, report=told))
        return await asked

    async def run():
        await seen(counted(3, 1))
        await seen(counted(5, 1))
        again(link)
        found = await client.report(0.01)
        assert (found.counts.num_steps, found.num_preemptions) == (5, 1)
        await seen(counted(2, 4))
        again(link)
        found = await seen(counted(1, 0))
        assert (found.counts.num_steps, found.num_preemptions) == (8, 5)
        assert found.counts.num_finished["stop"] == 8
        assert sum(found.counts.step_s.counts) == 3
        assert found.counts.step_s.total == 1.5

    asyncio.run(run())


def test_when_there_is_no_other_engine_everybody_is_told(client, link):
    async def run():
        ticket = client.open(ASKS, is_streamed=False)
        link.say(Down())
        link.say(Lost())
        with pytest.raises(Refusal) as raised:
            await ticket.outputs()
        assert (raised.value.status, raised.value.code) == (503, "engine_lost")
        with pytest.raises(Refusal):
            await client.moment()
        with pytest.raises(Refusal):
            client.open(ASKS, is_streamed=True)
        assert (client.state, client._num_open) == ("lost", 0)

    asyncio.run(run())


def test_answers_that_nobody_waits_for_are_harmless(client, link):
    async def run():
        ticket = client.open(ASKS, is_streamed=True)
        ticket.close()
        link.say(Accepted(ticket.number))
        link.say(News({ticket.number: [CHUNK]}))
        link.say(Told(999, report=report()))
        await settle()
        assert await client.report(0.01) is client._report

    asyncio.run(run())


def test_progress_is_what_the_engine_says_of_it(client, link, clock):
    async def run():
        clock[0] = 100.0
        assert client.state == "running"
        ticket = client.open(ASKS, is_streamed=False)
        clock[0] += 4.0
        assert client.state == "running"
        link.say(Beat())
        clock[0] += 4.0
        assert client.state == "running"
        clock[0] += 4.0
        assert client.state == "stalled"
        link.say(Down())
        link.say(Ready(Link.limits, report()))
        assert client.state == "running", "another engine has its own time"
        ticket.close()

    asyncio.run(run())
