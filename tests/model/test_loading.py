"""What a rank loads: its part and no more, checked as a whole; and layouts that share matrices."""

import dataclasses
from types import SimpleNamespace

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from alpage.errors import BadCheckpoint
from alpage.hardware import resolve_cluster
from alpage.layout import LAYOUTS, attentions
from alpage.models import load, open_checkpoint
from alpage.partition import REPLICATED, Partitioned, Stage, run_inline, stages
from tiny_families import make_tiny
from tiny_llama import VOCAB_SIZE, make_tiny_llama

CPU = torch.device("cpu")
B, L = 8, 6
HEADS = {"num_attention_heads": 8, "intermediate_size": 96}
FAMILIES = {
    "Llama": HEADS | {"attention_bias": True},
    "GPT2": {"n_head": 8, "n_inner": 96},
    "Mixtral": HEADS,
    "PaLM": HEADS | {"head_dim": 8},
}


def make(path, family, num_layers, **sizes):
    layers = {"n_layer" if family == "GPT2" else "num_hidden_layers": num_layers}
    if family == "Llama":
        make_tiny_llama(path, **(FAMILIES[family] | layers | sizes))
    else:
        make_tiny(path, family, **(FAMILIES[family] | layers | sizes))
    return open_checkpoint(path)


# -- memory ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Ones:
    """A stored tensor that takes no memory when it is read."""

    shape: tuple[int, ...]
    dtype_name: str = "F64"

    def load(self):
        return torch.ones(()).expand(self.shape)


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of tensors that are alive, after every operation."""

    def __init__(self):
        super().__init__()
        self.peak = 0
        self._storages = {}

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, torch.Tensor) and not tensor.is_meta:
                storage = tensor.untyped_storage()
                self._storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        alive = {key: kept for key, kept in self._storages.items() if not kept[0].expired()}
        self._storages = alive
        self.peak = max(self.peak, sum(num_bytes for _, num_bytes in alive.values()))
        return result


def num_bytes(tensors):
    return sum(tensor.nbytes for tensor in tensors)


def load_counted(checkpoint, **options):
    with LiveBytes() as live:
        model = load(checkpoint, dtype=torch.float64, device=CPU, **options)
    return model, live.peak


@pytest.mark.parametrize("family", FAMILIES)
def test_a_rank_never_holds_more_than_its_part_and_one_whole_weight(family, tmp_path):
    checkpoint = make(tmp_path, family, num_layers=24)
    tensors = {name: Ones(tensor.shape) for name, tensor in checkpoint.tensors.items()}
    checkpoint = dataclasses.replace(checkpoint, tensors=tensors)
    whole, peak_whole = load_counted(checkpoint)
    total = num_bytes(whole.parameters())
    largest = max(parameter.nbytes for parameter in whole.parameters())
    # What else is alive: a bias, frequencies, and the part in the making, twice.
    assert total <= peak_whole < total + 1000
    assert largest < total / 10

    mesh = resolve_cluster("tpu-v4-8").mesh(x=2, y=2, z=2)
    attention = attentions(LAYOUTS["ws_2d"])[0]
    for rank in (0, 5):
        # Nobody speaks while loading.
        alone = SimpleNamespace(rank=rank)
        sharder = Partitioned(whole.shape, attention, mesh, alone, num_tokens=1)
        model, peak = load_counted(checkpoint, sharder=sharder)
        mine = num_bytes(model.parameters())
        assert mine < total / 8 * 1.3  # Padded words; Llama has too few key/value heads to cut.
        assert peak < mine + largest + 2 * largest / 8 + 2000

    model, peak = load_counted(checkpoint, stage=stages(whole.shape, 4)[1])
    mine = num_bytes(model.parameters())
    assert total / 6 < mine <= peak < mine + 1000
    assert mine < total / 4


# -- checks ----------------------------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Unread(Ones):
    """A stored tensor that nobody may read."""

    def load(self):
        raise AssertionError("it is read before everything is known to fit")


LAST = "model.layers.2.mlp.down_proj.weight"
WRONG = {
    "missing": ({LAST: None}, f"tensor='{LAST}': is missing"),
    "of the wrong shape": ({LAST: Unread((96, 64))}, rf"{LAST}=\(96, 64\): does not fit"),
    "left over": ({"model.layers.3.x": Unread((1,))}, r"tensor='model.layers.3.x': and 0 others"),
}


@pytest.mark.parametrize("layers", [range(3), range(1), range(1, 2), range(2, 3)], ids=str)
@pytest.mark.parametrize(("change", "named"), WRONG.values(), ids=WRONG)
def test_every_stage_refuses_what_any_would_and_has_read_nothing(change, named, layers, tmp_path):
    checkpoint = make(tmp_path, "Llama", num_layers=3)
    tensors = {name: Unread(tensor.shape) for name, tensor in checkpoint.tensors.items()} | change
    tensors = {name: tensor for name, tensor in tensors.items() if tensor is not None}
    checkpoint = dataclasses.replace(checkpoint, tensors=tensors)
    stage = Stage(layers=layers, num_layers=3)
    with LiveBytes() as live, pytest.raises(BadCheckpoint, match=named):
        load(checkpoint, dtype=torch.float32, device=CPU, stage=stage)
    assert live.peak < 1000  # Frequencies of rotary turns.


# -- twins -----------------------------------------------------------------------------------------


def partitioned(shape, layout, mesh, communicator):
    attention = attentions(LAYOUTS[layout])[0]
    return Partitioned(shape, attention, mesh, communicator, num_tokens=B)


def check_shared(model, twin):
    """Matrices are the twin's own; norms, biases and learned positions are not."""
    theirs = dict(twin.named_parameters())
    matrices = {name for name, parameter in theirs.items() if parameter.dim() >= 2}
    mine = dict(model.named_parameters())
    shared = {name for name in mine if mine[name].data_ptr() == theirs[name].data_ptr()}
    assert shared == matrices - {"positions.weight"}


@pytest.mark.parametrize("family", FAMILIES)
def test_two_layouts_share_matrices_and_both_compute(family, tmp_path):
    """One axis has size 1, so that both cut the vocabulary alike."""
    checkpoint = make(tmp_path, family, num_layers=2)
    mesh = resolve_cluster("cpu-4").mesh(x=1, y=2, z=2)
    whole = load(checkpoint, dtype=torch.float64, device=CPU)
    tokens_BL = torch.randint(0, VOCAB_SIZE, (B, L))
    positions_BL = torch.arange(L).expand(B, L)
    expected_BLV = whole(tokens_BL, positions_BL)

    def work(communicator):
        models = []
        for layout in ("ws_2d", "wg_x"):
            sharder = partitioned(whole.shape, layout, mesh, communicator)
            twin = models[0] if models else None
            models.append(
                load(checkpoint, dtype=torch.float64, device=CPU, sharder=sharder, twin=twin)
            )
        check_shared(models[1], models[0])
        for model in (*models, models[0]):
            expected = model.sharder.tokens(expected_BLV)
            found = model(tokens_BL, positions_BL)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)

    run_inline(work, mesh.num_ranks)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_middle_stage_of_two_layouts_shares_matrices(family, tmp_path):
    """Norms and biases are cut otherwise by each, so these are loaded anew."""
    checkpoint = make(tmp_path, family, num_layers=3)
    mesh = resolve_cluster("tpu-v4-8").mesh(x=2, y=2, z=2)
    stage = Stage(layers=range(1, 2), num_layers=3)
    middle = load(checkpoint, dtype=torch.float64, device=CPU, stage=stage)
    x_BLD = torch.randn(B, L, middle.shape.d_model, dtype=torch.float64)
    positions_BL = torch.arange(L).expand(B, L)
    expected_BLD = middle.through(x_BLD, positions_BL)

    def work(communicator):
        twin = None
        for layout in ("ws_2d", "wg_x", "wg_xyz"):
            sharder = partitioned(middle.shape, layout, mesh, communicator)
            options = {"dtype": torch.float64, "device": CPU, "sharder": sharder, "stage": stage}
            model = load(checkpoint, twin=twin, **options)
            twin = twin or model
            if model is not twin:
                check_shared(model, twin)
            x = sharder.vector_part(sharder.tokens(x_BLD), "R")
            expected = sharder.vector_part(sharder.tokens(expected_BLD), "R")
            found = model.through(x, positions_BL)
            torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)

    run_inline(work, mesh.num_ranks)


def test_a_twin_that_cuts_otherwise_is_refused(tmp_path):
    checkpoint = make(tmp_path, "Llama", num_layers=1)
    mesh = resolve_cluster("cpu-4").mesh(x=2, y=1, z=2)
    shape = load(checkpoint, dtype=torch.float32, device=CPU).shape
    sharder = partitioned(shape, "ws_2d", mesh, SimpleNamespace(rank=0))
    twin = load(checkpoint, dtype=torch.float32, device=CPU, sharder=sharder)
    for other in (REPLICATED, partitioned(shape, "ws_1d", mesh, SimpleNamespace(rank=0))):
        with pytest.raises(AssertionError, match="is not cut alike"):
            load(checkpoint, dtype=torch.float32, device=CPU, sharder=other, twin=twin)
