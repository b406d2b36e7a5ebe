"""What whoever runs a server sees of it: /metrics, the dashboard that reads it, and the log."""

import asyncio
import json
import re
from pathlib import Path

import httpx
import pytest

from alpage import LLM
from tiny_llama import make_tiny_llama
from tiny_server import Client, process_of, service_of

DASHBOARD = Path(__file__).parents[2] / "docs" / "grafana.json"
IDS = [5, 6, 7, 8, 9]
EXACT = {"ignore_eos": True, "temperature": 0}


@pytest.fixture
def llm(tmp_path):
    make_tiny_llama(tmp_path)
    return LLM(tmp_path, kv_memory="8MiB", dtype="float32", device="cpu", max_num_seqs=16)


@pytest.fixture
def client(llm):
    with service_of(llm, api_keys=()) as service:
        yield Client(service)


def test_requests_are_counted(client):
    client.complete(IDS, max_tokens=6, **EXACT)
    client.complete([11, 12, 13], max_tokens=1, n=2, seed=1, ignore_eos=True)
    parts = client.stream("/v1/completions", {"prompt": IDS, "max_tokens": 4} | EXACT)
    assert parts
    found = client.metrics()
    assert found["alpage_prompt_tokens_total",] == 13
    assert found["alpage_generated_tokens_total",] == 6 + 2 + 4
    assert found["alpage_cached_prompt_tokens_total",] == found["alpage_prefix_cache_hits_total",]
    assert found["alpage_cached_prompt_tokens_total",] == 4
    assert found["alpage_requests_finished_total", "length"] == 3
    assert found["alpage_requests_finished_total", "error"] == 0
    assert found["alpage_steps_total",] == 6 + 1 + 4
    for name in ("time_to_first_token", "request", "queue", "prefill"):
        assert found[f"alpage_{name}_seconds_count",] == 3
        assert found[f"alpage_{name}_seconds_bucket", "+Inf"] == 3
    assert found["alpage_inter_token_latency_seconds_count",] == 5 + 3
    assert found["alpage_step_tokens_sum",] == 5 + 3 + (5 - 4) + 5 + 3
    assert found["alpage_request_generated_tokens_sum",] == 12
    assert found["alpage_request_seconds_sum",] >= found["alpage_prefill_seconds_sum",] > 0
    assert found["alpage_kv_pages_held",] == found["alpage_kv_usage_ratio",] == 0
    assert found["alpage_requests_running",] == found["alpage_requests_waiting",] == 0
    assert found["process_resident_memory_bytes",] > 1e6


def test_memory_is_looked_at_while_it_is_used(client):
    """Four continuations of one prompt share its first page."""
    seen = []

    async def ask():
        transport = httpx.ASGITransport(app=client.app)
        async with httpx.AsyncClient(transport=transport, base_url="http://tiny") as http:
            body = {"prompt": [*range(5, 45)], "n": 4, "max_tokens": 200, "ignore_eos": True}
            running = asyncio.create_task(http.post("/v1/completions", json=body, timeout=60))
            while not running.done():
                seen.append((await http.get("/metrics")).text)
                await asyncio.sleep(0.01)
            assert (await running).status_code == 200

    asyncio.run(ask())
    shared = [float(re.search(r"alpage_kv_pages_shared\{.*\} (.*)", t)[1]) for t in seen]
    waste = [float(re.search(r"alpage_kv_waste_ratio\{.*\} (.*)", t)[1]) for t in seen]
    assert max(shared) >= 3
    assert 0 < max(waste) < 1
    assert client.metrics()["alpage_kv_page_copies_total",] >= 3


def test_refusals_are_counted_by_status_and_code(llm):
    with service_of(llm, api_keys=("key",)) as service:
        client = Client(service)
        key = {"headers": {"Authorization": "Bearer key"}}
        client.get("/v1/models")
        client.post("/v1/completions", {"prompt": IDS, "unheard": 1}, **key)
        client.post("/v1/completions", {"prompt": [9999]}, **key)
        client.get("/nowhere", **key)
        client.get("/health")
        assert client.get("/metrics").status_code == 401
        text = client.get("/metrics", **key).text
    found = re.findall(r'refusals_total\{code="(.*)",model="tiny",status="(.*)"\} (.*)', text)
    assert sorted(found) == [
        ("invalid_api_key", "401", "2.0"),
        ("invalid_value", "400", "1.0"),
        ("unknown_parameter", "400", "1.0"),
        ("unknown_url", "404", "1.0"),
    ]


def test_steps_that_fail_are_errors(llm, client, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    with monkeypatch.context() as patch:
        patch.setattr(llm.engine.runner, "start", fail)
        assert client.post("/v1/completions", {"prompt": IDS}).status_code == 500
    found = client.metrics()
    assert found["alpage_requests_finished_total", "error"] == 1
    assert found["alpage_refusals_total", "500", "internal_error"] == 1


def test_preemptions_are_counted(tmp_path):
    make_tiny_llama(tmp_path)
    llm = LLM(tmp_path, kv_memory="64KiB", dtype="float32", device="cpu", max_num_seqs=8)
    with service_of(llm) as service:
        client = Client(service)
        prompts = [[5 + number] * 20 for number in range(6)]
        client.complete(prompts, max_tokens=30, **EXACT)
        found = client.metrics()
    num = llm.engine.scheduler.num_preemptions
    assert num > 0
    by = (found["alpage_preemptions_total", "recompute"], found["alpage_preemptions_total", "swap"])
    assert sum(by) == num
    assert (found["alpage_preemption_recompute_seconds_total",] > 0) == (by[0] > 0)


def test_vllm_names_are_there_beside_ours(llm):
    with service_of(llm, has_vllm_metrics=True) as service:
        client = Client(service)
        client.complete(IDS, max_tokens=3, **EXACT)
        found = client.metrics()
    for name, value in {
        ("vllm:prompt_tokens_total",): 5,
        ("vllm:generation_tokens_total",): 3,
        ("vllm:request_success_total", "length"): 1,
        ("vllm:num_preemptions_total",): 0,
        ("vllm:num_requests_running",): 0,
        ("vllm:kv_cache_usage_perc",): 0,
        ("vllm:time_to_first_token_seconds_count",): 1,
        ("vllm:e2e_request_latency_seconds_count",): 1,
        ("vllm:iteration_tokens_total_count",): 3,
        ("alpage_prompt_tokens_total",): 5,
    }.items():
        assert found[name] == value


def test_services_share_no_metrics(llm):
    with service_of(llm) as service:
        Client(service).complete(IDS, max_tokens=2)
    with service_of(llm) as service:
        assert Client(service).metrics()["alpage_prompt_tokens_total",] == 0


def test_dashboard_asks_for_what_there_is(client):
    names = {key[0] for key in client.metrics()} | {"alpage_refusals_total"}
    dashboard = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    queries = [t["expr"] for panel in dashboard["panels"] for t in panel.get("targets", ())]
    assert len(queries) > 15
    asked = {name for query in queries for name in re.findall(r"(?:alpage|process)_\w+", query)}
    assert asked <= names, asked - names
    known = {re.sub(r"_(bucket|sum|count)$", "", name) for name in asked}
    ours = {re.sub(r"_(bucket|sum|count)$", "", n) for n in names if n.startswith("alpage_")}
    assert ours - known <= {"alpage_kv_pages", "alpage_prefix_cache_hits_total"} | {
        "alpage_prefix_cache_queries_total"
    }


# -- the log ---------------------------------------------------------------------------------------


def test_every_request_is_a_line_of_the_log(tmp_path):
    make_tiny_llama(tmp_path)
    with process_of(tmp_path, "--log-requests") as server:
        url = f"{server.url}/v1/completions"
        body = {"prompt": IDS, "max_tokens": 4} | EXACT
        whole = httpx.post(url, json=body)
        httpx.post(url, json=body | {"stream": True})
        httpx.post(url, json={"prompt": ""})
        httpx.get(f"{server.url}/health")
        with httpx.stream("POST", url, json=body | {"stream": True, "max_tokens": 240}) as left:
            next(left.iter_bytes())
        assert server.end() == 0
    lines = [json.loads(line) for line in server.said[-1].splitlines()]
    assert [line["status"] for line in lines] == [200, 200, 400, 200]
    assert lines[0]["request_id"] == whole.headers["x-request-id"]
    assert [line.get("finish_reasons") for line in lines] == [
        ["length"],
        ["length"],
        None,
        ["abort"],
    ]
    assert [line.get("is_streamed") for line in lines] == [False, True, None, True]
    for line in lines[:2]:
        assert (line["prompt_tokens"], line["output_tokens"]) == (5, 4)
        assert 0 < line["first_token_s"] < line["seconds"]
    assert lines[2]["error"] == "invalid_value"
