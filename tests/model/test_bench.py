"""The bench: what it replays, the figures it makes of it, and what the machine allows."""

import dataclasses
import json

import pytest
import torch
from typer.testing import CliRunner

from alpage import LLM
from alpage.cli.bench import bench_app
from alpage.errors import InvalidValue
from alpage.runtime import Ceilings, measure_ceilings
from alpage.runtime.ceilings import int8_load
from alpage.serve.batch import Batch, Row
from alpage.serve.bench import Figures, Footprint, to_figures
from alpage.serve.kv_memory import KvUsage
from alpage.serve.params import SamplingParams
from alpage.serve.replay import (
    Replay,
    RequestSample,
    StepSample,
    TimedRequest,
    prepare,
    replay,
    to_sample,
    warm_up,
)
from alpage.serve.runs import Profile
from alpage.workload import ModelShape
from alpage.workload_file import RequestSpec
from tiny_llama import make_tiny_llama

SHAPE = ModelShape(
    num_layers=1,
    d_model=2,
    num_heads=1,
    num_kv_heads=1,
    head_dim=2,
    d_ff=4,
    num_ffn_matrices=3,
    vocab_size=10,
    is_tied=True,
)

SPECS = [
    RequestSpec(prompt_tokens=40, output_tokens=9),
    RequestSpec(prompt="one two three four five", output_tokens=6, n=3, arrival_s=0.05),
    RequestSpec(prompt=list(range(10, 45)), output_tokens=7, beam_width=2),
]
USAGE = KvUsage(num_held_pages=3, num_table_entries=4, num_filled_slots=36, num_held_slots=48)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    make_tiny_llama(path)
    return path


@pytest.fixture(scope="module")
def llm(checkpoint):
    return LLM(checkpoint, dtype="float32", device="cpu", kv_memory="8MiB", max_num_seqs=16)


# -- the figures -----------------------------------------------------------------------------------


def test_figures_are_what_they_say():
    usages = [USAGE, dataclasses.replace(USAGE, num_held_pages=4, num_filled_slots=48)]
    steps = [
        StepSample(
            duration_s=0.5,
            num_tokens=10,
            num_attended_pairs=0,
            num_logit_rows=0,
            num_kv_tokens_read=0,
            usage=usage,
        )
        for usage in usages
    ]
    requests = [
        RequestSample(
            arrival_s=1.0, num_prompt_tokens=6, num_output_tokens=3, token_times_s=(1.5, 1.7, 2.1)
        ),
        RequestSample(
            arrival_s=0.0, num_prompt_tokens=4, num_output_tokens=2, token_times_s=(0.1, 0.4)
        ),
        RequestSample(
            arrival_s=2.0, num_prompt_tokens=4, num_output_tokens=1, token_times_s=(2.3,)
        ),
    ]
    figures = to_figures(
        Replay(wall_s=4.0, steps=steps, requests=requests, num_preemptions=5),
        Footprint(shape=SHAPE, weight_element_bytes=2, kv_element_bytes=2),
        # 40 block weights: 800 FLOP a step take 0.25 s, and reading the model takes less.
        Ceilings(matmul_flops_per_s=3200.0, memory_bytes_per_s=1e6),
        peak_rss_bytes=7,
    )
    assert figures.wall_s == 4.0
    assert (figures.num_requests, figures.num_steps, figures.num_preemptions) == (3, 2, 5)
    assert (figures.prompt_tokens, figures.output_tokens) == (14, 6)
    assert (figures.output_tokens_per_s, figures.total_tokens_per_s) == (1.5, 5.0)
    assert figures.ttft_s_median == pytest.approx(0.3)
    assert figures.itl_s_median == pytest.approx(0.3)
    assert figures.kv_waste == pytest.approx((12 / 48 + 0) / 2)
    assert figures.kv_saved_by_sharing == pytest.approx((1 / 4 + 0) / 2)
    assert figures.roofline_fraction == pytest.approx(0.25 / 0.5)
    assert figures.peak_rss_bytes == 7


def test_a_step_counts_what_it_has_to_do():
    rows = [  # a chunk of a prompt, and two sequences that share 12 tokens
        row(start=4, num_tokens=3, num_draws=0),
        row(start=14, num_tokens=1, num_draws=1),
        row(start=15, num_tokens=1, num_draws=1),
    ]
    filled = 7 + 15 + 16 - 12
    usage = dataclasses.replace(USAGE, num_filled_slots=filled)
    sample = to_sample(Batch(rows=tuple(rows)), usage, 0.25)
    assert sample.num_tokens == 5
    assert sample.num_attended_pairs == (5 + 6 + 7) + 15 + 16
    assert sample.num_logit_rows == 2
    assert sample.num_kv_tokens_read == 4 + 14 + 15 - 12
    # What other sequences hold meanwhile is not read.
    idle = dataclasses.replace(USAGE, num_filled_slots=filled + 100)
    assert to_sample(Batch(rows=tuple(rows)), idle, 0.25).num_kv_tokens_read == 4 + 14 + 15


def row(*, start, num_tokens, num_draws):
    return Row(
        request_id="a",
        slot=0,
        index=0,
        start=start,
        tokens=(0,) * num_tokens,
        page_start=0,
        pages=(),
        num_draws=num_draws,
    )


# -- the replay ------------------------------------------------------------------------------------


class FakeClock:
    """A clock that only sleep and steps move."""

    def __init__(self):
        self.now_s = 100.0
        self.slept_s = []

    def __call__(self):
        return self.now_s

    def sleep(self, duration_s):
        self.slept_s.append(duration_s)
        self.now_s += duration_s


def test_requests_arrive_at_their_times(llm, monkeypatch):
    """A step takes one second: the second request waits for the step it arrives in."""
    clock, engine = FakeClock(), llm.engine
    monkeypatch.setattr(engine.intake, "clock", clock)
    run = engine.runner.run

    def run_in_a_second(batch):
        clock.now_s += 1
        return run(batch)

    monkeypatch.setattr(engine.runner, "run", run_in_a_second)
    params = SamplingParams(temperature=0, max_tokens=3, ignore_eos=True)
    requests = [
        TimedRequest(tokens=(9, 8), params=params, arrival_s=arrival_s)
        for arrival_s in (10.0, 0.0, 1.5)
    ]
    finished = []
    seen = replay(engine, requests, clock=clock, sleep=clock.sleep, notify=finished.append)
    times_s = {request.arrival_s: request.token_times_s for request in seen.requests}
    assert times_s == {0.0: (1, 2, 3), 1.5: (3, 4, 5), 10.0: (11, 12, 13)}
    assert clock.slept_s == [5.0]
    assert seen.wall_s == 13.0
    assert [step.duration_s for step in seen.steps] == [1.0] * 8
    assert sum(finished) == 3


def test_every_request_outputs_exactly_what_was_asked(llm):
    seen = replay(llm.engine, prepare(SPECS, llm.engine, llm.tokenizer, seed=0))
    by_arrival = sorted(
        (request.arrival_s, request.num_prompt_tokens, request.num_output_tokens)
        for request in seen.requests
    )
    text_tokens = len(llm.tokenizer.encode(SPECS[1].prompt, add_special_tokens=True))
    assert by_arrival == [(0.0, 35, 2 * 7), (0.0, 40, 9), (0.05, text_tokens, 3 * 6)]
    assert any(step.usage.num_held_pages < step.usage.num_table_entries for step in seen.steps)


def test_random_prompts_are_seeded_and_plain(llm):
    specs = [RequestSpec(prompt_tokens=200, output_tokens=1)] * 2
    first, second = prepare(specs, llm.engine, llm.tokenizer, seed=0)
    assert first.tokens != second.tokens
    assert prepare(specs, llm.engine, llm.tokenizer, seed=0) == [first, second]
    assert prepare(specs, llm.engine, llm.tokenizer, seed=1) != [first, second]
    assert not llm.tokenizer.special_ids & {*first.tokens, *second.tokens}
    assert not llm.engine.has_unfinished


@pytest.mark.parametrize(
    "spec",
    [
        RequestSpec(prompt_tokens=250, output_tokens=20),
        RequestSpec(prompt=[300], output_tokens=1),
        RequestSpec(prompt_tokens=1, output_tokens=1, n=17),
        RequestSpec(prompt_tokens=1, output_tokens=1, beam_width=65),
    ],
)
def test_what_the_engine_refuses_names_its_line(llm, spec):
    with pytest.raises(InvalidValue, match="workload line 4: "):
        prepare([*SPECS, spec], llm.engine, llm.tokenizer, seed=0)
    assert not llm.engine.has_unfinished


def test_text_needs_a_tokenizer(llm):
    with pytest.raises(InvalidValue, match="workload line 2: prompt"):
        prepare(SPECS, llm.engine, None, seed=0)


def test_a_warm_up_leaves_nothing_behind(llm):
    warm_up(llm.engine)
    assert not llm.engine.has_unfinished
    tokens = [0] * 64
    assert llm.engine.scheduler.memories[0].pool.match(tokens, len(tokens)).num_tokens == 0


# -- the command -----------------------------------------------------------------------------------


def test_bench_prints_one_object_or_a_table(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("alpage.runtime.ceilings._BUFFER_BYTES", {"cpu": 2**20})
    monkeypatch.setattr("alpage.runtime.ceilings._MATRIX_SIZE", {"cpu": 64})
    monkeypatch.setattr("alpage.runtime.ceilings._BUDGET_S", 0.0)
    path = tmp_path / "workload.jsonl"
    path.write_text(
        '{"prompt_tokens": 40, "output_tokens": 9}\n{"prompt": "a", "output_tokens": 6, "n": 3}\n'
    )
    options = ["--workload", str(path), "--device", "cpu", "--kv-memory", "8MiB"]
    result = CliRunner().invoke(bench_app, ["offline", str(checkpoint), *options, "--json"])
    assert result.exit_code == 0, result.exception
    figures = json.loads(result.stdout)
    assert list(figures) == [field.name for field in dataclasses.fields(Figures)]
    assert figures["output_tokens"] == 9 + 3 * 6
    assert figures["prompt_tokens"] == 40 + 1
    # A tiny model lies in caches, which are faster than the memory that ceilings are of.
    assert figures["roofline_fraction"] > 0
    assert 0 < figures["kv_waste"] < 1
    assert figures["peak_rss_bytes"] > 2**20
    table = CliRunner().invoke(bench_app, ["offline", str(checkpoint), *options]).stdout
    assert "output tokens" in table
    assert "27" in table


def test_ceilings_come_from_the_best_of_repeats(monkeypatch):
    monkeypatch.setattr("alpage.runtime.ceilings._BUFFER_BYTES", {"cpu": 1000})
    monkeypatch.setattr("alpage.runtime.ceilings._MATRIX_SIZE", {"cpu": 10})
    durations_s = iter([9.0, 0.5, 0.2, 0.4, 9.0, 0.1, 0.25, 0.2])
    monkeypatch.setattr("alpage.runtime.ceilings._timed_s", lambda work, device: next(durations_s))
    ceilings = measure_ceilings(torch.device("cpu"), torch.float32)
    assert ceilings.matmul_flops_per_s == pytest.approx(2 * 10**3 / 0.2)
    assert ceilings.memory_bytes_per_s == pytest.approx(1000 / 0.1)


def test_ceiling_of_8_bits_is_measured_with_8_bits(monkeypatch):
    monkeypatch.setattr("alpage.runtime.ceilings._MATRIX_SIZE", {"cpu": 64})
    load = int8_load(torch.device("cpu"), torch.bfloat16)
    assert load.amount == 2 * 64**3
    assert load.run().shape == (64, 64)


def test_weights_in_8_bits_count_one_byte_but_for_the_vocabulary():
    shape = dataclasses.replace(SHAPE, is_tied=False)
    profile = Profile(
        shape=shape,
        dtype=torch.bfloat16,
        kv_dtype=torch.bfloat16,
        device=torch.device("cpu"),
        quantization="int8",
    )
    num_vocab = 2 * 10 * 2
    expected = (shape.num_parameters - num_vocab + 2 * num_vocab) / shape.num_parameters
    assert profile.weight_element_bytes == pytest.approx(expected)
    assert dataclasses.replace(profile, quantization=None).weight_element_bytes == 2


def test_vocabulary_in_8_bits_counts_its_scales():
    profile = Profile(
        shape=SHAPE,
        dtype=torch.bfloat16,
        kv_dtype=torch.bfloat16,
        device=torch.device("cpu"),
        quantization="int4",
        is_vocab_int8=True,
    )
    assert SHAPE.is_tied
    num_vocab = 10 * 2
    num_bytes = 0.625 * (SHAPE.num_parameters - num_vocab) + 1.0625 * num_vocab
    assert profile.weight_element_bytes == pytest.approx(num_bytes / SHAPE.num_parameters)
