"""The kernels of linear layers against plain products, over a grid of sizes."""

import pytest
import torch

from alpage import native
from alpage.models.quantize import int8_groups, int8_rows

KERNELS = native.load()
ISAS = KERNELS.module.isas() if KERNELS else []
needs_bytes = pytest.mark.skipif(
    not native.has_linear("int8"), reason="needs AVX-512 with VNNI, and a compiler"
)
ROWS = (1, 2, 3, 5, 7, 8, 11, 12, 13, 24, 31, 97, 400)
WIDTHS = ((2, 1), (64, 32), (66, 33), (63, 31), (192, 100), (577, 96), (576, 960))


def made(num_rows, num_in, num_out):
    torch.manual_seed(num_rows + num_in)
    x = torch.randn(num_rows, num_in) * torch.logspace(-2, 2, num_rows)[:, None]
    return x.bfloat16(), (torch.randn(num_out, num_in) / num_in**0.5).bfloat16()


def rounded(x):
    """Rows as the kernels take them: in 8 bits, each 96 numbers in steps of their own."""
    num_in = x.shape[1]
    groups = torch.nn.functional.pad(x.double(), (0, -num_in % 96)).unflatten(1, (-1, 96))
    top = groups.abs().amax(-1, keepdim=True)
    # In float32, as there: what lies halfway between two steps goes to the same one.
    factor = torch.where(top > 0, torch.tensor(127.0) / top.float(), 0)
    steps = (groups.float() * factor).round().double()
    return (steps * top / 127).flatten(1)[:, :num_in]


def close(y, x, weight):
    """But for the rounding of sums to float32 and of the result to bfloat16."""
    expected = x @ weight.T
    scale = x.norm(dim=-1, keepdim=True) * weight.norm(dim=-1)
    return ((y.double() - expected).abs() <= expected.abs() / 250 + 1e-6 * scale).all()


def blocks(num_in, num_out):
    """A matrix of 4 bits: numbers, scales and minimums."""
    torch.manual_seed(num_in)
    number_NK = torch.randint(0, 16, (num_out, num_in)).to(torch.uint8)
    scale_NB = torch.rand(num_out, num_in // 32).half()
    return number_NK, scale_NB, (-8 * scale_NB + torch.randn_like(scale_NB)).half()


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize(("num_in", "num_out"), WIDTHS)
def test_bfloat16(num_rows, num_in, num_out, isa):
    x, weight = made(num_rows, num_in, num_out)
    y = native.linear(x, native.pack(weight), isa=isa)
    assert y.shape == (num_rows, num_out)
    assert close(y, x.double(), weight.double())


@needs_bytes
@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize(("num_in", "num_out"), WIDTHS)
def test_int8_is_exact_but_for_rounding(num_rows, num_in, num_out):
    x, weight = made(num_rows, num_in, num_out)
    x[0] = 0
    whole, scale = int8_rows(weight)
    y = native.linear(x, native.pack_int8(whole, scale))
    assert close(y, rounded(x), whole.double() * scale.double()[:, None])
    assert not y[0].any()


@needs_bytes
@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize(("num_in", "num_out"), WIDTHS)
def test_int8_with_scales_of_groups_is_exact_but_for_rounding(num_rows, num_in, num_out):
    x, weight = made(num_rows, num_in, num_out)
    x[0] = 0
    whole, scale = int8_groups(weight)
    y = native.linear(x, native.pack_int8_groups(whole, scale))
    each = whole.double() * scale.double().repeat_interleave(96, 1)[:, :num_in]
    assert close(y, rounded(x), each)
    assert not y[0].any()


@needs_bytes
@pytest.mark.parametrize("num_rows", ROWS)
@pytest.mark.parametrize(("num_in", "num_out"), [(32, 1), (64, 33), (96, 100), (576, 960)])
def test_int4_is_exact_but_for_rounding(num_rows, num_in, num_out):
    x, _ = made(num_rows, num_in, num_out)
    x[0] = 0
    number_NK, scale_NB, minimum_NB = blocks(num_in, num_out)
    packed = native.pack_int4(number_NK, scale_NB, minimum_NB)
    assert packed.num_bytes * 8 == 5 * num_in * (num_out + -num_out % 32)
    each = number_NK.double().unflatten(1, (-1, 32)) * scale_NB.double()[..., None]
    weight = (each + minimum_NB.double()[..., None]).flatten(1)
    y = native.linear(x, packed)
    assert close(y, rounded(x), weight)
    assert not y[0].any()


@needs_bytes
def test_steps_are_as_fine_as_the_numbers_around():
    x, weight = made(1, 192, 32)
    x[:, 96:] *= 1000
    weight[:, 96:] = 0
    y = native.linear(x, native.pack_int8(*int8_rows(weight)))
    expected = x.double() @ weight.double().T
    assert (y - expected).norm() < 0.02 * expected.norm()


KINDS = {
    "bfloat16": native.pack,
    "int8": lambda weight: native.pack_int8(*int8_rows(weight)),
    "int8_groups": lambda weight: native.pack_int8_groups(*int8_groups(weight)),
    "int4": lambda weight: native.pack_int4(*blocks(weight.shape[1], weight.shape[0])),
}


WAYS = [(kind, isa) for kind in KINDS for isa in ISAS if native.has_linear(kind, isa=isa)]


@pytest.mark.parametrize(("kind", "isa"), WAYS)
def test_a_row_has_the_same_bits_in_any_batch_on_any_threads(kind, isa):
    x, weight = made(40, 576, 100)
    packed = KINDS[kind](weight)
    whole = native.linear(x, packed, isa=isa)
    for start, end in ((0, 1), (3, 16), (39, 40)):
        assert torch.equal(native.linear(x[start:end], packed, isa=isa), whole[start:end])
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert torch.equal(native.linear(x, packed, isa=isa), whole)
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("isa", ISAS)
def test_strides_bias_and_leading_dims(isa):
    x, weight = made(12, 96, 40)
    wide = torch.zeros(12, 200, dtype=torch.bfloat16)
    wide[:, 50:146] = x
    bias = torch.randn(40)
    packed = native.pack(torch.cat((weight, weight), 1)[:, :96])
    expected = (x.float() @ weight.float().T + bias).bfloat16()
    y = native.linear(wide[:, 50:146].view(3, 4, 96), packed, bias, isa=isa)
    torch.testing.assert_close(y, expected.view(3, 4, 40), rtol=1 / 128, atol=1e-3)
    assert native.linear(x[:0], packed, isa=isa).shape == (0, 40)


@pytest.mark.parametrize(("kind", "isa"), WAYS)
@pytest.mark.parametrize("number", [torch.inf, torch.nan])
def test_what_is_no_number_stays_none(kind, isa, number):
    x, weight = made(3, 64, 32)
    x[1, 5] = number
    y = native.linear(x, KINDS[kind](weight), isa=isa)
    assert not y[1].isfinite().any()
    assert y[[0, 2]].isfinite().all()
