"""Sizes of published models, counted from their shapes."""

import pytest

from alpage.workload import ModelShape

PALM_SIZES = [(32, 4096, 16), (64, 8192, 32), (118, 18432, 48)]


def shape(num_layers, d_model, heads, head_dim, d_ff, vocab_size, *, matrices=3, is_tied=False):
    return ModelShape(
        num_layers=num_layers,
        d_model=d_model,
        num_heads=heads[0],
        num_kv_heads=heads[1],
        head_dim=head_dim,
        d_ff=d_ff,
        num_ffn_matrices=matrices,
        vocab_size=vocab_size,
        is_tied=is_tied,
    )


# The parameter counts that their checkpoints have.
SMOLLM2_135M = shape(30, 576, (9, 3), 64, 1536, 49_152, is_tied=True)
TINYLLAMA_1B = shape(22, 2048, (32, 4), 64, 5632, 32_000)
LLAMA2_7B = shape(32, 4096, (32, 32), 128, 11_008, 32_000)
LLAMA3_8B = shape(32, 4096, (32, 8), 128, 14_336, 128_256)
# Chowdhery et al. 2022, arXiv:2204.02311, table 1: 540.35 billion.
PALM_540B = shape(118, 18_432, (48, 1), 256, 73_728, 256_000, is_tied=True)
# Kwon et al. 2023, arXiv:2309.06180, section 3: 800 KB of keys and values a token in 16 bits.
OPT_13B = shape(40, 5120, (40, 40), 128, 20_480, 50_272, matrices=2, is_tied=True)


@pytest.mark.parametrize(
    ("model", "num_parameters"),
    [
        (SMOLLM2_135M, 134_515_008),
        (TINYLLAMA_1B, 1_100_048_384),
        (LLAMA2_7B, 6_738_415_616),
        (LLAMA3_8B, 8_030_261_248),
    ],
)
def test_parameters_of_checkpoints(model, num_parameters):
    assert model.num_parameters == num_parameters


def test_parameters_of_palm():
    # To the digits that the paper prints; its blocks have one norm instead of two.
    assert PALM_540B.num_parameters == pytest.approx(540.35e9, rel=1e-4)


def test_kv_bytes_of_opt():
    assert OPT_13B.kv_bytes_per_token(element_bytes=2) == 800 * 1024


def test_palm_has_the_parameters_of_its_paper():
    """8.63, 62.50 and 540.35 billion: Chowdhery et al. 2022, table 1, by our own count."""

    def palm(num_layers, d_model, num_heads):
        return ModelShape(
            num_layers=num_layers, d_model=d_model, num_heads=num_heads, num_kv_heads=1,
            head_dim=256, d_ff=4 * d_model, num_ffn_matrices=3, vocab_size=256_000, is_tied=True,
            is_parallel=True,
        )  # fmt: skip

    billions = [palm(*sizes).num_parameters / 1e9 for sizes in PALM_SIZES]
    assert billions == pytest.approx([8.63, 62.50, 540.35], rel=5e-4)


def test_experts_count_whole_in_memory_and_in_part_for_a_token():
    mixtral = ModelShape(
        num_layers=32, d_model=4096, num_heads=32, num_kv_heads=8, head_dim=128, d_ff=14336,
        num_ffn_matrices=3, vocab_size=32000, is_tied=False, num_experts=8, num_active_experts=2,
    )  # fmt: skip
    assert mixtral.num_parameters == 46_702_792_704
    active = mixtral.num_parameters - mixtral.num_block_parameters
    assert active + mixtral.num_active_block_parameters == 12_879_925_248
