"""The report of a load: one HTML file that is whole and safe; and the table."""

import re

import pytest
from test_plan_report import HOSTILE, Document

from alpage.cli.load_report import to_html
from alpage.cli.load_table import Run, to_json, to_table
from alpage.load import Slo, arrival_times, to_figures
from alpage.load.outcome import Outcome

SLO = Slo(ttft_s=0.3, itl_s=0.02)


def run_of(rate, *, failure=None):
    outcomes = [
        Outcome(
            arrival_s=arrival_s,
            sent_s=arrival_s,
            ended_s=arrival_s + 1,
            part_times_s=[[arrival_s + 0.25 + 0.01 * place for place in range(5)]],
            prompt_tokens=7,
            output_tokens=5,
            failure=failure,
        )
        for arrival_s in arrival_times(40, rate, seed=1)
    ]
    return Run(figures=to_figures(outcomes, rate=rate, slo=SLO), outcomes=outcomes)


RUNS = {
    "one": [run_of(2.0)],
    "rates": [run_of(2.0), run_of(8.0), run_of(float("inf"))],
    "all failed": [run_of(2.0, failure=HOSTILE)],
}


@pytest.mark.parametrize("runs", RUNS.values(), ids=RUNS)
def test_page_is_whole_and_needs_nothing_else(runs):
    page = to_html(HOSTILE, runs, SLO)
    document = Document(page)
    assert document.wrong == []
    assert re.findall(r"https?:|url\(|@import|src=|<script|<link|javascript:", page) == []
    assert HOSTILE in document.text
    for x, y in re.findall(r'cx="([^"]+)" cy="([^"]+)"', page):
        assert 0 <= float(x) <= 920
        assert 0 <= float(y) <= 300


def test_page_has_the_figures():
    document = Document(to_html("m", RUNS["rates"], SLO))
    for text in ("All at once", "8 requests/s", "250 ms (250 to 250)", "10.0 ms", "within the SLO"):
        assert text in document.text


def test_table_of_one_run(golden):
    golden("load_one.txt", to_table(RUNS["one"]) + "\n")


def test_table_of_rates(golden):
    golden("load_rates.txt", to_table(RUNS["rates"]) + "\n")


def test_failures_are_told():
    assert "failed: " in to_table(RUNS["all failed"])
    (run,) = to_json("m", RUNS["all failed"])["runs"]
    assert run["failures"] == {HOSTILE: 40}
    assert run["latencies"]["ttft_s"] is None
