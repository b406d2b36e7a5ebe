"""Layout scenarios: conversations, batches, blocks and clusters that the paper's tables leave out.

What Pope et al. 2022 (arXiv:2211.05102) say about them stands beside what is modelled.
"""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Final

from alpage.cost import Precision, Step
from alpage.errors import OutOfMemory
from alpage.hardware import resolve_cluster
from alpage.layout import LAYOUTS
from alpage.planners import Candidate, choose_layout
from alpage.shapes import named_shape
from alpage.workload import ModelShape
from benchmarks.pope_2022 import CHAT_S, FIGURE_7, GATHER_FROM_TOKENS, OFFLINE_MFU, SERIAL_SHARE
from benchmarks.results_file import Row

_PALM: Final = named_shape("palm-540b")
_INT8: Final = Precision(weights="int8")
_BFLOAT16: Final = Precision()
_GATHERED: Final = ("wg_x", "wg_xy", "wg_xyz")
_SEQUENCE: Final = 2048
_TERMS: Final = ("products", "attention", "transfer", "latency", "gather")
_EMPTY: Final[Row] = dict.fromkeys(
    ("chosen", "weights", "step, modelled", "MFU", "device-ms a token", *_TERMS, "memory"), ""
) | {"chosen": "nothing fits"}


def scenario_rows() -> Iterator[Row]:
    """What the paper says in words."""
    int8, bfloat16 = (_fastest(_step(64, 1, 2048), one) for one in (_INT8, _BFLOAT16))
    low, high = GATHER_FROM_TOKENS
    for scenario, paper, ours in (
        ("64 tokens in after 1920 cached, 64 out", duration(CHAT_S), duration(chat_s())),
        ("MFU of 1984 tokens in, 64 out", f"{OFFLINE_MFU:.0%}", f"{offline_mfu():.1%}"),
        ("serial block, decode at batch 512", f"{SERIAL_SHARE:+.0%}", f"{serial_share():+.1%}"),
        ("saved by int8, decode at batch 64", "8.4 ms", duration(bfloat16.step_s - int8.step_s)),
        ("tokens to gather from", f"{low:,} to {high:,}", f"{gather_from_tokens():,}"),
    ):
        yield {"scenario": scenario, "paper": paper, "ours": ours}


def chat_s() -> float:
    """Return the seconds to prefill one conversation and decode for it among 64."""
    decodes = (_fastest(_step(64, 1, past), _INT8).step_s for past in range(1984, 2048))
    return _fastest(_step(1, 64, 1920), _INT8).step_s + sum(decodes)


def offline_mfu() -> float:
    """Return the share of the peak of 1984 tokens in and 64 out at batch 512."""
    prefill = _fastest(_step(512, 1984, 0), _BFLOAT16)
    decodes = [_fastest(_step(512, 1, past), _BFLOAT16) for past in range(1984, 2048)]
    steps = [prefill, *decodes]
    return sum(one.mfu * one.step_s for one in steps) / sum(one.step_s for one in steps)


def serial_share() -> float:
    """Return what decoding at batch 512 takes more where the feed-forward follows attention."""
    decode, serial = _step(512, 1, 2048), replace(_PALM, is_parallel=False)
    parallel_s = _fastest(decode, _BFLOAT16).step_s
    return _fastest(decode, _BFLOAT16, shape=serial).step_s / parallel_s - 1


def figure_7_rows() -> Iterator[Row]:
    """PaLM 540B prefilling sequences of 2048 tokens, each family in its best layout and mesh."""
    for num_tokens, paper in FIGURE_7.items():
        step = _step(num_tokens // _SEQUENCE, _SEQUENCE, 0)
        stationary, gathered = (
            _fastest(step, _BFLOAT16, layouts) for layouts in (("ws_2d",), _GATHERED)
        )
        yield {
            "tokens": f"{num_tokens:,}",
            "stationary, paper": f"{paper[0]:.0%}",
            "stationary, ours": stationary.mfu,
            "gathered, paper": f"{paper[1]:.0%}",
            "gathered, ours": gathered.mfu,
            "ours are": f"{label(stationary)} on {stationary.mesh}; "
            f"{label(gathered)} on {gathered.mesh}",
        }


def cluster_rows() -> Iterator[Row]:
    """PaLM 540B on 64 GPUs and on 8, in bfloat16 where that fits and latency is not all."""
    both = (_BFLOAT16, _INT8)
    steps = (
        ("prefill of 1", _step(1, _SEQUENCE, 0), (_INT8,)),
        ("decode of 64", _step(64, 1, _SEQUENCE), (_INT8,)),
        ("prefill of 512", _step(512, _SEQUENCE, 0), both),
        ("decode of 512", _step(512, 1, _SEQUENCE), both),
    )
    for name in ("tpu-v4-64", "h100-64", "h200-64", "h100-8", "h200-8"):
        for phase, step, precisions in steps:
            best = _first_fitting(name, step, precisions)
            yield {"cluster": name, "step": phase} | (_EMPTY if best is None else _planned(best))


def gather_from_tokens() -> int:
    """Return the least tokens, in steps of 8 sequences, that are faster with weights gathered."""
    for num_sequences in range(8, 513, 8):
        step = _step(num_sequences, _SEQUENCE, 0)
        stationary, gathered = (
            _fastest(step, _BFLOAT16, layouts) for layouts in (("ws_2d",), _GATHERED)
        )
        if gathered.step_s < stationary.step_s:
            return step.num_tokens
    raise AssertionError("gathering is the faster for large batches")


def label(candidate: Candidate) -> str:
    """Return the names of a candidate's layout and of its sharding of attention."""
    return f"{candidate.layout.name}, {candidate.attention_sharding}"


def duration(seconds: float) -> str:
    """Return seconds as people read them."""
    return f"{seconds:.2f} s" if seconds >= 1 else f"{1e3 * seconds:.1f} ms"


def _first_fitting(name: str, step: Step, precisions: Sequence[Precision]) -> Candidate | None:
    for precision in precisions:
        try:
            return choose_layout(_PALM, resolve_cluster(name), step, precisions=[precision]).best
        except OutOfMemory:
            continue
    return None


def _planned(best: Candidate) -> Row:
    terms = best.terms
    return {
        "chosen": f"{label(best)} on {best.mesh}",
        "weights": best.precision.weights,
        "step, modelled": duration(best.step_s),
        "MFU": best.mfu,
        "device-ms a token": f"{1e3 * best.device_s_per_token:.3g}",
        "products": duration(terms.products_s),
        "attention": duration(terms.attention_s),
        "transfer": duration(terms.transfer_s),
        "latency": duration(terms.latency_s),
        "gather": duration(terms.gather_s),
        "memory": f"{best.memory.total_bytes / 1e9:.1f} GB",
    }


def _fastest(
    step: Step,
    precision: Precision,
    layouts: Collection[str] = tuple(LAYOUTS),
    *,
    shape: ModelShape = _PALM,
) -> Candidate:
    choice = choose_layout(shape, resolve_cluster("tpu-v4-64"), step, precisions=[precision])
    return next(one for one in choice.candidates if one.layout.name in layouts)


def _step(num_sequences: int, num_new_tokens: int, num_past_tokens: int) -> Step:
    return Step(
        num_sequences=num_sequences,
        num_new_tokens=num_new_tokens,
        num_past_tokens=num_past_tokens,
    )
