"""Remedies: what a step would take if what nobody has were there, and if nothing were communicated.

A remedy is priced by the model of cost that chose the step, each alone and then all together:

- `overlap`: products run while the activations beside them move, piece by piece (looped collective
  products; Wang et al., ASPLOS 2023). Of products and transfers the shorter vanishes: no first
  piece is charged that nothing hides, so this is the most that can be saved.
- `one_shot`: in every round a rank sends straight to each of its group, and no program runs at the
  hops between (`Efficiency.hop_s` is gone). A round waits once for the link: behind a switch for
  one hop, on a torus or a ring for the hops to the farthest member, which no program shortens. The
  bytes stay; an all-reduce is two rounds.
- `int8_weights`, `int8_kv`: read in 8 bits, where they have more.
- `other_layout`: the fastest of all candidates for the chosen one, among them those that attend
  over heads and only a part of the batch, which the paper did not try.
- `together`: the candidate that is fastest with all of these.

The bounds are of the chosen layout and dtypes, so with other ones a step may go below them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import final

from alpage.cost import (
    DTYPE_BYTES,
    EFFICIENCIES,
    Precision,
    collective_time,
    forward_terms,
    padded_sizes,
    round_wait_s,
    step_flops,
)
from alpage.hardware import Mesh
from alpage.layout import Change, Collective, block_rounds, ends_changes
from alpage.planners.layouts import Candidate, Choice, candidates, priced


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Remedy:
    """One of them.

    Attributes:
        name: as in the list above.
        step_s: seconds of the step with it.
        saved_s: seconds less than the chosen step takes.
        candidate: what runs then.
    """

    name: str
    step_s: float
    saved_s: float
    candidate: Candidate


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Bounds:
    """What remains of a step when nothing is communicated.

    Attributes:
        compute_s: arithmetic, at the efficiency of large products.
        weights_s: reading the weights.
        kv_s: reading keys and values, and scores that reach memory.
        roofline_s: products and attention at the efficiency of their own sizes, each limited by its
            arithmetic or by its reads, whichever takes longer.
    """

    compute_s: float
    weights_s: float
    kv_s: float
    roofline_s: float

    @property
    def additive_s(self) -> float:
        """Arithmetic and reads one after the other.

        Of PaLM 540B decoding on 64 TPU v4 this is 14.0 ms. It would be 14.7 with arithmetic at the
        65 % of the peak that products of 64 rows reach, and without what is read beside weights and
        keys: heads that are padded, copies of the key and value projections, and scores.
        """
        return self.compute_s + self.weights_s + self.kv_s


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Remedies:
    """What could be saved of a step.

    Attributes:
        each: the remedies alone.
        together: all of them.
        bounds: what is left of the step without communication.
    """

    each: tuple[Remedy, ...]
    together: Remedy
    bounds: Bounds


def remedies(choice: Choice) -> Remedies:
    """Return what each remedy would save of the chosen step, and what is not communication."""
    best = choice.best
    precision = best.precision
    lightest = replace(
        precision, weights=_in_8_bits(precision.weights), kv=_in_8_bits(precision.kv)
    )
    found = [
        _remedy("overlap", best, best, best.step_s - _overlap_s(best)),
        _remedy("one_shot", best, best, best.step_s - best.terms.latency_s + _one_shot_s(best)),
    ]
    for name, other in (
        ("int8_weights", replace(precision, weights=lightest.weights)),
        ("int8_kv", replace(precision, kv=lightest.kv)),
    ):
        if other != precision:
            lighter = _with(best, other)
            found.append(_remedy(name, best, lighter, lighter.step_s))
    # In phases that share a mesh the chosen one need not be among all others.
    fastest = min((best, *_fitting(best, precision)), key=lambda one: one.step_s)
    found.append(_remedy("other_layout", best, fastest, fastest.step_s))
    lighter_ones = (_with(best, lightest), *_fitting(best, lightest))
    together = [
        _remedy(
            "together",
            best,
            one,
            one.step_s - _overlap_s(one) - one.terms.latency_s + _one_shot_s(one),
        )
        for one in lighter_ones
    ]
    return Remedies(
        each=tuple(found),
        together=min(together, key=lambda one: one.step_s),
        bounds=_bounds(best),
    )


def _remedy(name: str, best: Candidate, candidate: Candidate, step_s: float) -> Remedy:
    return Remedy(name=name, step_s=step_s, saved_s=best.step_s - step_s, candidate=candidate)


def _bounds(candidate: Candidate) -> Bounds:
    """Return what a step takes at least, in its layout."""
    mesh, step = candidate.mesh, candidate.step
    device = mesh.cluster.device
    flops = step_flops(
        candidate.shape,
        num_tokens=step.num_tokens,
        num_attended_pairs=step.num_tokens * step.num_past_tokens
        + step.num_sequences * step.num_new_tokens * (step.num_new_tokens + 1) // 2,
        num_logit_rows=step.num_sequences,
    )
    peak = device.flops_per_s_of(candidate.precision.compute) * mesh.num_ranks
    # A device whose arithmetic takes no time only reads.
    reader = replace(device, flops_per_s=dict.fromkeys(device.flops_per_s, 1e30))
    reading = forward_terms(
        candidate.shape,
        candidate.attention,
        Mesh(cluster=replace(mesh.cluster, device=reader), axes=mesh.axes),
        step,
        candidate.precision,
    )
    return Bounds(
        compute_s=flops / (peak * EFFICIENCIES[device.kind].matmul),
        weights_s=reading.products_s,
        kv_s=reading.attention_s,
        roofline_s=candidate.terms.products_s + candidate.terms.attention_s,
    )


def _in_8_bits(dtype: str) -> str:
    return dtype if DTYPE_BYTES[dtype] == 1 else "int8"


def _with(candidate: Candidate, precision: Precision) -> Candidate:
    """Return a candidate in other dtypes."""
    return priced(candidate.shape, candidate.attention, candidate.mesh, candidate.step, precision)


def _fitting(like: Candidate, precision: Precision) -> list[Candidate]:
    """Return all ways to run the same step in other dtypes that fit into the memory."""
    found = candidates(like.shape, like.mesh.cluster, like.step, precision, has_mixed=True)
    return [one for one in found if one.has_room]


def _overlap_s(candidate: Candidate) -> float:
    return min(candidate.terms.products_s, candidate.terms.transfer_s)


def _one_shot_s(candidate: Candidate) -> float:
    """Return what all rounds of a step wait if each rank sends straight to every other."""
    shape, attention, mesh = candidate.shape, candidate.attention, candidate.mesh
    sizes = padded_sizes(shape, attention, mesh, candidate.step)

    def wait_s(changes: Sequence[Change]) -> float:
        reach_s = {
            change: sum(
                _reach_s(one, mesh) for one in change.collectives(sizes, mesh, element_bytes=1)
            )
            for change in changes
        }
        return round_wait_s(reach_s, mesh.cluster.device)

    block_s = sum(wait_s(changes) for changes in block_rounds(shape, attention, mesh))
    ends_s = sum(wait_s((change,)) for change in ends_changes(shape, attention, mesh))
    return shape.num_layers * block_s + ends_s


def _reach_s(collective: Collective, mesh: Mesh) -> float:
    cluster = mesh.cluster
    if collective.kind == "slice" or cluster.link.topology != "switch":
        return collective_time(collective, mesh, hop_s=0.0).latency_s
    span = mesh.span(collective.axes)
    reach_s = cluster.link.latency_s if span.ranks_per_host > 1 else 0.0
    if span.num_hosts > 1:
        assert cluster.network is not None
        reach_s += cluster.network.latency_s
    return (2 if collective.kind == "all_reduce" else 1) * reach_s
