"""Bench: a workload replayed on an engine, and the figures that come of it."""

import resource
import sys
from collections.abc import Callable
from collections.abc import Sequence as Seq
from dataclasses import dataclass
from itertools import pairwise
from statistics import fmean, median
from typing import final

from alpage.cost import roofline_s, step_bytes, step_flops
from alpage.models import Tokenizer
from alpage.ops.kv import scale_bytes
from alpage.runtime import Ceilings, measure_ceilings
from alpage.serve.replay import Replay, StepSample, prepare, replay, warm_up
from alpage.serve.serves import Serves
from alpage.units import KiB
from alpage.workload import ModelShape
from alpage.workload_file import RequestSpec


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A replay in numbers.

    Attributes:
        wall_s: from the start to the last token.
        num_requests: requests that were answered.
        prompt_tokens: of all requests; what several continuations share counts once.
        output_tokens: of all continuations.
        output_tokens_per_s: over `wall_s`.
        total_tokens_per_s: prompt and output tokens over `wall_s`.
        ttft_s_median: from a request's arrival to its first token.
        itl_s_median: between two tokens of a continuation; None where all have a single one.
        peak_rss_bytes: memory that the process held at most, loading the model included.
        num_steps: steps that were made, by all replicas.
        kv_waste: share of the slots in held KV pages that hold no token, averaged over steps; of
            each step those of the replica that made it.
        kv_saved_by_sharing: share of the KV pages that would be held without sharing and are not,
            averaged likewise (Kwon et al. 2023, arXiv:2309.06180, section 6.3).
        num_preemptions: sequences that gave up pages to another and stopped.
        roofline_fraction: the time that the machine's ceilings allow for the useful work of all
            steps, over the time in which these were made.
        matmul_flops_per_s: the ceiling that was measured for compute.
        memory_bytes_per_s: the ceiling that was measured for reading memory.
    """

    wall_s: float
    num_requests: int
    prompt_tokens: int
    output_tokens: int
    output_tokens_per_s: float
    total_tokens_per_s: float
    ttft_s_median: float
    itl_s_median: float | None
    peak_rss_bytes: int
    num_steps: int
    kv_waste: float
    kv_saved_by_sharing: float
    num_preemptions: int
    roofline_fraction: float
    matmul_flops_per_s: float
    memory_bytes_per_s: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Footprint:
    """A model's sizes, and the bytes of an element of its weights and of its keys and values.

    With `kv_scale_bytes` besides for the keys, and for the values, of a token in a head.
    """

    shape: ModelShape
    weight_element_bytes: float
    kv_element_bytes: int
    kv_scale_bytes: int = 0


def run(
    engine: Serves,
    tokenizer: Tokenizer | None,
    specs: Seq[RequestSpec],
    *,
    seed: int,
    notify: Callable[[int], None],
) -> Figures:
    """Replay a workload's requests, then measure the ceilings to hold the result against.

    Args:
        engine: runs them, and has nothing else to do.
        tokenizer: the model's, if it has one.
        specs: the requests, the first from line 1 of a workload file.
        seed: of random prompts.
        notify: takes the number of requests that a step finished.

    Raises:
        AlpageError: the engine could not run a request; its line is named.
    """
    requests = prepare(specs, engine, tokenizer, seed=seed)
    warm_up(engine)
    seen = replay(engine, requests, notify=notify)
    # Before the ceilings, whose buffers are no part of what serving takes.
    peak_rss_bytes = _peak_rss_bytes()
    profile = engine.engines[0].runner.profile
    footprint = Footprint(
        shape=profile.shape,
        weight_element_bytes=profile.weight_element_bytes,
        kv_element_bytes=profile.kv_dtype.itemsize,
        kv_scale_bytes=scale_bytes(profile.kv_dtype),
    )
    ceilings = measure_ceilings(profile.device, profile.dtype, profile.quantization)
    return to_figures(seen, footprint, ceilings, peak_rss_bytes=peak_rss_bytes)


def to_figures(
    replay: Replay, footprint: Footprint, ceilings: Ceilings, *, peak_rss_bytes: int
) -> Figures:
    """Return the figures of a replay of at least one request."""
    num_prompt = sum(request.num_prompt_tokens for request in replay.requests)
    num_output = sum(request.num_output_tokens for request in replay.requests)
    gaps_s = [
        later - earlier
        for request in replay.requests
        for earlier, later in pairwise(request.token_times_s)
    ]
    usages = [step.usage for step in replay.steps]
    return Figures(
        wall_s=replay.wall_s,
        num_requests=len(replay.requests),
        prompt_tokens=num_prompt,
        output_tokens=num_output,
        output_tokens_per_s=num_output / replay.wall_s,
        total_tokens_per_s=(num_prompt + num_output) / replay.wall_s,
        ttft_s_median=median(r.token_times_s[0] - r.arrival_s for r in replay.requests),
        itl_s_median=median(gaps_s) if gaps_s else None,
        peak_rss_bytes=peak_rss_bytes,
        num_steps=len(replay.steps),
        kv_waste=fmean(1 - usage.num_filled_slots / usage.num_held_slots for usage in usages),
        kv_saved_by_sharing=fmean(
            1 - usage.num_held_pages / usage.num_table_entries for usage in usages
        ),
        num_preemptions=replay.num_preemptions,
        roofline_fraction=_roofline_fraction(replay.steps, footprint, ceilings),
        matmul_flops_per_s=ceilings.matmul_flops_per_s,
        memory_bytes_per_s=ceilings.memory_bytes_per_s,
    )


def _roofline_fraction(steps: Seq[StepSample], footprint: Footprint, ceilings: Ceilings) -> float:
    floor_s = sum(_floor_s(step, footprint, ceilings) for step in steps)
    return floor_s / sum(step.duration_s for step in steps)


def _floor_s(step: StepSample, footprint: Footprint, ceilings: Ceilings) -> float:
    """Return the least time that a step could take."""
    flops = step_flops(
        footprint.shape,
        num_tokens=step.num_tokens,
        num_attended_pairs=step.num_attended_pairs,
        num_logit_rows=step.num_logit_rows,
    )
    num_bytes = step_bytes(
        footprint.shape,
        weight_element_bytes=footprint.weight_element_bytes,
        kv_element_bytes=footprint.kv_element_bytes,
        kv_scale_bytes=footprint.kv_scale_bytes,
        num_kv_tokens_read=step.num_kv_tokens_read,
        num_tokens=step.num_tokens,
    )
    return roofline_s(
        flops,
        num_bytes,
        flops_per_s=ceilings.matmul_flops_per_s,
        bytes_per_s=ceilings.memory_bytes_per_s,
    )


def _peak_rss_bytes() -> int:
    """Return the most memory that this process held: macOS counts bytes, Linux KiB."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * KiB
