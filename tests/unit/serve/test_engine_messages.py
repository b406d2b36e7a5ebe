"""Engine messages: all that a service and its engine say survives the way between processes."""

import math

import msgspec
import numpy as np
import pytest

from alpage.errors import InvalidValue, OutOfMemory
from alpage.serve.guide import Guide
from alpage.serve.http.engine_messages import (
    Accepted,
    Ask,
    Beat,
    Broken,
    Check,
    Down,
    Drop,
    Failed,
    Look,
    Lost,
    News,
    Note,
    Piece,
    Ready,
    Take,
    Told,
    decode_command,
    decode_event,
    encode,
)
from alpage.serve.http.refusals import overloaded
from alpage.serve.http.reports import Report
from alpage.serve.http.tallies import Counts
from alpage.serve.intake import Limits
from alpage.serve.kv_memory import KvUsage
from alpage.serve.live import LiveMemory, LiveRequest, Share, Snapshot
from alpage.serve.outputs import (
    CompletionOutput,
    Logprob,
    RequestMetrics,
    RequestOutput,
    StreamChunk,
)
from alpage.serve.params import BeamSearchParams, SamplingParams

LOGPROBS = {5: Logprob(-0.5, 1, "a"), 7: Logprob(-math.inf, 9, None)}
OUTPUT = RequestOutput(
    request_id="request-0",
    prompt="é",
    prompt_token_ids=[5, 6],
    outputs=[
        CompletionOutput(
            index=0,
            text="b",
            token_ids=[8],
            finish_reason="stop",
            stop_reason=2,
            logprobs=[LOGPROBS],
        )
    ],
    metrics=RequestMetrics(arrival_s=1.0, first_token_s=None, finished_s=2.5, cached_tokens=0),
    prompt_logprobs=[None, LOGPROBS],
    embedding=[0.5, -1.0],
)
CHUNK = StreamChunk(index=1, text="c", token_ids=[9], logprobs=[LOGPROBS], finish_reason="length")
COUNTS = Counts(num_steps=3)
COUNTS.ttft_s.add(0.2)
REPORT = Report(
    counts=COUNTS,
    num_running=1,
    num_waiting=2,
    num_preemptions=3,
    num_swap_preemptions=1,
    num_pages=100,
    usage=KvUsage(num_held_pages=1, num_table_entries=2, num_filled_slots=3, num_held_slots=16),
)
SAMPLING = SamplingParams(
    n=2,
    seed=2**64 - 1,
    stop=["x", "y"],
    stop_token_ids=[3],
    logit_bias={4: 1.5},
    guide=Guide.regex("[ab]+"),
)

COMMANDS = [
    Take(
        1,
        [
            Ask(prompt_tokens=[1, 2], sampling=SAMPLING, prompt="p", priority=-3, salt="s"),
            Ask(prompt_tokens=[3], beam=BeamSearchParams(beam_width=2, early_stopping="never")),
        ],
        is_streamed=True,
    ),
    Drop(2),
    Look(3, "glance"),
    Check(4, Guide.json({"type": "object"})),
    Check(5, None),
]
LIMITS = Limits(
    max_model_len=10,
    max_num_seqs=2,
    num_pages=4,
    page_size=16,
    vocab_size=9,
    eos_ids=frozenset({1, 2}),
)
EVENTS = [
    Accepted(1),
    News({1: [Piece(number=0, chunks=[CHUNK], prompt_logprobs=[None, LOGPROBS], output=OUTPUT)]}),
    Failed(1, overloaded(3, 1).plain),
    Told(2, report=REPORT),
    Told(3, refusal=overloaded(3, 1).plain),
    Beat(),
    Note("a line"),
    Ready(LIMITS, REPORT),
    Broken.of(InvalidValue(field="dtype", value="x", limit="is none", remedy="Choose")),
    Down(),
    Lost(),
]


def kind_of(message):
    return type(message).__name__


@pytest.mark.parametrize("command", COMMANDS, ids=kind_of)
def test_commands_arrive(command):
    arrived = decode_command(encode(command))
    assert type(arrived) is type(command)
    # Of equal messages one may have lists where another has tuples.
    assert encode(arrived) == encode(command)


@pytest.mark.parametrize("event", EVENTS, ids=kind_of)
def test_events_arrive(event):
    arrived = decode_event(encode(event))
    assert type(arrived) is type(event)
    assert encode(arrived) == encode(event)


def test_moments_arrive():
    moment = Snapshot(
        at_s=1.5,
        page_size=16,
        num_running=1,
        num_waiting=0,
        num_preemptions=0,
        num_steps=5,
        num_computed_tokens=6,
        num_drawn_tokens=7,
        memories=(
            LiveMemory(
                replica=0,
                home=0,
                num_pages=2,
                num_free=1,
                num_evicted=0,
                num_copied=0,
                num_swapped=0,
            ),
        ),
        requests=(
            LiveRequest(
                number=1,
                state="decode",
                num_sequences=1,
                num_prompt_tokens=3,
                num_cached_tokens=0,
                num_computed_tokens=4,
                num_drawn_tokens=1,
                num_table_entries=1,
            ),
        ),
        cells_P4=np.array([[1, 1, 4, 0], [0, 0, 0, 1]], np.int64),
        shares=(Share(owners=(1, 2), pages=(0, 1)),),
        evicted=((1,),),
        copied=((),),
    )
    arrived = decode_event(encode(Told(1, moment=moment))).moment
    assert (arrived.cells_P4 == moment.cells_P4).all()
    for name in ("at_s", "memories", "requests", "shares", "evicted", "copied"):
        assert getattr(arrived, name) == getattr(moment, name)


@pytest.mark.parametrize("data", [b"", b"\xc1", b"\x91\xa4take", encode(Down())])
def test_what_is_no_command_is_refused(data):
    with pytest.raises(msgspec.MsgspecError):
        decode_command(data)


def test_params_are_checked_where_they_arrive():
    plain = msgspec.msgpack.decode(encode(COMMANDS[0]))
    plain[2][0]["sampling"]["temperature"] = -1.0
    with pytest.raises(msgspec.ValidationError, match="temperature"):
        decode_command(encode(plain))


def test_errors_are_what_they_were():
    error = OutOfMemory(field="model", value=["x"], limit="is too large", remedy="Take another")
    arrived = decode_event(encode(Broken.of(error))).error
    assert type(arrived) is OutOfMemory
    assert (arrived.field, arrived.limit, arrived.remedy) == ("model", error.limit, error.remedy)
