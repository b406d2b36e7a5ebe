"""Matrices of GGUF files that stay in 4 bits."""

import numpy as np
import pytest
import torch

from alpage import LLM, SamplingParams, native
from alpage.errors import InvalidValue, Unsupported
from alpage.models import load, open_checkpoint
from tiny_gguf import Kind, llama_weights, write_llama
from tiny_llama import make_tiny_llama

needs_kernels = pytest.mark.skipif(
    not native.has_linear("int4"), reason="the kernels for linear layers are not for this machine"
)
CPU = torch.device("cpu")
PROMPTS = [[3], [1, 2, 3, 4, 5], [*range(30)]]
PARAMS = SamplingParams(temperature=0, max_tokens=20, ignore_eos=True, logprobs=2)


def llm_of(path, quantization="int4", **settings):
    usual = {"kv_memory": "4MiB", "dtype": "bfloat16", "device": "cpu"}
    return LLM(path, quantization=quantization, **(usual | settings))


def bits(outputs):
    return [(out.outputs[0].token_ids, out.outputs[0].logprobs) for out in outputs]


@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1])
def test_numbers_are_those_that_the_gguf_package_reads(tmp_path, kind):
    checkpoint = open_checkpoint(write_llama(tmp_path / "m.gguf", llama_weights(), kind=kind))
    for part in ("self_attn.q_proj", "self_attn.k_proj", "mlp.down_proj"):
        tensor = checkpoint.tensors[f"model.layers.1.{part}.weight"]
        matrix = tensor.int4()
        number_FBb = matrix.number_FD.float().unflatten(1, (-1, 32))
        scaled_FBb = number_FBb * matrix.scale_FB.float()[..., None]
        weight_FD = (scaled_FBb + matrix.minimum_FB.float()[..., None]).flatten(1)
        torch.testing.assert_close(weight_FD, tensor.load(), rtol=1e-6, atol=1e-6)
    assert checkpoint.tensors["model.norm.weight"].int4() is None


def test_other_types_are_not_of_4_bits(tmp_path):
    checkpoint = open_checkpoint(write_llama(tmp_path / "m.gguf", llama_weights(), kind=Kind.Q8_0))
    assert all(tensor.int4() is None for tensor in checkpoint.tensors.values())


@needs_kernels
@pytest.mark.parametrize("kind", [Kind.Q4_0, Kind.Q4_1])
def test_logits_are_close_to_those_of_floats(tmp_path, kind):
    weights = {
        name: weight if weight.ndim == 1 else weight / np.sqrt(weight.shape[1])
        for name, weight in llama_weights(is_tied=False).items()
    }
    checkpoint = open_checkpoint(write_llama(tmp_path / "m.gguf", weights, kind=kind))
    tokens_BL, positions_BL = torch.arange(24).view(2, 12), torch.arange(12).expand(2, 12)
    whole, small = (
        load(checkpoint, dtype=torch.bfloat16, device=CPU, quantization=quantization)
        for quantization in (None, "int4")
    )
    expected_BLV = whole(tokens_BL, positions_BL).float()
    error = (small(tokens_BL, positions_BL) - expected_BLV).square().mean().sqrt()
    assert 0 < error < 0.05 * expected_BLV.std()
    kinds = {name: one.packed.kind for name, one in small.named_modules() if is_packed(one)}
    assert sum(kind == "int4" for kind in kinds.values()) == 4 * whole.shape.num_layers
    assert kinds["head"] == "int8_groups"


def is_packed(module):
    return getattr(module, "packed", None) is not None


@needs_kernels
@pytest.mark.parametrize("settings", [{}, {"max_num_batched_tokens": 8, "max_num_seqs": 2}])
def test_same_bits_in_any_batch_and_without_the_program(tmp_path, settings):
    path = write_llama(tmp_path / "m.gguf", llama_weights(), kind=Kind.Q4_1)
    alone = llm_of(path)
    expected = [one for prompt in PROMPTS for one in bits(alone.generate([prompt], PARAMS))]
    found = llm_of(path, **settings)
    assert bits(found.generate(PROMPTS, PARAMS)) == expected
    plain = llm_of(path, **settings)
    (view,) = plain.engine.runner.views
    assert view.program is not None
    plain.engine.runner.views = [type(view)(model=view.model)]
    assert bits(plain.generate(PROMPTS, PARAMS)) == expected


@needs_kernels
def test_files_without_4_bits_are_refused(tmp_path):
    make_tiny_llama(tmp_path)
    with pytest.raises(Unsupported, match="stored in 4 bits"):
        llm_of(tmp_path)
    with pytest.raises(Unsupported, match="stored in 4 bits"):
        llm_of(write_llama(tmp_path / "m.gguf", llama_weights(), kind=Kind.Q8_0))


def test_what_the_kernels_do_not_take_is_refused(tmp_path):
    path = write_llama(tmp_path / "m.gguf", llama_weights(), kind=Kind.Q4_0)
    with pytest.raises(Unsupported, match="native kernels"):
        llm_of(path, dtype="float32")
    with pytest.raises(InvalidValue, match="devices=2"):
        llm_of(path, devices=2)
