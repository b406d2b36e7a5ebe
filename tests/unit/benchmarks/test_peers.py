"""The benchmark against other engines: what needs none of them."""

import json
from dataclasses import replace
from itertools import pairwise

import pytest
from benchmarks.peers.drivers.driver import Driver, Request, measure, peak_rss_bytes
from benchmarks.peers.engines import ENGINES, WORKLOADS
from benchmarks.peers.goals import GOALS, Goal, to_ratios
from benchmarks.peers.install import vllm_needs
from benchmarks.peers.online import server_command, to_figures
from benchmarks.peers.report import to_text
from benchmarks.peers.requests import NUM_ONLINE, all_requests, write_requests
from benchmarks.peers.turns import (
    EngineFailed,
    Turn,
    append_turns,
    is_done,
    last_words,
    load_turns,
    offline,
    order,
)

ALPAGE, VLLM = ENGINES["alpage"], ENGINES["vllm"]


def turn(number, engine, workload="w1", failure=None, **figures):
    return Turn(round=number, engine=engine, workload=workload, figures=figures, failure=failure)


class Counting(Driver):
    """Answers every request with so many tokens more than it asked for."""

    def __init__(self, surplus=0):
        self.surplus = surplus
        self.batches = []

    def batch(self, requests):
        self.batches.append(requests)
        return self.surplus + sum(r.output_tokens * (r.beam_width or r.n) for r in requests)

    def stream(self, request, on_token):
        for _ in range(request.output_tokens + self.surplus):
            on_token()


# -- workloads ------------------------------------------------------------------------------------


def test_every_engine_gets_the_same_tokens(tmp_path):
    write_requests(tmp_path, seed=0, num_requests=None)
    for name, records in all_requests(0).items():
        lines = (tmp_path / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line) for line in lines] == records
    assert all_requests(1)["w2"] != all_requests(0)["w2"]


def test_workloads_are_what_they_are_called():
    found = {
        name: [Request(**record) for record in records]
        for name, records in all_requests(0).items()
        if name != "w5"
    }
    assert {*found, "w5"} == set(WORKLOADS)
    assert len(found["w1"]) == 128
    assert len({tuple(request.prompt[:512]) for request in found["w3"]}) == 1
    assert len({tuple(request.prompt) for request in found["w4"]}) == 16
    assert {request.n for request in found["w4"]} == {8}
    assert {request.beam_width for request in found["beam8"]} == {8}
    lengths = [(len(request.prompt), request.output_tokens) for request in found["w1"]]
    online = [(r["prompt_tokens"], r["output_tokens"]) for r in all_requests(0)["w5"]]
    assert online == lengths[:NUM_ONLINE]


# -- a driver's run -------------------------------------------------------------------------------


def test_batch_is_warmed_up_and_each_run_has_other_tokens():
    shared = [5000, 5001, 5000]
    requests = [Request(prompt=[*shared, 6000 + i], output_tokens=32, n=2) for i in range(10)]
    driver = Counting()
    figures = measure(driver, requests, is_stream=False, age=lambda: 1.5)
    assert len(driver.batches) == 3
    fronts = set()
    for batch in driver.batches:
        assert [replace(one, prompt=[]) for one in batch] == [replace(requests[0], prompt=[])] * 10
        (front,) = {tuple(one.prompt[:3]) for one in batch}
        assert front[0] == front[2] != front[1]
        assert len({one.prompt[3] for one in batch}) == 10
        fronts.add(front)
    assert len(fronts) == 3
    assert figures["start_s"] == 1.5
    assert figures["wall_s"] > 0
    assert figures["first_wall_s"] > 0
    assert figures["output_tokens"] == 640
    assert figures["peak_rss_bytes"] > 1e6


def test_stream_is_timed_by_the_token():
    requests = [Request(prompt=[7] * 4, output_tokens=3)] * 2
    figures = measure(Counting(), requests, is_stream=True)
    assert figures["output_tokens"] == 6
    assert 0 <= figures["ttft_s"] < 1
    assert 0 <= figures["itl_s"] < 1
    assert 0 < figures["start_s"] < 24 * 3600


@pytest.mark.parametrize("is_stream", [True, False])
def test_wrong_number_of_tokens_is_no_result(is_stream):
    requests = [Request(prompt=[7] * 4, output_tokens=3)]
    with pytest.raises(AssertionError, match="4 tokens, not 3"):
        measure(Counting(surplus=1), requests, is_stream=is_stream)


def test_memory_of_children_counts():
    import os
    import subprocess
    import sys

    script = "x = bytearray(10**8); print(flush=True); input()"
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    alone = peak_rss_bytes(os.getpid())
    with subprocess.Popen([sys.executable, "-c", script], **pipes) as child:
        child.stdout.readline()
        assert peak_rss_bytes(os.getpid()) >= alone + 10**8
        child.communicate(b"\n")


# -- turns ----------------------------------------------------------------------------------------


def test_turns_are_kept_and_taken_again_after_a_failure(tmp_path):
    path = tmp_path / "turns.jsonl"
    assert load_turns(path) == []
    append_turns(path, [turn(1, "vllm", failure="no memory"), turn(1, "alpage", wall_s=2.0)])
    assert is_done(load_turns(path), 1, "alpage", "w1")
    assert not is_done(load_turns(path), 2, "alpage", "w1")
    assert not is_done(load_turns(path), 1, "vllm", "w1")
    append_turns(path, [turn(1, "vllm", wall_s=3.0)])
    assert load_turns(path) == [turn(1, "vllm", wall_s=3.0), turn(1, "alpage", wall_s=2.0)]
    append_turns(path, [turn(1, "vllm", "w5 2/s", ttft_p50_s=1.0)])
    assert is_done(load_turns(path), 1, "vllm", "w5")


def test_everybody_comes_first_once():
    engines = list(ENGINES.values())
    orders = [list(order(engines, number)) for number in range(1, len(engines) + 1)]
    assert [each[0] for each in orders] == engines
    assert all(sorted(each, key=engines.index) == engines for each in orders)
    assert list(order([], 1)) == []


def test_last_words():
    assert last_words("loading\nValueError: bad\nshutting down\n\n") == "ValueError: bad"
    assert last_words("one\ntwo\n") == "two"
    assert last_words("") == "nothing"


def test_engine_that_fails_tells_why(tmp_path):
    """An engine whose environment lacks it; the Python that runs the tests knows no such module."""
    write_requests(tmp_path, seed=0, num_requests=1)
    engine = ENGINES["llama.cpp"]
    with pytest.raises(EngineFailed, match="llama-server"):
        offline(engine, tmp_path, tmp_path / "w1.jsonl", threads=1, timeout_s=60)


def test_absent_engines_are_known(tmp_path):
    assert ALPAGE.missing(tmp_path) == "models/bfloat16"
    (tmp_path / "models/bfloat16").mkdir(parents=True)
    assert ALPAGE.missing(tmp_path) is None
    assert VLLM.missing(tmp_path) == "vllm/bin/python"


# -- W5 -------------------------------------------------------------------------------------------


def run(rate, p50, failures=()):
    summary = {"p50": {"value": p50}, "p99": {"value": 2 * p50}}
    latencies = {"normalised_s": summary, "ttft_s": summary}
    return {"rate": rate, "failures": dict(failures), "latencies": latencies}


def test_online_figures():
    found = to_figures({"runs": [run(0.5, 0.03), run(8.0, 0.1)], "saturation_rate": None})
    assert found["w5 0.5/s"]["normalised_p99_s"] == 0.06
    assert found["w5"] == {"saturation_per_s": 8.0}
    found = to_figures({"runs": [run(0.5, 0.03)], "saturation_rate": 0.4})
    assert found["w5"] == {"saturation_per_s": 0.4}
    with pytest.raises(EngineFailed, match="timeout"):
        to_figures({"runs": [run(1, 0.1, {"timeout": 2})], "saturation_rate": None})


def test_servers_differ_in_what_they_keep_weights_in(tmp_path):
    words = server_command(ENGINES["alpage-int8"], tmp_path, 80)
    assert words[words.index("--quantization") + 1] == "int8"
    assert "--quantization" not in server_command(ALPAGE, tmp_path, 80)
    assert server_command(VLLM, tmp_path, 80)[0] == str(tmp_path / "vllm/bin/python")


# -- ratios and tables ----------------------------------------------------------------------------


def goal(**changes):
    known = {"name": "g", "workload": "w1", "figure": "wall_s", "ours": "alpage", "wanted": 0.7}
    return Goal(**{**known, "peers": ("vllm", "openvino"), **changes})


def test_ratio_is_to_the_best_peer_of_the_same_round():
    turns = [
        *(turn(1, "alpage", wall_s=6.0), turn(1, "vllm", wall_s=10.0)),
        *(turn(1, "openvino", wall_s=12.0), turn(1, "llama.cpp", wall_s=1.0)),
        *(turn(2, "alpage", wall_s=12.0), turn(2, "vllm", wall_s=18.0)),
        *(turn(2, "openvino", wall_s=16.0), turn(3, "alpage", wall_s=1.0)),
        *(turn(4, "alpage", wall_s=8.0), turn(4, "vllm", wall_s=10.0)),
    ]
    (found,) = to_ratios(turns, [goal()])
    assert found.ratios == pytest.approx((0.6, 0.75, 0.8))
    assert (found.ratio, found.peer) == (0.75, "vllm")
    assert found.is_reached is False
    (pace,) = to_ratios(turns, [goal(is_pace=True, wanted=0.5)])
    assert pace.ratios == pytest.approx((0.5, 12 / 18, 0.8))
    assert pace.is_reached is True


def test_goal_without_both_sides_is_left_out():
    assert to_ratios([turn(1, "alpage", wall_s=1.0)], [goal()]) == []
    failed = turn(1, "vllm", failure="no memory")
    assert to_ratios([turn(1, "alpage", wall_s=1.0), failed], [goal()]) == []


def test_goals_name_engines_that_do_the_workload():
    for each in GOALS:
        names = [each.ours, *each.peers]
        assert each.workload in ENGINES[each.ours].workloads
        assert any(each.workload in ENGINES[name].workloads for name in names[1:])


def test_rates_have_goals_in_their_order():
    turns = [
        turn(1, engine, f"w5 {rate}/s", normalised_p50_s=0.1, normalised_p99_s=0.2)
        for engine in ("alpage", "vllm")
        for rate in ("8", "0.5")
    ]
    names = [found.goal.name for found in to_ratios(turns)]
    assert names == [
        f"W5 {rate}/s {point}, s a token" for rate in ("0.5", "8") for point in ("p50", "p99")
    ]


def test_report():
    turns = [
        *(turn(n, "alpage", output_tokens_per_s=600.0 + 4 * n, start_s=1.5) for n in (1, 5, 7)),
        *(turn(n, "openvino", output_tokens_per_s=400.0, start_s=2.5) for n in (1, 5, 7)),
        turn(1, "alpage", "w2", ttft_s=0.05, itl_s=0.0098),
        turn(1, "vllm", failure="no memory"),
        turn(1, "vllm", "w5 2/s", normalised_p50_s=0.038),
    ]
    text = to_text(turns, {"ctranslate2": "models/ctranslate2"})
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("|")]
    assert len({len(row) for row in rows}) == 3
    assert "| alpage | 620 | 50 | 9.8 | - |" in text
    assert "| openvino | 400 | - |" in text
    assert "| 2/s | vllm | 38 |" in text
    assert "| 1.55 (1.51 to 1.57) | at least 1.4: reached |" in text
    assert "vllm failed on w1: no memory" in text
    assert "ctranslate2 was not there: no models/ctranslate2." in text
    assert "alpage-int8" not in text
    assert all(len(one) == len(other) for one, other in pairwise(rows[:3]))


# -- installation ---------------------------------------------------------------------------------


def test_what_vllm_needs():
    asked = [
        'torch==2.13.0+cpu; platform_machine == "x86_64"',
        "torchaudio",
        "torch-extras>=1",
        'zentorch==2; extra == "zen"',
        'fastapi[standard]<1; python_version > "3.8"',
    ]
    assert vllm_needs(asked) == [asked[2], asked[4]]
