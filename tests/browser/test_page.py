"""The page in a browser: what people see and do. Skipped where there is no Chromium."""

import json
import shutil
import threading
import time

import httpx
import pytest

from chromium import PROGRAM, browser
from tiny_llama import make_tiny_llama
from tiny_server import DEADLINE_S, process_of

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed"),
]

KEY = "a-key"
ENDLESS = """(() => {
    const ask = window.fetch;
    const endless = (body) => body && JSON.stringify({...JSON.parse(body), ignore_eos: true});
    window.fetch = (path, options) => ask(path, {...options, body: endless(options.body)});
})()"""
WORDS = "Hello there"
HOSTILE = """<img src=x onerror=alert(1)> **bold** `<b>` [x](javascript:alert(1))

1. one
2. two

```
<script>
```"""


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    make_tiny_llama(path, max_position_embeddings=4096)
    return path


@pytest.fixture(scope="module")
def server(model):
    with process_of(model) as process:
        yield process


@pytest.fixture(scope="module")
def program(tmp_path_factory):
    """One browser for all tests; its home is empty, and is gone afterwards."""
    home = tmp_path_factory.mktemp("home")
    with browser(home) as found:
        yield found
    shutil.rmtree(home, ignore_errors=True)


@pytest.fixture
def page(program, server):
    """The page, as if nobody had been there; nothing may go wrong in it."""
    visit(program, server)
    yield program
    # Of a page that names no icon, as the one before this one, the browser asks for it by itself.
    assert [words for words in program.complaints if "/favicon.ico" not in words] == []


def visit(program, server, **kept):
    program.look(width=1200, height=800)
    program.open(f"{server.url}/version")
    entries = json.dumps({f"alpage.{name}": json.dumps(value) for name, value in kept.items()})
    program.run(
        f"localStorage.clear(); Object.entries({entries}).forEach(e => localStorage.setItem(...e))"
    )
    program.complaints.clear()
    program.open(f"{server.url}/")
    program.until("document.querySelector('#pulse').textContent")
    # A random model would end its answers at random.
    program.run(ENDLESS)


def say(page, words):
    page.run("document.querySelector('#prompt').focus()")
    page.type(words)
    page.press("Enter", 13, "\r")


def text_of(page, selector):
    return page.run(f"document.querySelector({json.dumps(selector)}).textContent")


def set_knob(page, name, value):
    page.run(
        f"(() => {{ const knob = document.querySelector('[name={name}]');"
        f" knob.value = {json.dumps(value)};"
        " knob.dispatchEvent(new Event('input', {bubbles: true})); })()"
    )


IS_DONE = "document.querySelector('#stop').hidden && document.querySelector('.assistant .words')"
LAST = "[...document.querySelectorAll('.assistant')].at(-1)"


def test_chat_streams_and_is_kept(page):
    set_knob(page, "max_tokens", "24")
    set_knob(page, "seed", "7")
    say(page, WORDS)
    page.until(f"{IS_DONE}?.textContent.includes('first after')")
    assert text_of(page, ".user .prose") == WORDS
    answer = text_of(page, ".assistant .prose")
    assert answer
    words = text_of(page, ".assistant .words")
    assert "tokens" in words
    assert "tokens/s" in words
    page.call("Page.reload")
    page.until("document.querySelector('.assistant')")
    assert text_of(page, ".assistant .prose") == answer
    assert page.run("document.querySelector('[name=seed]').value") == "7"
    page.run("document.querySelector('#new-chat').click()")
    assert page.run("document.querySelectorAll('.message').length") == 0
    assert page.run("localStorage.getItem('alpage.conversation')") == "[]"


def test_answer_is_stopped_and_made_again(page, server):
    set_knob(page, "max_tokens", "3900")
    say(page, WORDS)
    page.until("document.querySelector('.assistant .prose')?.textContent.length > 20")
    page.run("document.querySelector('#stop').click()")
    page.until(f"{IS_DONE}?.textContent.includes('stopped')")
    assert text_of(page, ".assistant .prose")
    end_s = time.monotonic() + DEADLINE_S
    while httpx.get(f"{server.url}/live/snapshot").json()["num_running"]:
        assert time.monotonic() < end_s, "the engine goes on"
    set_knob(page, "max_tokens", "5")
    page.run("[...document.querySelectorAll('.assistant button')].at(-1).click()")
    page.until(f"{IS_DONE}?.textContent.startsWith('5 tokens')")
    assert page.run("document.querySelectorAll('.assistant').length") == 1


def test_refusal_is_told_in_the_servers_words(page, server):
    set_knob(page, "max_tokens", "1000000")
    say(page, WORDS)
    page.until("document.querySelector('.assistant .error')?.hidden === false")
    # The browser's own word of the status is no fault of the page.
    page.complaints.clear()
    body = {"messages": [{"role": "user", "content": WORDS}], "max_tokens": 1_000_000}
    expected = httpx.post(f"{server.url}/v1/chat/completions", json=body).json()["error"]
    assert text_of(page, ".assistant .error") == expected["message"]
    set_knob(page, "max_tokens", "4")
    page.run("[...document.querySelectorAll('.assistant button')].at(-1).click()")
    page.until(f"{IS_DONE}?.textContent.startsWith('4 tokens')")
    assert page.run("document.querySelector('.assistant .error').hidden")


def test_text_is_never_taken_as_html(page, server):
    messages = [{"role": role, "content": HOSTILE} for role in ("user", "assistant")]
    visit(page, server, conversation=messages)
    page.until("document.querySelector('.assistant')")
    assert text_of(page, ".user .prose") == HOSTILE
    assert (
        page.run("document.querySelectorAll('.messages :is(img, script, a, b, iframe)').length")
        == 0
    )
    assert text_of(page, ".assistant .prose strong") == "bold"
    assert text_of(page, ".assistant .prose p code") == "<b>"
    assert text_of(page, ".assistant .prose pre code") == "<script>"
    assert page.run("document.querySelectorAll('.assistant .prose ol > li').length") == 2


def test_map_agrees_with_the_engine(page, server):
    """Under load and after it: figures, words of pages, and what is shared."""
    body = {"prompt": [5] * 64, "n": 4, "max_tokens": 3000, "ignore_eos": True, "stream": True}
    is_over = threading.Event()

    def load():
        with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
            for _ in answer.iter_lines():
                if is_over.is_set():
                    return

    thread = threading.Thread(target=load)
    thread.start()
    try:
        page.until("document.querySelector('#running').textContent === '1'")
        page.until("document.querySelector('#requests').textContent.includes('decode ×4')")
        page.until("Number(document.querySelector('#rate').textContent.replace(',', '')) > 0")
        cells = httpx.get(f"{server.url}/live/snapshot").json()["cells"]
        first = next(cells[at] for at in range(0, len(cells), 6) if cells[at + 3] == 4)
        page.run("document.querySelector('#map').focus()")
        for _ in range(first + 1):
            page.press("ArrowRight", 39)
        page.until("document.querySelector('#readout').textContent.includes('shared by 4')")
        assert text_of(page, "#readout").startswith(f"Page {first}: request ")
        assert "16 of 16 tokens" in text_of(page, "#readout")
    finally:
        is_over.set()
        thread.join()
    page.until("document.querySelector('#running').textContent === '0'")
    told = httpx.get(f"{server.url}/live/snapshot").json()
    (memory,) = told["memories"]
    assert memory["num_free"] == memory["num_pages"]
    label = page.until(
        "(label => label.includes(' 0 held') && label)"
        "(document.querySelector('#map').getAttribute('aria-label'))"
    )
    num_cached = sum(told["cells"][1::6])
    num_free = memory["num_pages"] - num_cached
    assert f"{num_cached} cached, {num_free} free" in label
    assert f"of {memory['num_pages']:,} held" in text_of(page, "#held-words")
    assert text_of(page, "#copied") == f"{memory['num_copied']:,}"


def test_pointer_tells_a_page(page):
    page.until("document.querySelector('#map').height > 100")
    x, y = page.run(
        "(box => [box.x + 5, box.y + 5])(document.querySelector('#map').getBoundingClientRect())"
    )
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=x, y=y)
    page.until("document.querySelector('#readout').textContent.startsWith('Page 0: ')")


@pytest.mark.parametrize("width", [320, 390, 700, 1000])
@pytest.mark.parametrize("view", ["chat", "engine"])
def test_page_fits_its_window(page, server, width, view):
    messages = [{"role": "user", "content": "w" * 300}, {"role": "assistant", "content": HOSTILE}]
    visit(page, server, conversation=messages)
    page.look(width=width, height=640)
    page.run(f"document.querySelector('.views [data-view={view}]').click()")
    page.run("document.querySelector('#sampling').open = true")
    # `main > section`: each scrolls by itself, and upwards only.
    assert page.run("document.documentElement.scrollWidth") == width
    assert (
        page.run(
            "[...document.querySelectorAll('.scroll, .engine')]"
            ".filter(e => e.clientWidth && e.scrollWidth > e.clientWidth).length"
        )
        == 0
    )
    shown = page.run(
        "['.chat', '.engine'].filter(s => document.querySelector(s).clientWidth).join()"
    )
    assert shown == (".chat,.engine" if width == 1000 else f".{view}")


def test_nobody_looks_where_nothing_is_seen(page):
    page.look(width=390, height=640)
    page.until("document.querySelector('#pulse').textContent === 'paused'")
    page.run("document.querySelector('.views [data-view=engine]').click()")
    page.until("document.querySelector('#pulse').textContent === 'live'")


def test_key_is_asked_for_and_kept(program, model):
    with process_of(model, "--api-key", KEY) as server:
        visit(program, server)
        program.until("document.querySelector('#key-dialog').open")
        program.run("document.querySelector('#key-cancel').click()")
        time.sleep(1.5)
        assert not program.run("document.querySelector('#key-dialog').open"), "asked over and over"
        program.run("document.querySelector('#key-open').click()")
        assert text_of(program, "#key-words").startswith("Incorrect API key")
        program.run("document.querySelector('#key').focus()")
        program.type(KEY)
        program.press("Enter", 13, "\r")
        program.until("document.querySelector('#pulse').textContent === 'live'")
        program.until("document.querySelector('#model').textContent")
        set_knob(program, "max_tokens", "4")
        say(program, WORDS)
        program.until(f"{IS_DONE}?.textContent.startsWith('4 tokens')")
        program.open(f"{server.url}/")
        program.until("document.querySelector('#pulse').textContent === 'live'")
        assert not program.run("document.querySelector('#key-dialog').open")


def test_server_that_ends_is_noticed(program, model):
    with process_of(model) as server:
        visit(program, server)
        program.until("document.querySelector('#pulse').textContent === 'live'")
        server.end()
        program.until("document.querySelector('#pulse').dataset.state === 'broken'")
        program.until("document.querySelector('#pulse').textContent.includes('reached')")
