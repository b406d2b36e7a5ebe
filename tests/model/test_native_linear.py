"""The kernels of linear layers against plain products, over a grid of sizes."""

import pytest
import torch

from alpage import native
from alpage.models.quantize import int8_rows

pytestmark = pytest.mark.skipif(
    not native.has_linear(), reason="needs AVX-512 with bf16 and VNNI, and a compiler"
)
ROWS = (1, 2, 3, 5, 7, 8, 11, 12, 13, 24, 31, 97, 400)
WIDTHS = ((2, 1), (64, 32), (66, 33), (63, 31), (192, 100), (577, 96), (576, 960))


def made(num_rows, num_in, num_out):
    torch.manual_seed(num_rows + num_in)
    x = torch.randn(num_rows, num_in) * torch.logspace(-2, 2, num_rows)[:, None]
    return x.bfloat16(), (torch.randn(num_out, num_in) / num_in**0.5).bfloat16()


def rounded_row(x):
    """A row in 8 bits, as int64, and its scale."""
    top = x.float().abs().amax(-1, keepdim=True)
    factor = torch.where(top > 0, torch.tensor(127.0) / top, 0)
    return (x.float() * factor).round().long(), top / 127


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize(("num_in", "num_out"), WIDTHS)
def test_bfloat16(num_rows, num_in, num_out):
    x, weight = made(num_rows, num_in, num_out)
    expected = x.double() @ weight.double().T
    packed = native.pack(weight)
    y = native.linear(x, packed)
    assert y.shape == (num_rows, num_out)
    # Sums of float32, rounded to bfloat16.
    scale = x.double().norm(dim=-1, keepdim=True) * weight.double().norm(dim=-1)
    assert ((y.double() - expected).abs() <= expected.abs() / 250 + 1e-6 * scale).all()


@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize(("num_in", "num_out"), WIDTHS)
def test_int8_is_exact_but_for_rounding(num_rows, num_in, num_out):
    x, weight = made(num_rows, num_in, num_out)
    x[0] = 0
    whole, scale = int8_rows(weight)
    y = native.linear(x, native.pack_int8(whole, scale))
    rounded, x_scale = rounded_row(x)
    expected = (rounded @ whole.long().T).float() * (x_scale * scale.float())
    torch.testing.assert_close(y, expected.bfloat16(), rtol=1 / 128, atol=0)
    assert not y[0].any()


@pytest.mark.parametrize("kind", ["bfloat16", "int8"])
def test_a_row_has_the_same_bits_in_any_batch_on_any_threads(kind):
    x, weight = made(40, 576, 100)
    packed = native.pack(weight) if kind == "bfloat16" else native.pack_int8(*int8_rows(weight))
    whole = native.linear(x, packed)
    for start, end in ((0, 1), (3, 16), (39, 40)):
        assert torch.equal(native.linear(x[start:end], packed), whole[start:end])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(native.linear(x, packed), whole)
    finally:
        torch.set_num_threads(threads)


def test_strides_bias_and_leading_dims():
    x, weight = made(12, 96, 40)
    wide = torch.zeros(12, 200, dtype=torch.bfloat16)
    wide[:, 50:146] = x
    bias = torch.randn(40)
    packed = native.pack(torch.cat((weight, weight), 1)[:, :96])
    expected = (x.float() @ weight.float().T + bias).bfloat16()
    y = native.linear(wide[:, 50:146].view(3, 4, 96), packed, bias)
    torch.testing.assert_close(y, expected.view(3, 4, 40), rtol=1 / 128, atol=1e-3)
    assert native.linear(x[:0], packed).shape == (0, 40)


def test_what_is_no_number_stays_none():
    x, weight = made(3, 64, 32)
    x[1, 5] = torch.inf
    y = native.linear(x, native.pack(weight))
    assert not y[1].isfinite().all()
    assert y[[0, 2]].isfinite().all()
