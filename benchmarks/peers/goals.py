"""Goals: what alpage is to reach beside the peers, and what it reaches."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from statistics import median
from typing import Final, TypeAlias, final

from benchmarks.peers.engines import ENGINES
from benchmarks.peers.turns import Turn

# Round, engine, workload.
_Key: TypeAlias = tuple[int, str, str]

_PEERS = tuple(engine.name for engine in ENGINES.values() if not engine.is_own)
_PEERS_16_BIT = tuple(name for name in _PEERS if ENGINES[name].is_16_bit)
_CTRANSLATE2 = ("ctranslate2", "ctranslate2-int8")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Goal:
    """A figure of alpage over the best of some peers.

    Attributes:
        name: what is compared.
        workload: that it is a figure of.
        figure: its name.
        ours: which of our engines.
        peers: the best of which counts.
        wanted: the ratio that is to be reached; None: none is named.
        is_pace: whether more is better.
    """

    name: str
    workload: str
    figure: str
    ours: str
    peers: tuple[str, ...]
    wanted: float | None
    is_pace: bool = False


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Ratio:
    """What came of a goal.

    Attributes:
        goal: what was compared.
        ours: median of our figure.
        best: median of the best peer's figure.
        peer: that was the best, in most rounds.
        ratios: of each round, our figure over the best peer's of that round.
    """

    goal: Goal
    ours: float
    best: float
    peer: str
    ratios: tuple[float, ...]

    @property
    def ratio(self) -> float:
        """Median over the rounds."""
        return median(self.ratios)

    @property
    def is_reached(self) -> bool | None:
        """Whether it is what was wanted; None: nothing is."""
        if self.goal.wanted is None:
            return None
        if self.goal.is_pace:
            return self.ratio >= self.goal.wanted
        return self.ratio <= self.goal.wanted


_w1 = partial(
    Goal,
    name="W1 output tokens/s",
    workload="w1",
    figure="output_tokens_per_s",
    is_pace=True,
)
_w2_gap = partial(Goal, name="W2 time between tokens, s", workload="w2", figure="itl_s")
_w2_first = partial(Goal, name="W2 time to first token, s", workload="w2", figure="ttft_s")
_w3 = partial(Goal, name="W3, s", workload="w3", figure="wall_s", peers=("vllm",))
_w4 = partial(Goal, name="W4, s", workload="w4", figure="wall_s", peers=("openvino",))
_beams = {
    width: partial(Goal, name=f"beams, width {width}, s", workload=f"beam{width}", figure="wall_s")
    for width in (4, 8)
}
GOALS: Final = (
    _w1(ours="alpage", peers=_PEERS_16_BIT, wanted=1.4),
    _w1(ours="alpage-int8", peers=_PEERS, wanted=2.2),
    _w1(ours="alpage-int8-kv", peers=_PEERS, wanted=2.2),
    _w1(ours="alpage-int4", peers=_PEERS, wanted=None),
    _w2_gap(ours="alpage", peers=_PEERS_16_BIT, wanted=None),
    _w2_gap(ours="alpage-int8", peers=("llama.cpp-q8_0",), wanted=0.78),
    _w2_gap(ours="alpage-int4", peers=("llama.cpp-q4_1",), wanted=1.0),
    _w2_first(ours="alpage", peers=_PEERS, wanted=0.8),
    _w2_first(ours="alpage-int8", peers=_PEERS, wanted=0.5),
    _w3(ours="alpage", wanted=0.7),
    _w3(ours="alpage-int8", wanted=0.45),
    _w3(ours="alpage-int8-kv", wanted=0.45),
    _w4(ours="alpage", wanted=0.7),
    _w4(ours="alpage-int8", wanted=0.5),
    _w4(ours="alpage-int8-kv", wanted=0.5),
    *(of(ours="alpage", peers=("vllm",), wanted=0.1) for of in _beams.values()),
    *(of(ours="alpage", peers=_CTRANSLATE2, wanted=1.0) for of in _beams.values()),
    *(of(ours="alpage-int8", peers=_CTRANSLATE2, wanted=None) for of in _beams.values()),
)


def to_ratios(turns: Sequence[Turn], goals: Sequence[Goal] | None = None) -> list[Ratio]:
    """Return what came of the goals of which both sides were measured in some round.

    Args:
        turns: of all rounds.
        goals: None: `GOALS` and those of the rates that are there.
    """
    if goals is None:
        goals = [*GOALS, *_online_goals({turn.workload for turn in turns})]
    figures = {(turn.round, turn.engine, turn.workload): turn.figures for turn in turns}
    rounds = sorted({turn.round for turn in turns})
    return [found for goal in goals if (found := _to_ratio(goal, figures, rounds)) is not None]


def _to_ratio(
    goal: Goal, figures: Mapping[_Key, Mapping[str, float]], rounds: Sequence[int]
) -> Ratio | None:
    def of(number: int, engine: str) -> float | None:
        return figures.get((number, engine, goal.workload), {}).get(goal.figure)

    better: Callable[..., tuple[float, str]] = max if goal.is_pace else min
    pairs: list[tuple[float, float, str]] = []
    for number in rounds:
        ours = of(number, goal.ours)
        theirs = [(value, peer) for peer in goal.peers if (value := of(number, peer)) is not None]
        if ours is not None and theirs:
            pairs.append((ours, *better(theirs)))
    if not pairs:
        return None
    names = [peer for _, _, peer in pairs]
    return Ratio(
        goal=goal,
        ours=median(ours for ours, _, _ in pairs),
        best=median(best for _, best, _ in pairs),
        peer=max(names, key=names.count),
        ratios=tuple(ours / best for ours, best, _ in pairs),
    )


def _online_goals(workloads: set[str]) -> Iterator[Goal]:
    rates = sorted(
        (name for name in workloads if name.startswith("w5 ")),
        key=lambda name: float(name.removeprefix("w5 ").removesuffix("/s")),
    )
    for ours in ("alpage", "alpage-int8"):
        for workload in rates:
            for point in ("p50", "p99"):
                yield Goal(
                    name=f"{workload.replace('w5', 'W5')} {point}, s a token",
                    workload=workload,
                    figure=f"normalised_{point}_s",
                    ours=ours,
                    peers=("vllm",),
                    wanted=0.6,
                )
        yield Goal(
            name="W5 saturation, requests/s",
            workload="w5",
            figure="saturation_per_s",
            ours=ours,
            peers=("vllm",),
            wanted=1.5,
            is_pace=True,
        )
