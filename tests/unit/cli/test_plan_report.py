"""The report of a plan: one HTML file that is whole, safe and true."""

import re
from dataclasses import replace
from html.parser import HTMLParser

import pytest

from alpage.cli.plan_moves import block_moves
from alpage.cli.plan_report import to_html
from alpage.cli.planned import planned
from alpage.cost import Precision, Step, forward_terms
from alpage.hardware import resolve_cluster
from alpage.planners import candidates, plan_inference
from alpage.shapes import named_shape
from alpage.units import format_bytes, format_seconds

INT8 = [Precision(weights="int8")]
VOID = {"meta"}


class Document(HTMLParser):
    """Notes elements with their attributes, texts, and tags that are not closed in order."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.texts, self.wrong, self._open = [], [], [], []
        self.feed(text)
        self.close()
        self.wrong += self._open

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if not self._open or self._open.pop() != tag:
            self.wrong.append(tag)

    def handle_data(self, data):
        if self._open and self._open[-1] != "style":
            self.texts.append(data)

    @property
    def text(self):
        return " ".join(" ".join(self.texts).split())


def plan_of(model, cluster, **options):
    cluster = resolve_cluster(cluster)
    options = {"batch": 64, "context": 2048, "precisions": INT8} | options
    found = plan_inference(named_shape(model), cluster, **options)
    return planned(model, cluster, found, 64)


@pytest.fixture(scope="module")
def both():
    return plan_of("palm-540b", "tpu-v4-64")


@pytest.fixture(scope="module")
def page(both):
    return to_html(both, INT8)


def test_is_well_formed_and_needs_nothing_else(page):
    document = Document(page)
    assert document.wrong == []
    assert re.findall(r"https?:|url\(|@import|src=|<script|<link|javascript:", page) == []
    for _, attributes in document.elements:
        assert attributes.get("href", "#").startswith("#")
    ids = [attributes["id"] for _, attributes in document.elements if "id" in attributes]
    assert len(ids) == len(set(ids))


def test_draws_both_phases_and_the_switch(page, both):
    document = Document(page)
    sections = [attributes["id"] for tag, attributes in document.elements if tag == "section"]
    assert sections == ["prefill", "decode", "switch"]
    for one in both.phases:
        best, other = one.choice.best, one.choice.runner_up
        for number in (
            format_seconds(best.step_s),
            f"{best.mfu:.1%}",
            format_bytes(best.memory.total_bytes),
            f"{1e3 * best.terms.products_s:,.2f}",
            f"{1e3 * other.terms.latency_s:,.2f}",
            f"{1e3 * one.remedies.together.step_s:,.2f} ms",
            f"{1e3 * one.remedies.bounds.weights_s:,.2f} ms",
            *(f"{sentence}." for sentence in one.why),
        ):
            assert number in document.text
    assert str(both.switch.before) in document.text
    assert format_seconds(both.total_s) in document.text


def test_one_phase_has_no_switch():
    one = plan_of("palm-540b", "tpu-v4-64", phase="decode")
    document = Document(to_html(one, INT8))
    sections = [attributes["id"] for tag, attributes in document.elements if tag == "section"]
    assert sections == ["decode"]
    assert document.wrong == []


def test_every_drawing_says_what_it_shows(page):
    drawings = re.findall(r"<svg[^>]*>(.*?)</svg>", page, re.DOTALL)
    assert len(drawings) == 2 * (6 + 2) + 2  # The plot comes in two widths.
    for drawing in drawings:
        assert re.match(r"<title>[^<]+</title><desc>[^<]+</desc>", drawing)


def test_plot_marks_the_plan_and_names_the_frontier(page):
    plots = re.findall(r'<svg class="plot.*?</svg>', page, re.DOTALL)
    assert len(plots) == 4
    for plot in plots[2:]:
        assert plot.count('class="chosen"') == 1
        assert "this plan: 64 × b64" in plot
        assert "32 × b1024" in plot
        for x, y in re.findall(r'c[xy]="([-\d.]+)" c[xy]="([-\d.]+)"', plot):
            assert 0 < float(x) < 920
            assert 0 < float(y) < 460


HOSTILE = '<script>alert("1")</script>&\'"</style>'


def test_names_are_text(both):
    cluster = both.cluster
    cluster = replace(
        cluster,
        name=HOSTILE,
        device=replace(cluster.device, name=HOSTILE),
        link=replace(cluster.link, name=HOSTILE),
    )
    page = to_html(replace(both, model=HOSTILE, cluster=cluster), INT8)
    document = Document(page)
    assert document.wrong == []
    assert "script" not in {tag for tag, _ in document.elements}
    assert document.text.count('<script>alert("1")</script>') >= 4


OTHERS = {
    "one device": ("gpt2", "cpu-1", {"batch": 1}),
    "nothing cut": ("llama-3-8b", "h100-3", {"batch": 3}),
    "experts on two hosts": ("mixtral-8x7b", "h100-16", {"phase": "decode"}),
    "weights gathered": ("palm-540b", "tpu-v4-64", {"prefill_batch": 512, "batch": 512}),
    "many devices": ("gpt2", "tpu-v5e-256", {"phase": "decode", "objective": "cost"}),
}


@pytest.mark.parametrize(("model", "cluster", "options"), OTHERS.values(), ids=OTHERS)
def test_other_plans_can_be_drawn(model, cluster, options):
    compute = "float32" if cluster == "cpu-1" else "bfloat16"
    precisions = [Precision(weights=compute, compute=compute, kv=compute)]
    plan = plan_of(model, cluster, **options, context=128, precisions=precisions)
    document = Document(to_html(plan, precisions))
    assert document.wrong == []
    assert not re.search(r"\bnan\b|\binf\b", document.text)


@pytest.mark.parametrize("num_new_tokens", [1, 64], ids=["decode", "prefill"])
@pytest.mark.parametrize(
    ("model", "cluster"), [("palm-62b", "tpu-v4-16"), ("mixtral-8x7b", "h100-16")]
)
def test_moves_of_a_block_add_up_to_what_a_block_more_costs(model, cluster, num_new_tokens):
    shape, cluster = named_shape(model), resolve_cluster(cluster)
    longer = replace(shape, num_layers=shape.num_layers + 1)
    step = Step(num_sequences=16, num_new_tokens=num_new_tokens, num_past_tokens=64)
    for one in candidates(shape, cluster, step, Precision()):
        args = one.attention, one.mesh, step, Precision()
        less, more = forward_terms(shape, *args), forward_terms(longer, *args)
        moves = [move for move in block_moves(one) if move.turn is not None]
        turns = {move.turn for move in moves}
        wait_s = sum(max(move.wait_s for move in moves if move.turn == turn) for turn in turns)
        transfer_s = sum(move.transfer_s for move in moves)
        assert transfer_s == pytest.approx(more.transfer_s - less.transfer_s, rel=1e-6, abs=1e-12)
        assert wait_s == pytest.approx(more.latency_s - less.latency_s, rel=1e-6, abs=1e-12)
