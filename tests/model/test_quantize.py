"""Matrices in 8 bits: how far they are from what they were, and what that does to logits."""

import pytest
import torch

from alpage.models import load, open_checkpoint
from alpage.models.quantize import int8_groups, int8_rows
from tiny_families import make_tiny
from tiny_llama import make_tiny_llama

CPU = torch.device("cpu")


def test_errors_are_at_most_half_a_step():
    torch.manual_seed(0)
    weight_NFD = torch.randn(3, 5, 64) * torch.logspace(-4, 4, 5)[:, None]
    weight_NFD[1, 2] = 0
    whole_NFD, scale_NF = int8_rows(weight_NFD)
    assert whole_NFD.dtype == torch.int8
    assert whole_NFD.abs().max() == 127
    step_NF1 = weight_NFD.abs().amax(-1, keepdim=True) / 127
    error_NFD = (whole_NFD * scale_NF[..., None] - weight_NFD).abs()
    assert (error_NFD <= 0.5001 * step_NF1).all()


@pytest.mark.parametrize("num_in", [96, 150])
def test_groups_of_8_bits_have_steps_of_their_own(num_in):
    torch.manual_seed(0)
    weight_FD = torch.randn(9000, num_in) * torch.logspace(-3, 3, 9000)[:, None]
    weight_FD[7] = 0
    whole_FD, scale_FG = int8_groups(weight_FD)
    step_FD = scale_FG.float().repeat_interleave(96, 1)[:, :num_in]
    # Of float16 are the scales, so the greatest number of a group may be cut by a 2048th.
    room_FD = 0.5001 * step_FD + weight_FD.abs() / 2000
    assert ((whole_FD * step_FD - weight_FD).abs() <= room_FD).all()
    assert not whole_FD[7].any()


@pytest.mark.parametrize("family", ["Llama", "GPT2", "Mixtral", "PaLM"])
def test_logits_are_close_and_weights_small(family, tmp_path):
    make = make_tiny_llama if family == "Llama" else make_tiny
    make(*((tmp_path,) if family == "Llama" else (tmp_path, family)))
    checkpoint = open_checkpoint(tmp_path)
    tokens_BL, positions_BL = torch.arange(24).view(2, 12), torch.arange(12).expand(2, 12)
    whole, small = (
        load(checkpoint, dtype=torch.float32, device=CPU, quantization=quantization)
        for quantization in (None, "int8")
    )
    expected_BLV, logits_BLV = whole(tokens_BL, positions_BL), small(tokens_BL, positions_BL)
    error = (logits_BLV - expected_BLV).square().mean().sqrt()
    assert 0 < error < 0.03 * expected_BLV.std()
    in_8_bits = [name for name, one in small.named_parameters() if one.dtype == torch.int8]
    assert len(in_8_bits) >= 2 * whole.shape.num_layers
    assert not any("router" in name or "embedding" in name for name in in_8_bits)
