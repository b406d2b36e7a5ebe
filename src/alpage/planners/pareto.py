"""Pareto: which batch on how many devices is the fastest for what it costs.

Latency is the seconds of a step, cost the device-seconds of a token (Pope et al. 2022,
arXiv:2211.05102, figure 1).
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from math import inf

from alpage.cost import Precision, Step
from alpage.errors import InvalidValue, OutOfMemory
from alpage.hardware import Cluster, resolve_cluster
from alpage.planners.layouts import Candidate, choose_layout
from alpage.workload import ModelShape


def frontier(candidates: Iterable[Candidate]) -> tuple[Candidate, ...]:
    """Return those than which none is both as fast and as cheap, the fastest first.

    Of equals the first one is kept.
    """
    kept: list[Candidate] = []
    least = inf
    for one in sorted(candidates, key=lambda one: (one.step_s, one.device_s_per_token)):
        if one.device_s_per_token < least:
            kept.append(one)
            least = one.device_s_per_token
    return tuple(kept)


def sweep(
    shape: ModelShape,
    clusters: Iterable[Cluster],
    step: Step,
    *,
    max_batch: int,
    precisions: Sequence[Precision] = (Precision(),),
) -> tuple[Candidate, ...]:
    """Return what is chosen for latency on every cluster for every batch that can be run.

    Args:
        shape: the model.
        clusters: in turn.
        step: phase and lengths; its batch is replaced.
        max_batch: batches are the powers of two up to it.
        precisions: dtypes to choose among.
    """
    batches = [1 << power for power in range(max_batch.bit_length())]
    chosen: list[Candidate] = []
    for cluster in clusters:
        for batch in batches:
            sized = replace(step, num_sequences=batch)
            try:
                choice = choose_layout(shape, cluster, sized, precisions=precisions)
            except OutOfMemory:
                break  # A larger batch takes more memory.
            except InvalidValue:
                continue
            chosen.append(choice.best)
    return tuple(chosen)


def slices(cluster: Cluster) -> tuple[Cluster, ...]:
    """Return the clusters of the same devices that have a power of two of them, up to all.

    They are those that have the same name but for the size; a cluster of another kind of name
    stands for itself.
    """
    family, _, _ = cluster.name.rpartition("-")
    found = [cluster]
    for power in range(cluster.num_devices.bit_length()):
        try:
            smaller = resolve_cluster(f"{family}-{1 << power}")
        except InvalidValue:
            continue
        if smaller.device == cluster.device and smaller.num_devices < cluster.num_devices:
            found.append(smaller)
    return tuple(sorted(found, key=lambda one: one.num_devices))
