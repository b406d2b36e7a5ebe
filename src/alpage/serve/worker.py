"""Worker: one rank of a mesh: its part of the model, its pages, and the engine's steps.

Where attention is over heads, every rank moves the same pages, which hold other heads; where it is
over the batch, sequences have their pages at home, on one rank. The first rank draws the tokens.
"""

import dataclasses
from pathlib import Path
from typing import Any

import msgspec
import torch

from alpage.hardware import Cluster, Mesh, resolve_cluster
from alpage.layout import Attention, named_layout
from alpage.models import Checkpoint, build, load, open_checkpoint
from alpage.ops import AttentionSpec, KvPool, backends, select
from alpage.partition import (
    Partitioned,
    Pipe,
    ProcessGroups,
    Stage,
    attending_shape,
    stages,
)
from alpage.runtime import Port
from alpage.serve.home import Home
from alpage.serve.messages import Close, Job, Open, Run, decode_message, encode
from alpage.serve.runner import Runner, View
from alpage.serve.slots import Slots


def work(rank: int, port: Port, plain_job: dict[str, Any]) -> None:
    """Serve the engine until it is gone."""
    job = msgspec.convert(plain_job, Job)
    torch.set_num_threads(job.num_threads)
    runner = _runner(job)
    if rank == 0:
        port.answer(b"")
    while True:
        match decode_message(port.receive()):
            case Open() as opened:
                runner.open(opened.request_id, opened.rule)
            case Close(request_id):
                runner.close(request_id)
            case Run(batch) if rank == 0:
                port.answer(encode(runner.run(batch)))
            case Run(batch):
                runner.follow(batch)


def process_cluster(num_ranks: int) -> Cluster:
    """Return processes of one machine as a cluster, by the catalogue's numbers of a CPU."""
    return dataclasses.replace(
        resolve_cluster("cpu-2"), name=f"{num_ranks} processes", devices_per_host=num_ranks
    )


def _runner(job: Job) -> Runner:
    num_ranks = torch.distributed.get_world_size() // job.num_stages
    place, rank = divmod(torch.distributed.get_rank(), num_ranks)
    number = job.num_stages - 1 - place
    mesh = process_cluster(num_ranks).mesh(**job.mesh)
    checkpoint = open_checkpoint(Path(job.model))
    shape = build(checkpoint.config)[0].shape
    stage = stages(shape, job.num_stages)[number]
    views = _views(job, checkpoint, mesh, stage)
    dtype, device = getattr(torch, job.dtype), torch.device("cpu")
    kv_dtype = getattr(torch, job.kv_dtype)
    attention = Attention(layout=named_layout(job.layouts[0][0]), batch=job.homes)
    here = attending_shape(shape, attention, mesh)
    spec = AttentionSpec(
        device=device.type,
        dtype=dtype,
        kv_dtype=kv_dtype,
        num_heads=here.num_heads,
        num_kv_heads=here.num_kv_heads,
        head_dim=here.head_dim,
        page_size=job.page_size,
    )
    blocks = dataclasses.replace(here, num_layers=len(stage.layers))
    pools = [
        KvPool.of(blocks, num_pages, job.page_size, kv_dtype, device)
        for num_pages in (job.num_pages, job.num_host_pages)
    ]
    home = Home(
        number=mesh.group(rank, job.homes).index(rank),
        num_homes=mesh.size(job.homes),
        num_pages=job.num_pages,
        num_host_pages=job.num_host_pages,
    )
    slots = Slots(job.max_num_seqs, job.max_model_len, job.page_size)
    backend = select(spec, backends(), job.attention_backend)
    pipe = Pipe(dtype, device, stage=number, num_stages=job.num_stages)
    return Runner(views, pools[0], pools[1], backend, slots, home, pipe)


def _views(job: Job, checkpoint: Checkpoint, mesh: Mesh, stage: Stage) -> list[View]:
    """Return the stage in each layout. Queries, keys and values always come to lie alike."""
    shape = build(checkpoint.config)[0].shape
    groups = ProcessGroups(mesh)
    views: list[View] = []
    for name, min_tokens in job.layouts:
        layout = named_layout(name)
        sharder = Partitioned(
            shape,
            Attention(layout=layout),
            mesh,
            groups,
            num_tokens=mesh.num_ranks,
            homes=job.homes,
        )
        model = load(
            checkpoint,
            dtype=getattr(torch, job.dtype),
            device=torch.device("cpu"),
            sharder=sharder,
            stage=stage,
            quantization=job.quantization,
            twin=views[0].model if views else None,
        )
        shards = mesh.size(layout.tokens)
        views.append(View(model=model, min_tokens=min_tokens, num_token_shards=shards))
    return views
