"""Timings: how fast an answer came."""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, final

if TYPE_CHECKING:
    from alpage.serve import RequestOutput


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Timings:
    """What a request took.

    Attributes:
        prompt_tokens: of the prompt.
        cached_tokens: of these, found in the prefix cache and not computed.
        output_tokens: of all continuations.
        output_tokens_per_s: after the first ones, without the wait for those; None if there were
            none.
        first_token_s: from the request to its first token; None if it was stopped before.
        total_s: from the request to its last token.
    """

    prompt_tokens: int
    cached_tokens: int
    output_tokens: int
    output_tokens_per_s: float | None
    first_token_s: float | None
    total_s: float


def timings_of(output: "RequestOutput") -> Timings:
    """Return what a finished request took."""
    metrics = output.metrics
    num_tokens = sum(len(completion.token_ids) for completion in output.outputs)
    rate, first_token_s = None, None
    if metrics.first_token_s is not None:
        first_token_s = metrics.first_token_s - metrics.arrival_s
        decode_s = metrics.finished_s - metrics.first_token_s
        if decode_s > 0:
            rate = (num_tokens - len(output.outputs)) / decode_s
    return Timings(
        prompt_tokens=len(output.prompt_token_ids),
        cached_tokens=metrics.cached_tokens,
        output_tokens=num_tokens,
        output_tokens_per_s=rate,
        first_token_s=first_token_s,
        total_s=metrics.finished_s - metrics.arrival_s,
    )


def timings_line(timings: Timings, *, first_token_from_start_s: float | None = None) -> str:
    """Return timings as a line for people."""
    parts = [f"{timings.output_tokens} tokens"]
    if timings.output_tokens_per_s is not None:
        parts.append(f"{timings.output_tokens_per_s:.1f} tokens/s")
    if timings.first_token_s is not None:
        from_start = ""
        if first_token_from_start_s is not None:
            from_start = f" ({first_token_from_start_s:.2f} s from start)"
        parts.append(f"first token after {timings.first_token_s:.2f} s{from_start}")
    if timings.cached_tokens:
        parts.append(f"{timings.cached_tokens} of {timings.prompt_tokens} prompt tokens cached")
    return ", ".join(parts)


def first_token_from_start_s(output: "RequestOutput") -> float | None:
    """Return the time from this process's start to a request's first token, where it is known."""
    age_s = process_age_s()
    if age_s is None or output.metrics.first_token_s is None:
        return None
    return age_s - (time.monotonic() - output.metrics.first_token_s)


def process_age_s() -> float | None:
    """Return for how long this process has run, to 0.01 s; None where the system does not tell."""
    if sys.platform != "linux":
        return None
    try:
        # After the command's name, which may hold anything, start time is the 20th field: proc(5).
        start_ticks = int(Path("/proc/self/stat").read_text().rpartition(")")[2].split()[19])
    except OSError:
        return None
    return time.clock_gettime(time.CLOCK_BOOTTIME) - start_ticks / os.sysconf("SC_CLK_TCK")
