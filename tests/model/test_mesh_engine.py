"""The engine over processes: the same tokens as on one device, and no process left behind."""

import gc
import os
import signal
import subprocess
import sys
import time
from unittest.mock import Mock

import pytest
from benchmarks.processes import is_alive

from alpage import LLM, BeamSearchParams, SamplingParams
from alpage.errors import InvalidValue, RankLost, Unsupported
from alpage.serve.replay import prepare, replay, warm_up
from alpage.workload_file import RequestSpec
from tiny_families import make_tiny
from tiny_llama import make_tiny_llama

PROMPTS = [[5, 6, 7, 8, 9], list(range(10, 60)), [5, 6, 7, 8, 11]]
OPTIONS = {"dtype": "float32", "kv_memory": "1MiB", "notify": lambda _line: None}
ASKED = [
    SamplingParams(temperature=0, max_tokens=12, logprobs=2, prompt_logprobs=1),
    SamplingParams(temperature=1.0, seed=3, max_tokens=12, n=3, repetition_penalty=1.2),
    BeamSearchParams(beam_width=3, max_tokens=8),
]


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    path = tmp_path_factory.mktemp("mesh")
    # Heads, key/value heads and words that no even number divides, as SmolLM2 has them.
    make_tiny_llama(path / "Llama", hidden_size=72, num_attention_heads=9, num_key_value_heads=3)
    for family in ("GPT2", "Mixtral", "PaLM"):
        make_tiny(path / family, family)
    return path


def pids_of(llm):
    return [pid for engine in llm.engine.engines for pid in engine.runner.pids]


def answers(llm):
    outputs = llm.generate(PROMPTS * len(ASKED), [p for p in ASKED for _ in PROMPTS])
    return [[tuple(one.token_ids) for one in output.outputs] for output in outputs], [
        output.outputs[0].cumulative_logprob for output in outputs
    ]


CUTS = {
    "1D": ("Llama", {"devices": 2, "layout": "ws_1d"}),
    "Megatron": ("Llama", {"devices": 2, "layout": "megatron"}),
    "2D": ("Llama", {"devices": 4, "layout": "ws_2d"}),
    "as priced": ("GPT2", {"devices": 2}),
    "experts": ("Mixtral", {"devices": 2, "layout": "ws_2d"}),
    "over the batch": ("PaLM", {"devices": 2, "attention_sharding": "batch"}),
    "grouped, over the batch": (
        "Llama",
        {"devices": 4, "layout": "ws_2d", "attention_sharding": "batch"},
    ),
    "replicas": ("Mixtral", {"devices": 2, "replicas": 2}),
    "replicas of two": ("Llama", {"devices": 4, "replicas": 2}),
    "replicas of stages": ("GPT2", {"devices": 4, "replicas": 2, "stages": 2}),
    "stages": ("Llama", {"devices": 2, "stages": 2}),
    "stages of two": ("PaLM", {"devices": 4, "stages": 2, "attention_sharding": "batch"}),
    "gathered by x": ("Mixtral", {"devices": 4, "layout": "ws_2d", "prefill_layout": "wg_x"}),
    "gathered by xy": ("GPT2", {"devices": 4, "layout": "ws_2d", "prefill_layout": "wg_xy"}),
    "int8": ("Mixtral", {"devices": 2, "layout": "ws_2d", "quantization": "int8"}),
    "int8, gathered": (
        "PaLM",
        {"devices": 4, "layout": "ws_2d", "prefill_layout": "wg_xy", "quantization": "int8"},
    ),
    "keys and values in int8": ("Llama", {"devices": 2, "layout": "ws_1d", "kv_dtype": "int8"}),
    "gathered, over the batch": (
        "PaLM",
        {
            "devices": 4,
            "layout": "ws_2d",
            "prefill_layout": "wg_xyz",
            "attention_sharding": "batch",
        },
    ),
}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "cut"), CUTS.values(), ids=CUTS)
def test_tokens_are_those_of_one_device(family, cut, paths):
    dtypes = {name: cut[name] for name in ("quantization", "kv_dtype") if name in cut}
    one = LLM(paths / family, **dtypes, **OPTIONS)
    many = LLM(paths / family, **cut, max_num_seqs=12, **OPTIONS)
    assert len(many.engine.engines) == cut.get("replicas", 1)
    pids = pids_of(many)
    assert len(set(pids)) == cut["devices"]
    expected_tokens, expected_logprobs = answers(one)
    tokens, logprobs = answers(many)
    assert tokens == expected_tokens
    assert logprobs == pytest.approx(expected_logprobs, abs=1e-3)
    assert answers(many)[0] == expected_tokens, "with what is cached"
    for engine in many.engine.engines:
        engine.runner.stop()
    assert not any(map(is_alive, pids))


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_a_killed_rank_is_one_error_and_nothing_is_left(victim, paths):
    llm = LLM(paths / "Llama", devices=2, **OPTIONS)
    stream = llm.stream(PROMPTS[0], SamplingParams(temperature=0, max_tokens=100, ignore_eos=True))
    next(stream)
    pids = llm.engine.runner.pids
    os.kill(pids[victim], signal.SIGKILL)
    start_s = time.monotonic()
    with pytest.raises(RankLost, match=r"rank=[01]: its process (died|failed)"):
        list(stream)
    assert time.monotonic() - start_s < 10
    assert not any(map(is_alive, pids))
    with pytest.raises(RankLost, match="is gone"):
        llm.generate(PROMPTS[0], SamplingParams(max_tokens=2))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGSTOP])
def test_a_lost_replica_is_one_error_and_the_other_goes_on(number, paths, monkeypatch):
    monkeypatch.setattr("alpage.serve.mesh._STEP_S", 4.0)
    llm = LLM(paths / "Llama", devices=2, replicas=2, **OPTIONS)
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
    expected = llm.generate(PROMPTS, params)
    streams = [llm.stream(prompt, params) for prompt in PROMPTS]
    next(streams[0])
    (lost,), (kept,) = (engine.runner.pids for engine in llm.engine.engines)
    os.kill(lost, number)
    start_s = time.monotonic()
    words = r"replica 0, rank=0: its process (died|failed|has not answered in time); its requests"
    with pytest.raises(RankLost, match=words):
        list(streams[0])
    assert time.monotonic() - start_s < 10
    assert not is_alive(lost)
    reasons = []
    for stream in streams:
        list(stream)
        reasons.append(stream.output.outputs[0].finish_reason)
    assert {"abort", "length"} == set(reasons)
    tokens = [output.outputs[0].token_ids for output in llm.generate(PROMPTS, params)]
    assert tokens == [output.outputs[0].token_ids for output in expected]
    os.kill(kept, signal.SIGKILL)
    with pytest.raises(RankLost, match=r"^rank=0: its process (died|failed)"):
        llm.generate(PROMPTS[0], params)
    assert not is_alive(kept)


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_an_interrupted_step_leaves_no_answer_behind(replicas, paths, monkeypatch):
    """What the ranks still answer is not taken for the answer to the next question."""
    llm = LLM(paths / "Llama", devices=2, replicas=replicas, **OPTIONS)
    params = SamplingParams(temperature=0, max_tokens=8)
    expected = [output.outputs[0].token_ids for output in llm.generate(PROMPTS, params)]
    with monkeypatch.context() as patch:
        interrupted = Mock(side_effect=KeyboardInterrupt)
        patch.setattr("alpage.runtime.processes.wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            llm.generate([[7] * 20, [8] * 30, [9] * 9], params)
    assert not llm.engine.has_unfinished
    tokens = [output.outputs[0].token_ids for output in llm.generate(PROMPTS, params)]
    assert tokens == expected


@pytest.mark.slow
def test_a_workload_runs_on_replicas(paths):
    llm = LLM(paths / "Llama", devices=2, replicas=2, **OPTIONS)
    specs = [RequestSpec(prompt_tokens=20, output_tokens=6)] * 7
    requests = prepare(specs, llm.engine, None, seed=0)
    warm_up(llm.engine)
    for engine in llm.engine.engines:
        assert engine.scheduler.memories[0].pool.match([0] * 64, 64).num_tokens == 0
    seen = replay(llm.engine, requests)
    assert [request.num_output_tokens for request in seen.requests] == [6] * 7
    assert sum(step.num_tokens for step in seen.steps) == 7 * (20 + 6 - 1)
    # Steps that overlap are not counted twice.
    assert 0.5 * seen.wall_s < sum(step.duration_s for step in seen.steps) <= seen.wall_s
    # Each saw its own pages, of four requests or three.
    assert max(step.usage.num_table_entries for step in seen.steps) == 4 * 2


@pytest.mark.slow
@pytest.mark.parametrize("replicas", [1, 2])
def test_ranks_end_with_their_engine(replicas, paths):
    llm = LLM(paths / "Llama", devices=2, replicas=replicas, **OPTIONS)
    pids = pids_of(llm)
    assert len(pids) == 2
    assert all(map(is_alive, pids))
    del llm
    gc.collect()
    assert not any(map(is_alive, pids))


@pytest.mark.slow
def test_ranks_end_with_their_process_and_run_nothing_of_its_main_module(paths, tmp_path):
    script = tmp_path / "script.py"
    script.write_text(
        "import os, signal, sys\n"
        "from alpage import LLM\n"
        f"llm = LLM({str(paths / 'Llama')!r}, devices=2, kv_memory='1MiB')\n"
        "print(*llm.engine.runner.pids, flush=True)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    command = [sys.executable, script]
    run = subprocess.run(command, check=False, capture_output=True, text=True, timeout=100)
    pids = [int(pid) for pid in run.stdout.split()]
    assert len(pids) == 2, run.stderr
    end_s = time.monotonic() + 5
    while any(map(is_alive, pids)) and time.monotonic() < end_s:
        time.sleep(0.1)
    assert not any(map(is_alive, pids))


@pytest.mark.parametrize(
    ("options", "error", "words"),
    [
        ({"devices": 0}, InvalidValue, "devices=0: must be"),
        ({"devices": 2, "layout": "wg_x"}, InvalidValue, "layout='wg_x': must be one of"),
        ({"devices": 2, "device": "cuda"}, Unsupported, "CUDA"),
        ({"devices": 4, "stages": 3}, InvalidValue, "stages=3: must divide the 4 devices"),
        ({"devices": 4, "stages": 4}, InvalidValue, "num_stages=4: must be from 1 to 2"),
        ({"devices": 5}, InvalidValue, "ranks=5: do not cut this model evenly"),
        ({"devices": 10, "replicas": 2}, InvalidValue, "ranks=5: do not cut"),
        ({"devices": 4, "replicas": 3}, InvalidValue, "replicas=3: must divide devices=4"),
        ({"replicas": 2}, InvalidValue, "replicas=2: must divide devices=1"),
        ({"replicas": 0}, InvalidValue, "replicas=0: must be a whole number"),
    ],
)
def test_what_cannot_be_cut_is_refused(options, error, words, paths):
    with pytest.raises(error, match=words):
        LLM(paths / "Llama", **OPTIONS | options)
