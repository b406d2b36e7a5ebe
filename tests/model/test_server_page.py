"""The page at `/`: its files as a browser gets them, and the engine as it is shown to onlookers."""

import asyncio
import json
import re
import threading
import time
from importlib.resources import files

import pytest

from alpage import LLM
from alpage.serve.live import look
from tiny_llama import make_tiny_llama
from tiny_server import DEADLINE_S, Client, service_of

PAGE = files("alpage.serve.http").joinpath("page")
NAMES = sorted(entry.name for entry in PAGE.iterdir())
TYPES = {
    "html": "text/html; charset=utf-8",
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}
NUM_COLUMNS = 6
LONG = {"max_tokens": 3000, "ignore_eos": True, "seed": 1, "stream": True}
PROMPT = list(range(5, 45))


@pytest.fixture(scope="module")
def llm(tmp_path_factory):
    path = tmp_path_factory.mktemp("llama")
    make_tiny_llama(path, max_position_embeddings=4096)
    return LLM(path, kv_memory="8MiB", dtype="float32", device="cpu", max_num_seqs=8)


@pytest.fixture(scope="module")
def service(llm):
    with service_of(llm) as service:
        yield service


@pytest.fixture(scope="module")
def client(service):
    return Client(service)


# -- files -----------------------------------------------------------------------------------------


def path_of(name):
    return "/" if name == "index.html" else f"/page/{name}"


@pytest.mark.parametrize("name", NAMES)
def test_file_is_sent_as_what_it_is(client, name):
    response = client.get(path_of(name))
    assert response.status_code == 200
    assert response.content == PAGE.joinpath(name).read_bytes()
    assert response.headers["content-type"] == TYPES[name.rpartition(".")[2]]
    assert response.headers["content-security-policy"].startswith("default-src 'self'; ")
    assert "unsafe" not in response.headers["content-security-policy"]
    assert response.headers["x-content-type-options"] == "nosniff"


def test_file_that_the_browser_has_is_not_sent_again(client):
    first = client.get("/page/main.js")
    again = client.get(
        "/page/main.js", headers={"if-none-match": f'"x", W/{first.headers["etag"]}'}
    )
    assert (again.status_code, again.content) == (304, b"")
    assert again.headers["etag"] == first.headers["etag"]
    other = client.get("/page/main.js", headers={"if-none-match": '"other"'})
    assert other.status_code == 200


@pytest.mark.parametrize(
    "path",
    [
        "/page/",
        "/page/index.html",
        "/page/../app.py",
        "/page/..%2fapp.py",
        "/page/%2e%2e/app.py",
        "/page/..%5capp.py",
        "/page//etc/passwd",
        "/page/%00",
        "/page/__init__.py",
    ],
)
def test_nothing_else_is_sent(client, path):
    response = client.get(path)
    assert response.status_code == 404
    assert response.json()["error"]["code"] == "unknown_url"


REFERENCES = {
    "html": r'(?:href|src)="([^"]+)"',
    "css": r'url\("([^"]+)"\)',
    "js": r'from "\./([^"]+)"',
    "svg": r'href="([^"]+)"',
}


def test_every_reference_leads_somewhere():
    seen = set()
    for name in NAMES:
        text = PAGE.joinpath(name).read_text(encoding="utf-8")
        kind = name.rpartition(".")[2]
        found = re.findall(REFERENCES[kind], text)
        if kind == "html":
            assert all(reference.startswith("page/") for reference in found)
        seen |= {reference.removeprefix("page/") for reference in found}
        assert not re.search(r"(?:https?:)?//(?!www\.w3\.org/2000/svg)\w+\.\w", text), "elsewhere"
    assert seen == set(NAMES) - {"index.html"}, "a file is missing, or of no use"


def test_every_route_that_scripts_ask_is_there(client):
    scripts = [PAGE.joinpath(n).read_text(encoding="utf-8") for n in NAMES if n.endswith(".js")]
    asked = {path for text in scripts for path in re.findall(r'ask\("([^"]+)"', text)}
    assert asked == {"live", "v1/chat/completions", "v1/models"}
    assert {f"/{path}" for path in asked} <= {route.path for route in client.app.routes}


def test_no_text_is_ever_taken_as_html():
    banned = r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|srcdoc"
    for name in NAMES:
        assert not re.search(banned, PAGE.joinpath(name).read_text(encoding="utf-8")), name


def test_every_element_that_scripts_want_is_there():
    html = PAGE.joinpath("index.html").read_text(encoding="utf-8")
    ids = set(re.findall(r'\bid="([^"]+)"', html))
    for name in (n for n in NAMES if n.endswith(".js")):
        text = PAGE.joinpath(name).read_text(encoding="utf-8")
        wanted = re.findall(r'(?:getElementById|find|write)\("([^"]+)"', text)
        assert set(wanted) <= ids, name


def test_page_is_open_and_the_engine_is_not(llm):
    with service_of(llm, api_keys=("secret",)) as service:
        client = Client(service)
        for name in NAMES:
            assert client.get(path_of(name)).status_code == 200
        for path in ("/live", "/live/snapshot", "/v1/models", "/page", "/index.html"):
            assert client.get(path).status_code == 401
        key = {"authorization": "Bearer secret"}
        assert client.get("/live/snapshot", headers=key).status_code == 200


# -- the engine ------------------------------------------------------------------------------------


def table_of(moment, table=None):
    """What the page makes of the cells: a row of owner, holders, tokens, cached for each page."""
    if table is None:
        assert moment["is_whole"]
        table = [[0, 0, 0, 0] for _ in range(sum(m["num_pages"] for m in moment["memories"]))]
    cells = moment["cells"]
    for at in range(0, len(cells), NUM_COLUMNS):
        first, count, *cell = cells[at : at + NUM_COLUMNS]
        table[first : first + count] = [cell] * count
    return table


def check_against(llm, moment, table):
    """The engine's own counts, which nobody changes meanwhile."""
    (engine,) = llm.engine.engines
    usage = engine.scheduler.usage()
    held = [cell for cell in table if cell[1]]
    assert len(held) == usage.num_held_pages
    assert sum(cell[1] for cell in held) == usage.num_table_entries
    assert sum(cell[2] for cell in held) == usage.num_filled_slots
    (memory,) = moment["memories"]
    pool = engine.scheduler.memories[0].pool
    assert memory["num_pages"] == len(table) == pool.num_pages
    assert memory["num_free"] == len(table) - len(held) == pool.num_free
    assert memory["num_evicted"] == pool.num_evicted
    assert moment["num_running"] == engine.scheduler.num_running
    assert moment["num_waiting"] == engine.scheduler.num_waiting
    assert moment["num_steps"] == engine.num_steps


class Held:
    """Steps that wait until they are let go, so that what is shown can be compared."""

    def __init__(self, llm, monkeypatch):
        self._step = llm.engine.step
        self._steps = threading.Semaphore(0)
        monkeypatch.setattr(llm.engine, "step", self._held)

    def let(self, num_steps):
        for _ in range(num_steps):
            self._steps.release()

    def _held(self, *args):
        # The loop hears questions between steps only: a step that may not be made is an empty one.
        if not self._steps.acquire(timeout=0.01):
            return []
        return self._step(*args)


async def until(is_so):
    async with asyncio.timeout(DEADLINE_S):
        while not is_so():
            await asyncio.sleep(0.005)


def test_idle_engine_is_shown_whole(client, llm):
    moment = client.get("/live/snapshot").json()
    check_against(llm, moment, table_of(moment))
    assert (moment["num_running"], moment["requests"], moment["shares"]) == (0, [], [])


def test_snapshot_agrees_with_the_engine_and_four_continuations_share(llm, monkeypatch):
    steps = Held(llm, monkeypatch)
    (engine,) = llm.engine.engines

    async def run(service, client):
        body = {"prompt": PROMPT, "n": 4} | LONG
        task = asyncio.create_task(asyncio.to_thread(client.post, "/v1/completions", body))
        await until(lambda: engine.scheduler.num_waiting == 1)
        before = engine.num_steps
        steps.let(20)
        await until(lambda: engine.num_steps == before + 20)
        moment = (await asyncio.to_thread(client.get, "/live/snapshot")).json()
        table = table_of(moment)
        check_against(llm, moment, table)
        (request,) = moment["requests"]
        assert (request["state"], request["num_sequences"]) == ("decode", 4)
        assert request["num_prompt_tokens"] == len(PROMPT)
        assert request["num_drawn_tokens"] == 4 * 20
        shared = [cell for cell in table if cell[1] == 4]
        assert len(shared) == len(PROMPT) // moment["page_size"]
        assert {cell[0] for cell in shared} == {request["number"]}
        assert moment["memories"][0]["num_copied"] == 3, "the last page of the prompt, for three"
        service.engine.refuse_all()
        steps.let(5000)
        await task

    with service_of(llm) as service:
        asyncio.run(run(service, Client(service)))


GAUGES = ("requests_running", "requests_waiting", "kv_pages", "kv_pages_held", "kv_pages_shared")


def gauges_of_map(moment):
    """What `/metrics` would say of a moment of the page map."""
    held = [cell for cell in table_of(moment) if cell[1]]
    num_pages = sum(memory["num_pages"] for memory in moment["memories"])
    assert num_pages - len(held) == sum(memory["num_free"] for memory in moment["memories"])
    num_shared = sum(cell[1] for cell in held) - len(held)
    return (moment["num_running"], moment["num_waiting"], num_pages, len(held), num_shared)


def gauges_of(metrics):
    return tuple(metrics[f"alpage_{name}",] for name in GAUGES)


def test_map_and_metrics_say_the_same_between_two_steps(llm, monkeypatch):
    steps = Held(llm, monkeypatch)
    (engine,) = llm.engine.engines

    async def run(service, client):
        body = {"prompt": [PROMPT] * 2 + [[*range(50, 90)]], "n": 3} | LONG
        task = asyncio.create_task(asyncio.to_thread(client.post, "/v1/completions", body))
        await until(lambda: engine.scheduler.num_waiting == 3)
        for num_steps in (0, 1, 7, 30):
            target = engine.num_steps + num_steps
            steps.let(num_steps)
            await until(lambda target=target: engine.num_steps == target)
            metrics = await asyncio.to_thread(client.metrics)
            moment = (await asyncio.to_thread(client.get, "/live/snapshot")).json()
            assert gauges_of(metrics) == gauges_of_map(moment)
            held = [cell for cell in table_of(moment) if cell[1]]
            waste = 1 - sum(cell[2] for cell in held) / (len(held) * moment["page_size"] or 1)
            assert metrics["alpage_kv_waste_ratio",] == pytest.approx(waste if held else 0)
        assert moment["num_running"] > 0
        assert gauges_of_map(moment)[-1] > 0
        service.engine.refuse_all()
        steps.let(5000)
        await task

    with service_of(llm) as service:
        asyncio.run(run(service, Client(service)))


def test_map_and_metrics_differ_under_load_by_what_steps_change(llm):
    """Every look is of another step; a sequence that draws takes a page a step at most."""
    num_sequences = 6

    async def run(service, client):
        before = await asyncio.to_thread(client.metrics)
        idle = (await asyncio.to_thread(client.get, "/live/snapshot")).json()
        offset = idle["num_steps"] - before["alpage_steps_total",]
        body = {"prompt": [PROMPT] * 2, "n": 3} | LONG
        task = asyncio.create_task(asyncio.to_thread(client.post, "/v1/completions", body))
        (engine,) = llm.engine.engines
        await until(lambda: sum(len(g.sequences) for g in engine.scheduler.running) == 6)
        num_apart = 0
        for _ in range(10):
            metrics = await asyncio.to_thread(client.metrics)
            moment = (await asyncio.to_thread(client.get, "/live/snapshot")).json()
            num_steps = moment["num_steps"] - offset - metrics["alpage_steps_total",]
            assert num_steps >= 0
            num_apart += num_steps > 0
            of_map, of_metrics = gauges_of_map(moment), gauges_of(metrics)
            assert of_map[:3] == of_metrics[:3] == (2, 0, of_metrics[2])
            assert 0 <= of_map[3] - of_metrics[3] <= num_sequences * num_steps
            assert of_map[4] == of_metrics[4] > 0
        assert num_apart, "the engine was at work"
        service.engine.refuse_all()
        await task

    with service_of(llm) as service:
        asyncio.run(run(service, Client(service)))


def test_stream_adds_up_to_what_is_there(llm, monkeypatch):
    """The first event is whole; the others change it into what the engine has."""
    steps = Held(llm, monkeypatch)
    (engine,) = llm.engine.engines

    async def run(service, client):
        body = {"prompt": PROMPT} | LONG
        tasks = [
            asyncio.create_task(asyncio.to_thread(client.post, "/v1/completions", body))
            for _ in range(3)
        ]
        await until(lambda: engine.scheduler.num_waiting == 3)
        look = asyncio.create_task(asyncio.to_thread(client.get, "/live"))
        for _ in range(6):
            steps.let(30)
            await asyncio.sleep(0.2)
        target = engine.num_steps
        await asyncio.sleep(0.6)
        assert engine.num_steps == target
        last = (await asyncio.to_thread(client.get, "/live/snapshot")).json()
        # The stream ends when the server does.
        service.engine.refuse_new()
        text = (await look).text
        service.engine.refuse_all()
        steps.let(9000)
        await asyncio.gather(*tasks)
        return text, last

    with service_of(llm) as service:
        text, last = asyncio.run(run(service, Client(service)))
    moments = [json.loads(part.removeprefix("data: ")) for part in text.split("\n\n") if part]
    assert len(moments) >= 5
    assert [moment["is_whole"] for moment in moments] == [True] + [False] * (len(moments) - 1)
    table, shares = None, None
    for moment in moments:
        table = table_of(moment, table)
        shares = moment.get("shares", shares)
    assert table == table_of(last)
    assert shares == last["shares"]
    assert any(len(share["owners"]) > 1 for share in shares), "prompts that are alike"
    assert len(json.dumps(moments[-1]["cells"])) < 10, "nothing changed, nothing said"


def test_engine_is_left_alone_while_nobody_looks(llm, monkeypatch):
    """And once for all who look at the same time."""
    looks = []

    def counted(*args):
        looks.append(args)
        return look(*args)

    monkeypatch.setattr("alpage.serve.http.reports.look", counted)

    async def run(service, client):
        await asyncio.to_thread(client.complete, PROMPT, max_tokens=30)
        assert looks == []
        begun_s = time.monotonic()
        watchers = [asyncio.create_task(asyncio.to_thread(client.get, "/live")) for _ in range(5)]
        await asyncio.sleep(0.9)
        service.engine.refuse_new()
        await asyncio.gather(*watchers)
        elapsed_s = time.monotonic() - begun_s
        assert 2 <= len(looks) <= 2 + elapsed_s / 0.125

    with service_of(llm) as service:
        asyncio.run(run(service, Client(service)))


def test_look_that_fails_is_the_askers(llm, monkeypatch):
    def wrong(*_):
        raise ZeroDivisionError

    with service_of(llm) as service:
        client = Client(service)
        with monkeypatch.context() as patch:
            patch.setattr("alpage.serve.http.reports.look", wrong)
            assert client.get("/live/snapshot").status_code == 500
        assert client.get("/live/snapshot").status_code == 200
        assert service.engine.state == "running"


def test_onlooker_who_leaves_is_forgotten(llm):
    async def run(service):
        client = Client(service)
        gone = asyncio.Event()
        sent = []

        async def receive():
            await gone.wait()
            return {"type": "http.disconnect"}

        async def send(message):
            sent.append(message)

        scope = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": "GET",
            "scheme": "http",
            "path": "/live",
            "raw_path": b"/live",
            "root_path": "",
            "query_string": b"",
            "headers": [],
            "client": ("127.0.0.1", 1),
            "server": ("127.0.0.1", 2),
        }
        task = asyncio.create_task(client.app(scope, receive, send))
        await until(lambda: len(sent) > 2)
        gone.set()
        await asyncio.wait_for(task, 1)

    with service_of(llm) as service:
        asyncio.run(run(service))
