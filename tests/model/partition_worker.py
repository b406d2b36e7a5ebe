"""What one process of a partitioned model does; spawned by test_partition_processes."""

import itertools
from pathlib import Path

import torch

from alpage.hardware import resolve_cluster
from alpage.layout import LAYOUTS, attentions
from alpage.models import load, open_checkpoint
from alpage.partition import Partitioned, ProcessGroups

CPU = torch.device("cpu")


@torch.inference_mode()
def compare(
    rank: int, paths: list[str], sizes: dict[str, int], batch: int
) -> dict[str, list[float]]:
    """Return for each family and layout the greatest difference from the whole model, and bytes.

    Attention is sharded over heads and over as much of the batch as it can be.
    """
    torch.set_num_threads(1)
    num_ranks = torch.distributed.get_world_size()
    mesh = resolve_cluster(f"cpu-{num_ranks}").mesh(**sizes)
    communicator = ProcessGroups(mesh)
    tokens_BL = torch.arange(batch * 5).view(batch, 5) % 300
    positions_BL = torch.arange(5).expand(batch, 5)
    found = {}
    for path, layout in itertools.product(paths, LAYOUTS.values()):
        checkpoint = open_checkpoint(Path(path))
        whole = load(checkpoint, dtype=torch.float32, device=CPU)
        expected_BLV = whole(tokens_BL, positions_BL)
        for attention in dict.fromkeys((attentions(layout)[0], attentions(layout)[-1])):
            sharder = Partitioned(whole.shape, attention, mesh, communicator, num_tokens=batch)
            model = load(checkpoint, dtype=torch.float32, device=CPU, sharder=sharder)
            logits_BLV = model(tokens_BL, positions_BL)
            difference = logits_BLV - expected_BLV
            key = f"{Path(path).name} {layout.name} {''.join(attention.batch)}"
            num_bytes = sum(sharder.collectives.payload_bytes.values())
            found[key] = [difference.abs().max().item(), float(num_bytes)]
    return found


def die(rank: int, victim: int) -> None:
    """Leave one rank behind in a collective that it never joins."""
    if rank == victim:
        raise SystemExit(3)
    torch.distributed.all_reduce(torch.zeros(1))
