"""Predicted against measured seconds of every layout on processes of this machine.

The cluster must be calibrated first: `alpage hardware --devices 2` and 4. Then
`python -m benchmarks.layout_ranks --devices 2` runs a forward step of a model of random weights in
every layout, on every mesh and with attention over heads and over the batch, and prints Kendall's
tau: how many more pairs of layouts come in the predicted order than against it, as a share of all
(1: the same order; 0: no relation). Pairs that are predicted within 5 % of each other are not told
apart, and not counted.

Steps are whole prompts, which need no pages. All ways are run in turn, `ROUNDS` times, and their
medians compared, so that a disturbance hits all.
"""

import argparse
import itertools
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import save_file

from alpage.cost import Precision, Step
from alpage.hardware import Cluster, resolve_cluster
from alpage.layout import LAYOUTS, Attention
from alpage.models import Model, build, load, open_checkpoint
from alpage.partition import Communicator, Partitioned, ProcessGroups
from alpage.planners import Candidate, candidates
from alpage.runtime.local_group import run_on_ranks

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 8,
    "vocab_size": 4096,
    "rms_norm_eps": 1e-6,
    "max_position_embeddings": 2048,
}
# A step of few tokens, where weights are read, one of many, and one between.
STEPS = ((8, 1), (8, 16), (8, 128))
ROUNDS = 15
TOLD_APART = 1.05
CPU = torch.device("cpu")


def main() -> None:
    """Print the comparison."""
    parser = argparse.ArgumentParser(description="Predicted and measured order of layouts.")
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    cluster = resolve_cluster(f"local-{options.devices}")
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder))
        report = [compare(Path(folder), cluster, *step) for step in STEPS]
    if options.json:
        print(json.dumps(report))
        return
    for step in report:
        print(f"\n{cluster.name}: {step['sequences']} sequences of {step['tokens']} tokens")
        print(f"{'layout':12} {'attention':10} {'mesh':16} {'predicted':>10} {'measured':>10}")
        for way in step["ways"]:
            print(
                f"{way['layout']:12} {way['attention']:10} {way['mesh']:16} "
                f"{1e3 * way['predicted_s']:7.2f} ms {1e3 * way['measured_s']:7.2f} ms"
            )
        print(f"Kendall's tau {step['tau']:.2f} over {step['pairs']} pairs")


def write_checkpoint(path: Path) -> None:
    """Write a model of random weights."""
    (path / "config.json").write_text(json.dumps(CONFIG))
    model, table = build(CONFIG)
    torch.manual_seed(0)
    tensors = {}
    assert isinstance(model, torch.nn.Module)
    shape = model.shape
    width, kv = shape.num_heads * shape.head_dim, shape.num_kv_heads * shape.head_dim
    rows = {"q_proj": width, "k_proj": kv, "v_proj": kv}
    for name, parameter in model.named_parameters():
        module, _, leaf = name.rpartition(".")
        key = ".".join("{}" if part.isdigit() else part for part in module.split("."))
        numbers = [part for part in module.split(".") if part.isdigit()]
        for source in table[key]:
            size = list(parameter.shape)
            size[0] = rows.get(source.rpartition(".")[2], size[0] // len(table[key]))
            tensors[f"{source.format(*numbers)}.{leaf}"] = torch.randn(size) * 0.02
    save_file(tensors, path / "model.safetensors")


def compare(path: Path, cluster: Cluster, num_sequences: int, num_tokens: int) -> dict[str, object]:
    """Return predicted and measured seconds of every way to run a step, and how they agree."""
    shape = build(CONFIG)[0].shape
    step = Step(num_sequences=num_sequences, num_new_tokens=num_tokens, num_past_tokens=0)
    precision = Precision(weights="float32", compute="float32", kv="float32")
    ways = [
        way
        for way in candidates(shape, cluster, step, precision)
        if way.layout.name != "replicated"
    ]
    names = [(way.layout.name, list(way.attention.batch), dict(way.mesh.axes)) for way in ways]
    measured = run_on_ranks(
        measure,
        cluster.num_devices,
        (str(path), names, num_sequences, num_tokens),
        backend="gloo",
        deadline_s=900,
    )
    # A step is done when its last rank is.
    times_s = [max(rank[number] for rank in measured) for number in range(len(ways))]
    tau, num_pairs = kendall([way.step_s for way in ways], times_s)
    rows = sorted(zip(ways, times_s, strict=True), key=lambda row: row[0].step_s)
    return {
        "sequences": num_sequences,
        "tokens": num_tokens,
        "tau": tau,
        "pairs": num_pairs,
        "ways": [describe(way, time_s) for way, time_s in rows],
    }


def describe(way: Candidate, time_s: float) -> dict[str, object]:
    """Return a line of the report."""
    return {
        "layout": way.layout.name,
        "attention": way.attention_sharding,
        "mesh": str(way.mesh),
        "predicted_s": way.step_s,
        "measured_s": time_s,
    }


def kendall(predicted: list[float], measured: list[float]) -> tuple[float, int]:
    """Return Kendall's tau over the pairs that are told apart, and how many these are."""
    agreeing, num_pairs = 0, 0
    for one, other in itertools.combinations(range(len(predicted)), 2):
        low, high = sorted((one, other), key=predicted.__getitem__)
        if predicted[high] > TOLD_APART * predicted[low]:
            num_pairs += 1
            agreeing += 1 if measured[high] > measured[low] else -1
    return (agreeing / num_pairs if num_pairs else 1.0), num_pairs


@torch.inference_mode()
def measure(
    rank: int,
    path: str,
    ways: list[tuple[str, list[str], dict[str, int]]],
    num_sequences: int,
    num_tokens: int,
) -> list[float]:
    """Return the median seconds of a step in each way, on one rank."""
    torch.set_num_threads(1)
    checkpoint = open_checkpoint(Path(path))
    tokens_BL = torch.arange(num_sequences * num_tokens).view(num_sequences, num_tokens) % 4096
    positions_BL = torch.arange(num_tokens).expand(num_sequences, num_tokens)
    num_ranks = torch.distributed.get_world_size()
    groups: dict[tuple[tuple[str, int], ...], Communicator] = {}
    models: list[Model] = []
    for name, batch, sizes in ways:
        mesh = resolve_cluster(f"local-{num_ranks}").mesh(**sizes)
        groups.setdefault(mesh.axes, ProcessGroups(mesh))
        attention = Attention(layout=LAYOUTS[name], batch=tuple(batch))
        shape = build(CONFIG)[0].shape
        sharder = Partitioned(shape, attention, mesh, groups[mesh.axes], num_tokens=num_sequences)
        models.append(load(checkpoint, dtype=torch.float32, device=CPU, sharder=sharder))
    times_s: list[list[float]] = [[] for _ in ways]
    for number in range(ROUNDS + 1):
        for model, taken in zip(models, times_s, strict=True):
            torch.distributed.barrier()
            start_s = time.perf_counter()
            model.hidden(tokens_BL, positions_BL)
            if number:
                taken.append(time.perf_counter() - start_s)
    if rank == 0:
        print(f"{len(ways)} ways measured", file=sys.stderr)
    return [statistics.median(taken) for taken in times_s]


if __name__ == "__main__":
    main()
