"""Layouts over real processes, joined by gloo."""

import time

import pytest

import partition_worker
from alpage.errors import RankLost
from alpage.runtime.local_group import run_on_ranks
from tiny_families import make_tiny
from tiny_llama import make_tiny_llama


@pytest.fixture(scope="module")
def paths(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoints")
    make_tiny_llama(path / "llama", num_attention_heads=8, intermediate_size=96, vocab_size=304)
    make_tiny(path / "palm", "PaLM", num_attention_heads=8, intermediate_size=96, vocab_size=304)
    make_tiny(path / "gpt2", "GPT2", n_head=8, n_embd=64, n_inner=96, vocab_size=304)
    make_tiny(
        path / "mixtral",
        "Mixtral",
        num_attention_heads=8,
        num_key_value_heads=4,
        intermediate_size=48,
        vocab_size=304,
    )
    return [str(path / family) for family in ("llama", "palm", "gpt2", "mixtral")]


@pytest.mark.slow
@pytest.mark.parametrize(
    "sizes", [{"x": 1, "y": 1, "z": 2}, {"x": 2, "y": 1, "z": 2}, {"x": 2, "y": 2, "z": 2}], ids=str
)
def test_every_layout_equals_the_whole_model(sizes, paths):
    num_ranks = sizes["x"] * sizes["y"] * sizes["z"]
    arguments = (paths, sizes, 8)
    ranks = run_on_ranks(
        partition_worker.compare, num_ranks, arguments, backend="gloo", deadline_s=120
    )
    for found in ranks:
        assert len(found) >= len(paths) * 8
        for case, (difference, num_bytes) in found.items():
            assert difference < 1e-5, case
            assert num_bytes == ranks[0][case][1], "every rank moves as much"


@pytest.mark.slow
def test_a_rank_that_dies_ends_all_before_the_deadline():
    start_s = time.monotonic()
    with pytest.raises(RankLost, match=r"rank=1: its process (died|failed)"):
        run_on_ranks(partition_worker.die, 2, (1,), backend="gloo", deadline_s=60)
    assert time.monotonic() - start_s < 40
