"""Stages: a chain of them is the whole model, to the last bit; and how layers are cut into them.

Dims: L tokens of a sequence, T tokens of a step.
"""

import dataclasses
import itertools
from itertools import accumulate, pairwise

import pytest
import torch

from alpage.errors import InvalidValue
from alpage.hardware import resolve_cluster
from alpage.layout import LAYOUTS, attentions
from alpage.models import load, open_checkpoint
from alpage.ops import KvPool, PagedKV
from alpage.ops.kv import PagedStep
from alpage.ops.reference import Reference
from alpage.partition import REPLICATED, Partitioned, Stage, run_inline, stages
from alpage.shapes import named_shape
from tiny_families import make_tiny
from tiny_llama import VOCAB_SIZE, make_tiny_llama

NUM_LAYERS = 5
LAYERS = {"num_hidden_layers": NUM_LAYERS}
FAMILIES = {
    "Llama": LAYERS,
    "Llama, tied": LAYERS | {"tie_word_embeddings": True},
    "GPT2": {"n_layer": NUM_LAYERS},
    "GPT2, untied": {"n_layer": NUM_LAYERS, "tie_word_embeddings": False},
    "Mixtral": LAYERS,
    "PaLM": LAYERS,
}


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory):
    path = tmp_path_factory.mktemp("model")
    family = request.param.partition(",")[0]
    if family == "Llama":
        make_tiny_llama(path, **FAMILIES[request.param])
    else:
        make_tiny(path, family, **FAMILIES[request.param])
    return open_checkpoint(path)


def load_stage(checkpoint, stage=None, sharder=REPLICATED):
    return load(
        checkpoint,
        dtype=torch.float64,
        device=torch.device("cpu"),
        sharder=sharder,
        stage=stage,
    )


def chain(models, tokens_T, positions_T, kvs):
    x_TD = models[0].enter(tokens_T, positions_T)
    for model, kv in zip(models, kvs, strict=True):
        x_TD = model.through(x_TD, positions_T, kv)
    return models[-1].leave(x_TD)


@pytest.mark.parametrize("num_stages", [2, 3, NUM_LAYERS])
@torch.no_grad()
def test_a_chain_of_stages_equals_the_whole_model(num_stages, checkpoint):
    whole = load_stage(checkpoint)
    cut = stages(whole.shape, num_stages)
    models = [load_stage(checkpoint, stage) for stage in cut]
    check_parameters(whole, models)
    tokens_BL = torch.randint(0, VOCAB_SIZE, (2, 20))
    positions_BL = torch.arange(20).expand(2, 20)
    found_BLD = chain(models, tokens_BL, positions_BL, [None] * num_stages)
    assert torch.equal(models[-1].logits(found_BLD), whole(tokens_BL, positions_BL))

    pool = pool_for(whole, range(NUM_LAYERS))
    pools = [pool_for(whole, stage.layers) for stage in cut]
    # Prompts of two sequences, then two more tokens of one and one of the other.
    for step, positions_T in (paged_step([7, 3], [7, 3]), paged_step([2, 1], [9, 4])):
        tokens_T = torch.randint(0, VOCAB_SIZE, positions_T.shape)
        expected_TV = whole(tokens_T, positions_T, PagedKV(pool, step, Reference()))
        kvs = [PagedKV(part, step, Reference()) for part in pools]
        found_TD = chain(models, tokens_T, positions_T, kvs)
        assert torch.equal(models[-1].logits(found_TD), expected_TV)
    assert torch.equal(torch.cat([part.kv_L2PGSK for part in pools]), pool.kv_L2PGSK)


def check_parameters(whole, models):
    """Every parameter is in one stage, under its own name; a tied embedding in the last one too."""
    names = [name for model in models for name, _ in model.named_parameters()]
    shared = ["embedding.weight"] if whole.shape.is_tied else []
    assert sorted(names) == sorted([name for name, _ in whole.named_parameters()] + shared)


def pool_for(model, layers):
    shape = model.shape
    sizes = (len(layers), 2, 8, shape.num_kv_heads, 4, shape.head_dim)
    return KvPool.zeros(sizes, torch.float64, torch.device("cpu"))


def paged_step(num_queries, contexts):
    """Return a step of two sequences, of which one has even pages and one odd, and positions."""
    table_BP = torch.tensor([[0, 2, 4], [1, 3, 5]], dtype=torch.int32)
    places = [
        (b, position)
        for b, (n, context) in enumerate(zip(num_queries, contexts, strict=True))
        for position in range(context - n, context)
    ]
    step = PagedStep(
        num_queries=num_queries,
        contexts=contexts,
        query_start_B1=torch.tensor([0, *accumulate(num_queries)], dtype=torch.int32),
        context_B=torch.tensor(contexts, dtype=torch.int32),
        table_BP=table_BP,
        slot_T=torch.tensor([int(table_BP[b, p // 4]) * 4 + p % 4 for b, p in places]),
    )
    return step, torch.tensor([position for _, position in places])


@pytest.mark.parametrize("layout", ["ws_2d", "wg_xy"])
def test_a_chain_of_shards_equals_shards_of_all_blocks(layout, checkpoint):
    mesh = resolve_cluster("cpu-4").mesh(x=2, y=1, z=2)
    tokens_BL = torch.randint(0, VOCAB_SIZE, (4, 6))
    positions_BL = torch.arange(6).expand(4, 6)
    shape = load_stage(checkpoint).shape

    def work(communicator):
        attention = attentions(LAYOUTS[layout])[0]
        sharder = Partitioned(shape, attention, mesh, communicator, num_tokens=4)
        models = [load_stage(checkpoint, stage, sharder) for stage in stages(shape, 3)]
        found = chain(models, tokens_BL, positions_BL, [None] * 3)
        whole = load_stage(checkpoint, sharder=sharder)
        assert torch.equal(found, whole.hidden(tokens_BL, positions_BL))

    run_inline(work, mesh.num_ranks)


# -- the cut ---------------------------------------------------------------------------------------


def small_shape(num_layers, vocab_size):
    """A shape whose blocks have 384 weights each, and its vocabulary projection 8 a word."""
    shape = dataclasses.replace(named_shape("gpt2"), d_model=8, num_heads=2, num_kv_heads=2)
    return dataclasses.replace(
        shape, num_layers=num_layers, head_dim=4, d_ff=8, vocab_size=vocab_size
    )


@pytest.mark.parametrize("vocab_size", [1, 30, 48, 100, 145, 1000])
@pytest.mark.parametrize("num_layers", range(1, 9))
def test_no_other_cut_is_more_equal(num_layers, vocab_size):
    shape = small_shape(num_layers, vocab_size)

    def costs(sizes):
        """The costliest stage first, and so on."""
        head = vocab_size * 8
        return sorted([*(384 * n for n in sizes[:-1]), 384 * sizes[-1] + head], reverse=True)

    for num_stages in range(1, num_layers + 1):
        cut = stages(shape, num_stages)
        assert [layer for stage in cut for layer in stage.layers] == list(range(num_layers))
        assert [stage.is_first for stage in cut] == [True] + [False] * (num_stages - 1)
        assert [stage.is_last for stage in cut] == [False] * (num_stages - 1) + [True]
        every = (
            [end - start for start, end in pairwise((0, *inner, num_layers))]
            for inner in itertools.combinations(range(1, num_layers), num_stages - 1)
        )
        assert costs([len(stage.layers) for stage in cut]) == min(map(costs, every))


def test_experts_that_a_token_does_not_run_through_are_no_work():
    """A block has 464 weights for one token and 1616 in all; the projection has 928."""
    routed = dataclasses.replace(small_shape(8, 116), num_experts=10, num_active_experts=1)
    assert [len(stage.layers) for stage in stages(routed, 2)] == [5, 3]


@pytest.mark.parametrize("num_stages", [0, 6])
def test_more_stages_than_layers_are_refused(num_stages):
    with pytest.raises(InvalidValue, match=rf"num_stages={num_stages}: must be from 1 to 5"):
        stages(small_shape(5, 100), num_stages)


@pytest.mark.parametrize("layers", [range(0), range(0, 4, 2), range(3, 6), range(-1, 2)])
def test_a_stage_is_consecutive_blocks_of_the_model(layers):
    with pytest.raises(AssertionError):
        Stage(layers=layers, num_layers=5)
