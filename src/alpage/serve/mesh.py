"""Mesh: plan how a model is cut over this machine's processes, and start them, once a replica."""

import os
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import final

import torch

from alpage.cost import Precision
from alpage.errors import AlpageError, Unsupported
from alpage.hardware import Cluster, available_memory_bytes, num_usable_cores, resolve_cluster
from alpage.models import Checkpoint, build
from alpage.partition import attending_shape, stages
from alpage.planners import ServingPlan, plan_serving
from alpage.runtime import Processes
from alpage.serve.config import EngineConfig
from alpage.serve.machine import find_kv_dtype
from alpage.serve.mesh_runner import MeshRunner
from alpage.serve.messages import Job
from alpage.serve.runs import Profile
from alpage.serve.sizing import Sizes
from alpage.serve.worker import process_cluster, work
from alpage.workload import ModelShape

# Loading and first touching a large model takes a while; a step takes seconds at worst.
_START_S = 600.0
_STEP_S = 120.0


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MeshPlan:
    """How a model is going to be cut.

    Attributes:
        checkpoint: the model at rest.
        shape: of the whole model.
        num_layers: blocks of the largest stage.
        max_positions: tokens of its longest sequence.
        serving: where everything lies.
        dtype: of weights and activations.
        kv_dtype: of keys and values as they are kept.
        free_bytes: memory that is free for each rank.
    """

    checkpoint: Checkpoint
    shape: ModelShape
    num_layers: int
    max_positions: int
    serving: ServingPlan
    dtype: torch.dtype
    kv_dtype: torch.dtype
    free_bytes: int

    @property
    def attending_shape(self) -> ModelShape:
        """The model as one rank attends: its share of the heads, and of the blocks."""
        return replace(
            attending_shape(self.shape, self.serving.attention, self.serving.mesh),
            num_layers=self.num_layers,
        )

    @property
    def num_homes(self) -> int:
        """Ranks that keep sequences of their own; 1 where all keep a part of each."""
        return self.serving.mesh.size(self.serving.attention.batch)


def plan_mesh(
    checkpoint: Checkpoint,
    config: EngineConfig,
    device: torch.device,
    dtype: torch.dtype,
    notify: Callable[[str], None],
) -> MeshPlan:
    """Return how to cut a model over the processes of one replica, of `config.replicas`.

    See `plan_serving`; the numbers are those of the calibrated cluster, if `alpage hardware` has
    measured one of that size.

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
    cluster = _cluster(config.devices)
    num_ranks = config.devices_per_replica // config.stages
    stage = max(stages(whole.shape, config.stages), key=lambda stage: len(stage.layers))
    serving = plan_serving(
        replace(whole.shape, num_layers=len(stage.layers)),
        replace(cluster, devices_per_host=num_ranks),
        layout=config.layout,
        prefill_layout=config.prefill_layout,
        attention=config.attention_sharding,
        max_num_seqs=config.max_num_seqs,
        precision=Precision(compute="float32"),
    )
    parts = [
        f"{number} {name} of "
        for number, name in ((config.replicas, "replicas"), (config.stages, "stages"))
        if number > 1
    ]
    ranks = "1 process" if num_ranks == 1 else f"{num_ranks} processes"
    layout = f", layout {serving}" if num_ranks > 1 else ""
    notify(f"{''.join(parts)}{ranks}{layout}, by the numbers of {cluster.name}.")
    return MeshPlan(
        checkpoint=checkpoint,
        shape=whole.shape,
        num_layers=len(stage.layers),
        max_positions=whole.max_positions,
        serving=serving,
        dtype=dtype,
        kv_dtype=find_kv_dtype(config.kv_dtype, dtype, device),
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
        quantization=config.quantization,
        kv_dtype=str(plan.kv_dtype).removeprefix("torch."),
        layouts=[(step.layout.name, step.min_tokens) for step in plan.serving.steps],
        homes=plan.serving.attention.batch,
        mesh=dict(plan.serving.mesh.axes),
        num_stages=config.stages,
        num_pages=sizes.num_pages,
        num_host_pages=sizes.num_host_pages,
        page_size=config.page_size,
        max_model_len=sizes.max_model_len,
        max_num_seqs=config.max_num_seqs,
        attention_backend=config.attention_backend,
        num_threads=max(1, num_usable_cores() // config.devices),
    )
    profile = Profile(
        shape=plan.shape,
        dtype=plan.dtype,
        kv_dtype=plan.kv_dtype,
        device=torch.device("cpu"),
        quantization=config.quantization,
    )
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
