"""The GPT-2, Mixtral and PaLM files against transformers, or a plain PaLM, on tiny checkpoints."""

import json
import random

import pytest
import torch
from safetensors.torch import load_file, save_file

from alpage import LLM, SamplingParams
from alpage.errors import BadCheckpoint, Unsupported
from alpage.models import load, open_checkpoint
from alpage.models.architectures import build
from alpage.models.experts import RoutedMLP
from tiny_families import MAX_POSITIONS, make_tiny
from tiny_llama import VOCAB_SIZE

FAMILIES = ("GPT2", "Mixtral", "PaLM")
LENGTH = 100

CASES = {
    "gpt2": ("GPT2", {}),
    "gpt2, own feed-forward": ("GPT2", {"n_inner": 40}),
    "gpt2, one head": ("GPT2", {"n_head": 1}),
    "gpt2, untied": ("GPT2", {"tie_word_embeddings": False}),
    "gpt2, other eps": ("GPT2", {"layer_norm_epsilon": 0.1}),
    "mixtral": ("Mixtral", {}),
    "mixtral, window": ("Mixtral", {"sliding_window": 16}),
    "mixtral, one expert a token": ("Mixtral", {"num_experts_per_tok": 1}),
    "mixtral, every expert": ("Mixtral", {"num_experts_per_tok": 4}),
    "mixtral, three of nine": ("Mixtral", {"num_local_experts": 9, "num_experts_per_tok": 3}),
    "mixtral, tied": ("Mixtral", {"tie_word_embeddings": True}),
    "mixtral, own head dim": ("Mixtral", {"head_dim": 32, "num_key_value_heads": 1}),
    "palm": ("PaLM", {}),
    "palm, grouped heads": ("PaLM", {"num_key_value_heads": 2}),
    "palm, own head dim": ("PaLM", {"head_dim": 32}),
    "palm, untied": ("PaLM", {"tie_word_embeddings": False}),
    "palm, other numbers": ("PaLM", {"layer_norm_eps": 0.1, "rope_theta": 500.0}),
}


# Sums of a few hundred products, in another order. Rotary turns are float32 everywhere, and so are
# transformers' RMSNorm and router.
TOLERANCE = {
    torch.float32: {"GPT2": 5e-6, "Mixtral": 5e-6, "PaLM": 1e-5},
    torch.float64: {"GPT2": 1e-12, "Mixtral": 1e-6, "PaLM": 5e-6},
}


def load_tiny(path, dtype=torch.float32):
    return load(open_checkpoint(path), dtype=dtype, device=torch.device("cpu"))


def logits(model, tokens_BL):
    positions_BL = torch.arange(tokens_BL.shape[1]).expand_as(tokens_BL)
    with torch.no_grad():
        return model(tokens_BL, positions_BL)


def largest_difference(found, expected):
    return ((found - expected).abs().max() / expected.abs().max()).item()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize(("family", "sizes"), CASES.values(), ids=CASES)
def test_logits_equal_the_oracle(family, sizes, dtype, tmp_path):
    oracle = make_tiny(tmp_path, family, **sizes)
    model = load_tiny(tmp_path, dtype)
    tokens_BL = torch.randint(0, VOCAB_SIZE, (2, LENGTH))
    if family == "PaLM":
        expected_BLV = oracle(tokens_BL)
    else:
        with torch.no_grad():
            expected_BLV = oracle.to(dtype)(tokens_BL).logits
    tolerance = TOLERANCE[dtype][family]
    assert largest_difference(logits(model, tokens_BL), expected_BLV) < tolerance


@pytest.mark.parametrize("family", FAMILIES)
def test_the_shape_counts_the_weights(family, tmp_path):
    make_tiny(tmp_path, family)
    model = load_tiny(tmp_path)
    uncounted = [name for name, _ in model.named_parameters() if name.endswith("bias")]
    num_counted = sum(p.numel() for n, p in model.named_parameters() if n not in uncounted)
    if family == "GPT2":
        num_counted -= model.positions.weight.numel()
    assert model.shape.num_parameters == num_counted


@pytest.mark.parametrize("family", FAMILIES)
def test_training_gradients_flow(family, tmp_path):
    make_tiny(tmp_path, family)
    model = load_tiny(tmp_path)
    model.requires_grad_(True)
    tokens_BL = torch.randint(0, VOCAB_SIZE, (2, 40))
    model(tokens_BL, torch.arange(40).expand(2, 40)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.parameters())


# -- through the engine ----------------------------------------------------------------------------

NUM_TOKENS = 25
GREEDY = SamplingParams(temperature=0, max_tokens=NUM_TOKENS)
# Holds one of the longest sequences, or two where two heads share keys and values.
TIGHT = {"kv_memory": "160KiB", "max_num_seqs": 16}
PATHS = {
    "whole prompts": {},
    "chunks": {"max_num_seqs": 8, "max_num_batched_tokens": 8},
    "one at a time": {"max_num_seqs": 1, "has_prefix_cache": False},
    "reference attention": {"attention_backend": "reference"},
    "sdpa attention": {"attention_backend": "sdpa"},
    "swapped": TIGHT | {"swap_memory": "4MiB"},
    "recomputed": TIGHT | {"swap_memory": 0},
}
ENGINE_SIZES = {"GPT2": {}, "Mixtral": {"sliding_window": 20}, "PaLM": {"num_key_value_heads": 2}}


@pytest.fixture(scope="module")
def prompts():
    draw = random.Random(0)
    return [[draw.randrange(6, VOCAB_SIZE) for _ in range(draw.randint(1, 90))] for _ in range(10)]


@pytest.fixture(scope="module", params=FAMILIES)
def checkpoint(request, tmp_path_factory, prompts):
    """A checkpoint, and the oracle's greedy continuations, one prompt at a time."""
    path = tmp_path_factory.mktemp(request.param)
    oracle = make_tiny(path, request.param, **ENGINE_SIZES[request.param])
    if request.param == "PaLM":
        return path, [oracle.generate(prompt, NUM_TOKENS) for prompt in prompts]
    return path, [
        oracle.generate(torch.tensor([prompt]), max_new_tokens=NUM_TOKENS, do_sample=False)[
            0, len(prompt) :
        ].tolist()
        for prompt in prompts
    ]


@pytest.mark.parametrize("options", PATHS.values(), ids=PATHS)
def test_greedy_tokens_equal_the_oracle_on_every_path(options, checkpoint, prompts):
    path, expected = checkpoint
    options = {"dtype": "float32", "device": "cpu", "kv_memory": "64MiB"} | options
    llm = LLM(path, notify=lambda line: None, **options)
    outputs = llm.generate(prompts, GREEDY)
    assert [list(output.outputs[0].token_ids) for output in outputs] == expected
    if "swap_memory" in options:
        assert llm.engine.scheduler.num_preemptions > 0


@pytest.mark.parametrize("family", FAMILIES)
def test_bfloat16_runs(family, tmp_path):
    oracle = make_tiny(tmp_path, family)
    model = load_tiny(tmp_path, torch.bfloat16)
    tokens_BL = torch.randint(0, VOCAB_SIZE, (1, 20))
    found_BLV = logits(model, tokens_BL)
    assert found_BLV.dtype == torch.bfloat16
    expected_BLV = oracle(tokens_BL)
    expected_BLV = expected_BLV if family == "PaLM" else expected_BLV.logits
    # Where a token's second and third expert are nearly equal, rounding picks the other one.
    distance_BL = (found_BLV - expected_BLV).norm(dim=-1) / expected_BLV.norm(dim=-1)
    assert distance_BL.median() < 0.1


# -- experts ---------------------------------------------------------------------------------------


def test_experts_equal_a_loop_over_tokens(tmp_path):
    make_tiny(tmp_path, "Mixtral", num_local_experts=5, num_experts_per_tok=3)
    mlp = load_tiny(tmp_path, torch.float64).blocks["0"].mlp
    assert isinstance(mlp, RoutedMLP)
    x_BLD = torch.randn(2, 7, 64, dtype=torch.float64)
    expected = torch.zeros_like(x_BLD)
    for place in ((b, i) for b in range(2) for i in range(7)):
        scores = (mlp.router.weight @ x_BLD[place]).tolist()
        best = sorted(range(5), key=lambda expert: -scores[expert])[:3]
        weights = torch.tensor([scores[expert] for expert in best], dtype=x_BLD.dtype).softmax(0)
        for weight, expert in zip(weights, best, strict=True):
            gate, up = (mlp.gate_up.weight[expert] @ x_BLD[place]).chunk(2)
            out = mlp.down.weight[expert] @ (gate * gate.sigmoid() * up)
            expected[place] += weight * out
    assert largest_difference(mlp(x_BLD), expected) < 1e-12


def test_one_token_leaves_most_experts_idle(tmp_path):
    make_tiny(tmp_path, "Mixtral", num_local_experts=9)
    model = load_tiny(tmp_path)
    tokens_BL = torch.randint(0, VOCAB_SIZE, (1, 12))
    whole = logits(model, tokens_BL)
    assert largest_difference(logits(model, tokens_BL[:, :1]), whole[:, :1]) < 1e-5


# -- checkpoints as the hub has them ---------------------------------------------------------------


def test_gpt2_without_prefix_and_with_old_masks_is_read(tmp_path):
    """As openai-community/gpt2: names of the bare transformer, and buffers of the causal mask."""
    make_tiny(tmp_path, "GPT2")
    tokens_BL = torch.randint(0, VOCAB_SIZE, (1, 20))
    expected_BLV = logits(load_tiny(tmp_path), tokens_BL)
    whole = load_file(tmp_path / "model.safetensors")
    mask = torch.ones(1, 1, MAX_POSITIONS, MAX_POSITIONS).tril()
    masks = {"attn.bias": mask.to(torch.uint8), "attn.masked_bias": torch.tensor(-1e4)}
    masks = {f"transformer.h.{i}.{k}": v.clone() for i in range(2) for k, v in masks.items()}
    bare = {k.removeprefix("transformer."): v for k, v in (whole | masks).items()}
    tied = {"lm_head.weight": whole["transformer.wte.weight"].clone()}
    for tensors in (whole | masks | tied, bare):
        save_file(tensors, tmp_path / "model.safetensors")
        assert torch.equal(logits(load_tiny(tmp_path), tokens_BL), expected_BLV)


def test_mixtral_names_are_those_of_the_hub(tmp_path):
    make_tiny(tmp_path, "Mixtral")
    names = load_file(tmp_path / "model.safetensors")
    assert "model.layers.1.block_sparse_moe.experts.3.w2.weight" in names
    assert "model.layers.1.block_sparse_moe.gate.weight" in names


WRONG_TENSORS = [
    ("GPT2", "transformer.h.1.attn.c_attn.weight", lambda x: x.t(), r"\(192, 64\)"),
    ("GPT2", "transformer.h.1.mlp.c_fc.bias", None, "missing"),
    ("GPT2", "transformer.wpe.weight", lambda x: x[:-1], r"\(256, 64\)"),
    ("Mixtral", "model.layers.1.block_sparse_moe.experts.2.w3.weight", None, "missing"),
    ("Mixtral", "model.layers.1.block_sparse_moe.experts.2.w2.weight", lambda x: x.t(), "w2"),
    ("PaLM", "model.layers.0.mlp.down_proj.weight", lambda x: x[:, 1:], "down_proj"),
    ("PaLM", "model.layers.0.self_attn.o_proj.weight", lambda x: x.new_zeros(64), "o_proj"),
]


@pytest.mark.parametrize(("family", "name", "change", "named"), WRONG_TENSORS)
def test_tensors_that_do_not_fit_are_refused(family, name, change, named, tmp_path):
    make_tiny(tmp_path, family)
    tensors = load_file(tmp_path / "model.safetensors")
    tensor = tensors.pop(name)
    if change is not None:
        tensors[name] = change(tensor).contiguous()
    save_file(tensors, tmp_path / "model.safetensors")
    with pytest.raises(BadCheckpoint, match=named):
        load_tiny(tmp_path)


def test_more_experts_than_the_config_says_are_refused(tmp_path):
    make_tiny(tmp_path, "Mixtral")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"num_local_experts": 3}))
    with pytest.raises(BadCheckpoint, match="gate"):
        load_tiny(tmp_path)


BAD_CONFIGS = [
    ("GPT2", {"n_head": 5}, BadCheckpoint, "n_embd=64: must be a multiple of n_head=5"),
    ("GPT2", {"n_layer": None}, BadCheckpoint, "n_layer=None"),
    ("GPT2", {"n_positions": 0}, BadCheckpoint, "n_positions=0"),
    ("GPT2", {"layer_norm_epsilon": "small"}, BadCheckpoint, "layer_norm_epsilon"),
    ("GPT2", {"activation_function": "relu"}, Unsupported, "gelu_new"),
    ("GPT2", {"scale_attn_weights": False}, Unsupported, "scale_attn_weights=False: must be True"),
    ("GPT2", {"scale_attn_by_inverse_layer_idx": True}, Unsupported, "inverse_layer_idx"),
    ("GPT2", {"add_cross_attention": True}, Unsupported, "add_cross_attention"),
    ("GPT2", {"tie_word_embeddings": "yes"}, BadCheckpoint, "true or false"),
    ("Mixtral", {"num_local_experts": 0}, BadCheckpoint, "num_local_experts=0"),
    ("Mixtral", {"num_experts_per_tok": 5}, BadCheckpoint, "at most num_local_experts=4"),
    ("Mixtral", {"num_key_value_heads": 3}, BadCheckpoint, "num_key_value_heads=3"),
    ("Mixtral", {"head_dim": 15}, BadCheckpoint, "head_dim=15"),
    ("Mixtral", {"hidden_act": "gelu"}, Unsupported, "silu"),
    ("Mixtral", {"sliding_window": -1}, BadCheckpoint, "sliding_window=-1"),
    ("PaLM", {"num_key_value_heads": 3}, BadCheckpoint, "num_key_value_heads=3"),
    ("PaLM", {"intermediate_size": None}, BadCheckpoint, "intermediate_size=None"),
    ("PaLM", {"head_dim": 7}, BadCheckpoint, "head_dim=7"),
    ("PaLM", {"layer_norm_eps": 0}, BadCheckpoint, "layer_norm_eps=0"),
    ("PaLM", {"rope_theta": -1}, BadCheckpoint, "rope_theta=-1"),
]


@pytest.mark.parametrize(("family", "change", "error", "named"), BAD_CONFIGS)
def test_bad_configs_are_refused(family, change, error, named, tmp_path):
    make_tiny(tmp_path, family)
    config = dict(open_checkpoint(tmp_path).config)
    build(config)
    with pytest.raises(error, match=named):
        build(config | change)


def test_a_position_behind_the_last_is_never_looked_up_silently(tmp_path):
    make_tiny(tmp_path, "GPT2")
    model = load_tiny(tmp_path)
    with pytest.raises(IndexError):
        model(torch.tensor([[6]]), torch.tensor([[MAX_POSITIONS]]))
