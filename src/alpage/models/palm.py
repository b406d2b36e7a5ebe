"""PaLM: models in the style of PaLM 8B, 62B and 540B, whose own weights are not public.

The choices of the architecture (Chowdhery et al. 2022, arXiv:2204.02311, section 2):
    decoder only, with parallel blocks: `x += attention(norm(x)) + mlp(norm(x))`, one norm for both
    LayerNorm without a bias, before every block and once at the end
    multi-query attention: all query heads share one key/value head (Shazeer 2019,
    arXiv:1911.02150)
    rotary positions on queries and keys; a pair of features is (j, j + K/2), as in Llama
    SwiGLU feed-forward: down(silu(gate(x)) * up(x)) (Shazeer 2020, arXiv:2002.05202)
    no biases anywhere
    the vocabulary projection is the embedding, whose values are large, so tied logits are scaled by
    1/sqrt(D) (section 5)

Since the halves of a block read the same input, q, k, v, gate and up are one matrix here, and since
their outputs are added, out and down are one too: two products a block.

No library has a class for it, so the checkpoint's form is our own: safetensors under the names at
the end of this file, each a matrix of its own, and a config.json of
    architectures              ["PaLMForCausalLM"]
    hidden_size, num_attention_heads, intermediate_size, num_hidden_layers, vocab_size
    num_key_value_heads        1 if missing
    head_dim                   hidden_size / num_attention_heads if missing
    layer_norm_eps             1e-6 if missing
    rope_theta                 10000 if missing
    max_position_embeddings    2048 if missing
    tie_word_embeddings        true if missing

Dims: T tokens (any leading dims: a flat serving step, or B L in training), D model, H query heads,
G key/value heads, K head dim, F feed-forward, V vocabulary, R rows whose logits are wanted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from alpage.models import rope
from alpage.models.config import MAX_LAYERS, MAX_POSITIONS, ConfigReader
from alpage.models.layers import Embedding, Head, LayerNorm, Linear
from alpage.models.model import Model
from alpage.models.weights import Columns
from alpage.ops.attention import PagedLayer, attention
from alpage.ops.rows import rotate, silu_mul
from alpage.partition import Sharder, Stage
from alpage.workload import ModelShape


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PaLMConfig:
    """The numbers of one PaLM."""

    shape: ModelShape
    max_positions: int
    norm_eps: float
    rope_theta: float

    @staticmethod
    def from_hf(config: Mapping[str, Any]) -> "PaLMConfig":
        """Read a config.json in the form that the head of this file says.

        Raises:
            BadCheckpoint: a number is missing or does not fit the others.
        """
        read = ConfigReader(config)
        d_model, num_heads = read.size("hidden_size"), read.size("num_attention_heads")
        shape = ModelShape(
            num_layers=read.size("num_hidden_layers", at_most=MAX_LAYERS),
            d_model=d_model,
            num_heads=num_heads,
            num_kv_heads=read.size("num_key_value_heads", default=1),
            head_dim=read.size("head_dim", default=max(1, d_model // num_heads)),
            d_ff=read.size("intermediate_size"),
            num_ffn_matrices=3,
            vocab_size=read.size("vocab_size"),
            is_tied=read.flag("tie_word_embeddings", default=True),
            is_parallel=True,
            num_norm_statistics=2,
        )
        read.must_divide(
            "num_key_value_heads", shape.num_kv_heads, "num_attention_heads", num_heads
        )
        read.must_divide("2", 2, "head_dim", shape.head_dim)
        return PaLMConfig(
            shape=shape,
            max_positions=read.size("max_position_embeddings", default=2048, at_most=MAX_POSITIONS),
            norm_eps=read.number("layer_norm_eps", default=1e-6),
            rope_theta=read.number("rope_theta", default=1e4),
        )


@final
class PaLM(Model):
    """tokens_T -> logits_TV, or a stage of the way."""

    def __init__(self, config: PaLMConfig, sharder: Sharder, stage: Stage | None) -> None:
        super().__init__()
        shape = config.shape
        stage = stage or Stage.whole(shape.num_layers)
        self.config = config
        self.sharder = sharder
        self.embedding = self.norm = self.head = None
        if stage.is_first or (stage.is_last and shape.is_tied):
            self.embedding = Embedding(shape.vocab_size, shape.d_model, sharder)
        self.blocks = nn.ModuleDict({str(layer): Block(config, sharder) for layer in stage.layers})
        if stage.is_last:
            self.norm = LayerNorm(shape.d_model, config.norm_eps, sharder, has_bias=False)
            self.head = self.embedding if shape.is_tied else Head(shape, sharder)
        frequency_J, self.turn_factor = rope.frequencies(
            shape.head_dim, config.rope_theta, {}, config.max_positions
        )
        self.frequency_J = nn.Buffer(frequency_J, persistent=False)

    @property
    def shape(self) -> ModelShape:
        """Its sizes."""
        return self.config.shape

    @property
    def max_positions(self) -> int:
        """Tokens of the longest sequence."""
        return self.config.max_positions

    def enter(self, tokens_T: Tensor, positions_T: Tensor) -> Tensor:  # noqa: ARG002
        """Embed."""
        assert self.embedding is not None, "the first stage enters"
        return self.embedding(tokens_T)  # type: ignore[no-any-return]

    def turns(self, positions_T: Tensor) -> Tensor:
        """Work out the angles."""
        position_T = self.sharder.attended(positions_T)
        return rope.turns(position_T, self.frequency_J, self.turn_factor)

    def leave(self, x_TD: Tensor) -> Tensor:
        """Normalise."""
        assert self.norm is not None, "the last stage leaves"
        return self.norm(x_TD)  # type: ignore[no-any-return]

    def logits(self, x_RD: Tensor) -> Tensor:
        """Project to the vocabulary."""
        assert self.head is not None, "the last stage gives logits"
        if self.shape.is_tied:
            x_RD = x_RD * self.shape.d_model**-0.5
        return self.head.logits(x_RD)


@final
class Block(nn.Module):
    """x_TD -> x_TD: attention and feed-forward side by side."""

    def __init__(self, config: PaLMConfig, sharder: Sharder) -> None:
        super().__init__()
        shape = config.shape
        self.sharder = sharder
        self.head_dim = shape.head_dim
        num_kv_heads, num_ffw = (
            sharder.share("G", shape.num_kv_heads),
            sharder.share("F", shape.d_ff),
        )
        self.heads = [sharder.share("H", shape.num_heads), 2 * num_kv_heads]
        self.widths = [sum(self.heads) * shape.head_dim, 2 * num_ffw]
        embed, gate = ("E", shape.d_model), ("F", shape.d_ff)
        query = ("H", shape.num_heads * shape.head_dim)
        key = value = ("G", shape.num_kv_heads * shape.head_dim)
        self.norm = LayerNorm(shape.d_model, config.norm_eps, sharder, has_bias=False)
        self.qkv_gate_up = Linear((embed,), (query, key, value, gate, gate), sharder)
        self.out_down = Linear((query, gate), (embed,), sharder)

    def forward(self, x_TD: Tensor, turn_TK: Tensor, kv: PagedLayer | None) -> Tensor:
        """Project once for both, attend and gate, project back once for both."""
        constrain = self.sharder.constrain
        wide = self.qkv_gate_up(constrain(self.norm(x_TD), "block input"))
        qkv, both_TF = wide.split(self.widths, dim=-1)
        q_THK, kv_TGK = qkv.unflatten(-1, (-1, self.head_dim)).split(self.heads, dim=-2)
        q_THK = rotate(constrain(q_THK, "queries"), turn_TK)
        k_TGK, v_TGK = constrain(kv_TGK.unflatten(-2, (2, -1)), "keys and values").unbind(-3)
        out_THK = attention(q_THK, rotate(k_TGK, turn_TK), v_TGK, kv)
        both_T2F = constrain(both_TF.unflatten(-1, (2, -1)), "hidden, partial")
        hidden_TF = constrain(silu_mul(both_T2F), "hidden")
        both = torch.cat((constrain(out_THK, "attended").flatten(-2), hidden_TF), dim=-1)
        return x_TD + constrain(self.out_down(both), "block output")


def build(config: Mapping[str, Any], sharder: Sharder, stage: Stage | None) -> PaLM:
    """Return a PaLM without weights from a config.json."""
    return PaLM(PaLMConfig.from_hf(config), sharder, stage)


# Our parameter <- the stored tensors whose rows it stacks, or whose columns lie side by side in it.
# `{}` is the number of the block.
WEIGHTS: Mapping[str, tuple[str, ...]] = {
    "embedding": ("model.embed_tokens",),
    "blocks.{}.norm": ("model.layers.{}.input_layernorm",),
    "blocks.{}.qkv_gate_up": (
        "model.layers.{}.self_attn.q_proj",
        "model.layers.{}.self_attn.k_proj",
        "model.layers.{}.self_attn.v_proj",
        "model.layers.{}.mlp.gate_proj",
        "model.layers.{}.mlp.up_proj",
    ),
    "blocks.{}.out_down": Columns(
        ("model.layers.{}.self_attn.o_proj", "model.layers.{}.mlp.down_proj")
    ),
    "norm": ("model.norm",),
    "head": ("lm_head",),
}
