"""Mesh: plan how a model is cut over this machine's processes, and start them, once a replica."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from typing import final

import torch

from alpage.cost import Precision, Step
from alpage.errors import AlpageError, InvalidValue, Unsupported
from alpage.hardware import Cluster, Mesh, available_memory_bytes, num_usable_cores, resolve_cluster
from alpage.layout import Attention
from alpage.models import Checkpoint, build
from alpage.partition import attending_shape
from alpage.planners import candidates
from alpage.runtime import Processes
from alpage.serve.config import LAYOUTS, EngineConfig
from alpage.serve.mesh_runner import MeshRunner
from alpage.serve.messages import Job
from alpage.serve.runs import Profile
from alpage.serve.sizing import Sizes
from alpage.serve.worker import process_cluster, work
from alpage.workload import ModelShape

# Loading and first touching a large model takes a while; a step takes seconds at worst.
_START_S = 600.0
_STEP_S = 120.0
# What layouts are compared on: decoding, which most steps are.
_TYPICAL = Step(num_sequences=16, num_new_tokens=1, num_past_tokens=512)


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MeshPlan:
    """How a model is going to be cut.

    Attributes:
        checkpoint: the model at rest.
        shape: of the whole model.
        max_positions: tokens of its longest sequence.
        attention: how it attends, and the layout of its blocks.
        mesh: the ranks.
        dtype: of weights, keys and values.
        free_bytes: memory that is free for each rank.
    """

    checkpoint: Checkpoint
    shape: ModelShape
    max_positions: int
    attention: Attention
    mesh: Mesh
    dtype: torch.dtype
    free_bytes: int

    @property
    def attending_shape(self) -> ModelShape:
        """The model as one rank attends: its share of the heads."""
        return attending_shape(self.shape, self.attention, self.mesh)


def plan_mesh(
    checkpoint: Checkpoint,
    config: EngineConfig,
    device: torch.device,
    dtype: torch.dtype,
    notify: Callable[[str], None],
) -> MeshPlan:
    """Return how to cut a model over the processes of one replica, of `config.replicas`.

    The layout is the cheapest for a decode step that keeps whole sequences on every rank, by the
    calibrated cluster if `alpage hardware` has measured one of that size.

    Raises:
        Unsupported: the device is no CPU.
        InvalidValue: no layout can cut the model.
    """
    if device.type != "cpu":
        raise Unsupported(
            field="devices",
            value=config.devices,
            limit="are processes on a CPU so far",
            remedy='Use device="cpu", or one GPU',
        )
    whole = build(checkpoint.config)[0]
    num_ranks = config.devices_per_replica
    cluster = _cluster(num_ranks)
    names = LAYOUTS[1:] if config.layout == "auto" else (config.layout,)
    priced = candidates(whole.shape, cluster, _TYPICAL, Precision(compute="float32"))
    fitting = [
        candidate
        for candidate in priced
        if candidate.layout.name in names and not candidate.attention.batch
    ]
    if not fitting:
        raise InvalidValue(
            field="devices" if config.replicas == 1 else "devices per replica",
            value=num_ranks,
            limit=f"do not cut this model evenly by {' or '.join(names)}: it is "
            f"{whole.shape.d_model} wide, its feed-forward {whole.shape.d_ff}",
            remedy="Choose a number that divides both",
        )
    best = min(fitting, key=lambda candidate: candidate.step_s)
    processes = "1 process" if num_ranks == 1 else f"{num_ranks} processes"
    each = processes if config.replicas == 1 else f"{config.replicas} replicas of {processes}"
    notify(
        f"{each}, layout {best.layout.name}, mesh {best.mesh}, by the numbers of {cluster.name}."
    )
    return MeshPlan(
        checkpoint=checkpoint,
        shape=whole.shape,
        max_positions=whole.max_positions,
        attention=best.attention,
        mesh=best.mesh,
        dtype=dtype,
        free_bytes=available_memory_bytes() // config.devices,
    )


def start_meshes(plan: MeshPlan, sizes: Sizes, config: EngineConfig) -> list[MeshRunner]:
    """Return the ranks of every replica, ready.

    Raises:
        RankLost: one failed, died, or was not ready in time.
    """
    job = Job(
        model=os.fspath(plan.checkpoint.source),
        dtype=str(plan.dtype).removeprefix("torch."),
        layout=plan.attention.layout.name,
        mesh=dict(plan.mesh.axes),
        num_pages=sizes.num_pages,
        num_host_pages=sizes.num_host_pages,
        page_size=config.page_size,
        max_model_len=sizes.max_model_len,
        max_num_seqs=config.max_num_seqs,
        attention_backend=config.attention_backend,
        num_threads=max(1, num_usable_cores() // config.devices),
    )
    profile = Profile(shape=plan.shape, dtype=plan.dtype, device=torch.device("cpu"))
    with ExitStack() as undo:
        started = []
        for _ in range(config.replicas):
            started.append(_start(job, config.devices_per_replica))
            undo.callback(started[-1].stop)
        # They load side by side.
        for processes in started:
            processes.answer()
        undo.pop_all()
    return [MeshRunner(processes, profile) for processes in started]


def _start(job: Job, num_ranks: int) -> Processes:
    return Processes(work, num_ranks, (job,), backend="gloo", start_s=_START_S, step_s=_STEP_S)


def _cluster(num_devices: int) -> Cluster:
    try:
        return resolve_cluster(f"local-{num_devices}")
    except AlpageError:
        return process_cluster(num_devices)
