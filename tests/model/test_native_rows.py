"""Norms, gates and rotary turns by the kernels against PyTorch, for each instruction set."""

import pytest
import torch
import torch.nn.functional as F

from alpage import native
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
