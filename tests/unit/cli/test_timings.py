"""Timings: figures and their line."""

import subprocess
import sys
import time

import pytest

from alpage.cli.timings import Timings, timings_line, timings_of
from alpage.serve import CompletionOutput, RequestOutput
from alpage.serve.outputs import RequestMetrics


def output(num_tokens, *, first_token_s, finished_s, num_outputs=1, cached_tokens=0):
    completion = CompletionOutput(
        index=0, text="", token_ids=range(num_tokens), finish_reason="length"
    )
    metrics = RequestMetrics(
        arrival_s=10.0,
        first_token_s=first_token_s,
        finished_s=finished_s,
        cached_tokens=cached_tokens,
    )
    return RequestOutput(
        request_id="0",
        prompt=None,
        prompt_token_ids=range(8),
        outputs=[completion] * num_outputs,
        metrics=metrics,
    )


def test_rate_leaves_out_the_first_tokens():
    timings = timings_of(output(21, first_token_s=11.5, finished_s=13.5, num_outputs=2))
    assert timings == Timings(
        prompt_tokens=8,
        cached_tokens=0,
        output_tokens=42,
        output_tokens_per_s=20.0,
        first_token_s=1.5,
        total_s=3.5,
    )


@pytest.mark.parametrize("first_token_s", [11.0, None])
def test_no_rate_without_a_second_token(first_token_s):
    timings = timings_of(output(1, first_token_s=first_token_s, finished_s=11.0))
    assert timings.output_tokens_per_s is None


def test_line_says_what_is_known():
    known = output(129, first_token_s=10.09, finished_s=14.09, cached_tokens=6)
    assert timings_line(timings_of(known), first_token_from_start_s=2.444) == (
        "129 tokens, 32.0 tokens/s, first token after 0.09 s (2.44 s from start), "
        "6 of 8 prompt tokens cached"
    )
    stopped = output(0, first_token_s=None, finished_s=10.0)
    assert timings_line(timings_of(stopped)) == "0 tokens"


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells when a process started")
def test_age_begins_with_the_process():
    """Not with the interpreter's first line: imports before it count."""
    begin_s = time.monotonic()
    code = (
        "import time; time.sleep(0.2)\n"
        "from alpage.cli.timings import process_age_s; print(process_age_s())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, check=True)
    assert 0.2 <= float(done.stdout) <= time.monotonic() - begin_s + 0.02
