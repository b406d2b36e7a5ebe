"""Norms, gates and rotary turns by the kernels against PyTorch, for each instruction set."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from alpage import native
from alpage.ops import sampling
from alpage.ops.rows import rotate as rotate_by_operators

KERNELS = native.load()
pytestmark = pytest.mark.skipif(KERNELS is None, reason="the kernels were not built")
ISAS = KERNELS.module.isas() if KERNELS else []
# Near a tie float32 may round to the neighbour.
DTYPES = {torch.float32: 2e-6, torch.bfloat16: 1 / 128}


def close(y, expected, dtype):
    torch.testing.assert_close(y, expected.to(dtype), rtol=DTYPES[dtype], atol=DTYPES[dtype] / 8)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 7, 16, 33, 576, 2049])
def test_rms_norm(size, dtype, isa):
    torch.manual_seed(size)
    wide = torch.randn(90, size + 5).to(dtype)
    x, weight = wide[:, 3 : 3 + size], torch.randn(size).to(dtype)
    expected = F.rms_norm(x.double(), (size,), weight.double(), 1e-5)
    close(native.rms_norm(x, weight, 1e-5, isa=isa), expected, dtype)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 9, 32, 1536])
def test_silu_mul(size, dtype, isa):
    torch.manual_seed(size)
    x = (torch.randn(3, 21, 2 * size) * 8).to(dtype)
    x[0, 0, 0], x[0, 1, 0] = 300, -300
    gate, up = x.double().chunk(2, dim=-1)
    close(native.silu_mul(x, isa=isa), F.silu(gate) * up, dtype)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("head_dim", [2, 10, 64, 128])
def test_rotate(head_dim, dtype, isa):
    torch.manual_seed(head_dim)
    x = torch.randn(70, 5, head_dim).to(dtype)[:, 1:4]
    angles = torch.rand(70, head_dim // 2) * 9
    turn = torch.cat((angles.cos(), angles.sin()), dim=-1)
    expected = rotate_by_operators(x.double(), turn.double())
    close(native.rotate(x, turn, isa=isa), expected, dtype)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 5, 16, 100, 49152])
def test_draw(size, dtype, isa):
    torch.manual_seed(size)
    num_rows = 40
    spread_R1 = torch.linspace(0.1, 9, num_rows)[:, None]
    wide_RV = (torch.randn(num_rows, size + 8) * spread_R1).to(dtype)
    logits_RV = wide_RV[:, 8:]
    logits_RV[3], logits_RV[4] = 1, -torch.inf
    logits_RV[4, -1] = 0
    temperature_R = torch.tensor([0, 1, 0.2, 3, 1]).repeat(num_rows // 5)
    key_R = torch.randint(2**63 - 1, (num_rows,))
    noise_RV = sampling.gumbel(key_R, torch.arange(size))
    scaled_RV = logits_RV.float() / temperature_R[:, None].where(temperature_R[:, None] > 0, 1)
    expected_R = (scaled_RV + noise_RV * (temperature_R > 0)[:, None]).argmax(-1)
    assert torch.equal(native.draw(logits_RV, temperature_R, key_R, isa=isa), expected_R)


@pytest.mark.parametrize("isa", ISAS)
def test_draw_is_by_probability(isa):
    logits_RV = torch.tensor([0.0, 1.0, -1.0, 2.0]).expand(20_000, 4).contiguous()
    index = np.arange(len(logits_RV)).astype(np.uint64)
    key_R = torch.from_numpy(sampling.keys(index, np.zeros_like(index), np.zeros_like(index)))
    drawn_R = native.draw(logits_RV, torch.full((len(index),), 2.0), key_R, isa=isa)
    share_V = torch.bincount(drawn_R, minlength=4) / len(index)
    torch.testing.assert_close(share_V, (logits_RV[0] / 2).softmax(-1), rtol=0, atol=0.015)


def test_first_of_equals_is_the_likeliest():
    logits_RV = torch.zeros(1, 200)
    logits_RV[0, [37, 38, 150, 199]] = 5
    token_R = native.draw(logits_RV, torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    assert token_R.tolist() == [37]


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("size", [1, 5, 64, 100, 49152])
def test_log_sum_exp(size, dtype, isa):
    torch.manual_seed(size)
    logits_RV = (torch.randn(9, size) * torch.linspace(0.1, 30, 9)[:, None]).to(dtype)
    logits_RV[2] = -1e4
    logits_RV[3, 1:] = -torch.inf
    found_R = native.log_sum_exp(logits_RV, isa=isa)
    expected_R = logits_RV.double().logsumexp(-1).float()
    torch.testing.assert_close(found_R, expected_R, rtol=1e-6, atol=2e-6)
    alone = [native.log_sum_exp(row_1V, isa=isa) for row_1V in logits_RV.split(1)]
    assert torch.equal(torch.cat(alone), found_R)
