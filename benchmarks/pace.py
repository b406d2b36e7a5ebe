"""Pace: how long streams wait for a token while long prompts arrive, with a target and without.

    python -m benchmarks.pace smollm2-135m [--target-itl 0.03]

A few streams decode, and beside them there is always one prompt to compute: as one ends, the next
arrives. The same without any prompt shows the least that a stream could wait. All take turns.
"""

import argparse
from dataclasses import dataclass, field
from itertools import pairwise
from statistics import quantiles
from typing import final

import torch

from alpage import LLM, SamplingParams
from alpage.serve.request import Request
from alpage.serve.serves import Serves
from benchmarks.results_file import save, to_markdown

_NUM_STREAMS = 8
_STREAM_PROMPT_TOKENS = 128
_PROMPT_TOKENS = 1500
_PROMPTS_EACH_ROUND = 3
_QUIET_STEPS = 50
_SETTLING_STEPS = 5
# As in the workloads: ids that every vocabulary of the Llama family has.
_PLAIN_IDS = (1_000, 32_000)


@final
@dataclass(slots=True, kw_only=True)
class Case:
    """An engine, whether prompts arrive, and what was seen of it so far."""

    name: str
    engine: Serves
    has_prompts: bool
    gaps_s: list[float] = field(default_factory=list)
    prompt_tokens: int = 0
    wall_s: float = 0.0

    def percentile_s(self, percent: int) -> float:
        """Of the time between two tokens of a stream."""
        return quantiles(self.gaps_s, n=100, method="inclusive")[percent - 1]

    @property
    def prompt_tokens_per_s(self) -> float:
        """That were computed beside the streams."""
        return self.prompt_tokens / self.wall_s


def play(case: Case) -> None:
    """Play one round: streams that all decode, then prompts beside them, then the end."""
    engine = case.engine
    streams = [add(engine, _STREAM_PROMPT_TOKENS, num_new=5_000) for _ in range(_NUM_STREAMS)]
    while not all(stream.token_times_s for stream in streams):
        engine.step()
    for _ in range(_SETTLING_STEPS):
        engine.step()
    firsts = [len(stream.token_times_s) - 1 for stream in streams]
    if case.has_prompts:
        for _ in range(_PROMPTS_EACH_ROUND):
            prompt = add(engine, _PROMPT_TOKENS, num_new=1)
            while not prompt.is_finished:
                engine.step()
        case.prompt_tokens += _PROMPTS_EACH_ROUND * _PROMPT_TOKENS
    else:
        for _ in range(_QUIET_STEPS):
            engine.step()
    seen = [stream.token_times_s[first:] for stream, first in zip(streams, firsts, strict=True)]
    case.gaps_s += [later - earlier for times in seen for earlier, later in pairwise(times)]
    case.wall_s += seen[0][-1] - seen[0][0]
    for stream in streams:
        engine.abort(stream.request_id)


def add(engine: Serves, num_tokens: int, *, num_new: int) -> Request:
    """Add a request of random tokens, which no cache knows."""
    params = SamplingParams(temperature=0, max_tokens=num_new, ignore_eos=True)
    return engine.add(torch.randint(*_PLAIN_IDS, (num_tokens,)).tolist(), params)


def main() -> None:
    """Play rounds in turns, print and save."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model")
    parser.add_argument("--target-itl", type=float, default=0.03, help="seconds")
    parser.add_argument("--rounds", type=int, default=5)
    asked = parser.parse_args()
    torch.manual_seed(0)
    free = LLM(asked.model, kv_memory="2GB").engine
    paced = LLM(asked.model, kv_memory="2GB", target_itl_s=asked.target_itl).engine
    cases = [
        Case(name="no prompts", engine=free, has_prompts=False),
        Case(name="no target", engine=free, has_prompts=True),
        Case(name=f"target {asked.target_itl * 1e3:.0f} ms", engine=paced, has_prompts=True),
    ]
    for _ in range(asked.rounds):
        for case in cases:
            play(case)
    figures = [
        {
            "name": case.name,
            "itl_s_p50": case.percentile_s(50),
            "itl_s_p99": case.percentile_s(99),
            "prompt_tokens_per_s": case.prompt_tokens_per_s,
            "stream_tokens_per_s": len(case.gaps_s) / case.wall_s,
        }
        for case in cases
    ]
    rows = [
        {
            f"{_NUM_STREAMS} streams beside": case.name,
            "between tokens, p50": f"{case.percentile_s(50) * 1e3:.1f} ms",
            "p99": f"{case.percentile_s(99) * 1e3:.1f} ms",
            "prompt tokens/s": f"{case.prompt_tokens_per_s:,.0f}" if case.has_prompts else "-",
            "streams' tokens/s": f"{len(case.gaps_s) / case.wall_s:,.0f}",
        }
        for case in cases
    ]
    table = to_markdown(rows)
    print(table)
    save("pace", {"model": asked.model, "target_itl_s": asked.target_itl, "rows": figures}, table)


if __name__ == "__main__":
    main()
