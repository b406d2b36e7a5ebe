"""The engine on a CUDA device, with plain PyTorch operators, against the same engine on the CPU."""

import sys
from pathlib import Path

import pytest
import torch

from alpage import LLM, BeamSearchParams, SamplingParams

sys.path.insert(0, str(Path(__file__).parents[1] / "model"))

from tiny_llama import make_tiny_llama

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

PARAMS = [
    SamplingParams(temperature=0, max_tokens=30),
    SamplingParams(n=3, seed=1, top_p=0.9, max_tokens=20),
    BeamSearchParams(beam_width=3, max_tokens=20),
]


@pytest.mark.parametrize("params", PARAMS)
@pytest.mark.parametrize(
    "options", [{}, {"kv_memory": "256KiB", "swap_memory": "4MiB", "max_num_seqs": 16}]
)
def test_cuda_equals_cpu(params, options, tmp_path):
    make_tiny_llama(tmp_path)
    prompts = [list(range(6, 6 + length)) for length in range(5, 85, 8)]
    found = [
        LLM(tmp_path, device=device, dtype="float32", notify=lambda line: None, **options).generate(
            prompts, params
        )
        for device in ("cpu", "cuda")
    ]
    for one, other in zip(*found, strict=True):
        assert [c.token_ids for c in one.outputs] == [c.token_ids for c in other.outputs]
