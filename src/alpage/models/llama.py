"""Llama: Llama 2 and 3, Mistral, SmolLM2, TinyLlama and every other checkpoint of that form.

The choices of the architecture (Touvron et al. 2023, arXiv:2307.09288):
    decoder only, every block `x += attention(norm(x)); x += mlp(norm(x))`
    RMSNorm before attention and MLP, and once at the end
    rotary positions on queries and keys
    grouped-query attention: H query heads share G key/value heads (Ainslie et al. 2023,
    arXiv:2305.13245) SwiGLU feed-forward: down(silu(gate(x)) * up(x)) (Shazeer 2020,
    arXiv:2002.05202) no biases unless the config says so; the vocabulary projection may be tied to
    the embedding
    Mistral: attention sees a window of positions (Jiang et al. 2023, arXiv:2310.06825)

Here q, k, v are one matrix and so are gate and up: fewer, larger products.

Dims: T tokens (any leading dims: a flat serving step, or B L in training), D model, H query heads,
G key/value heads, K head dim, F feed-forward, V vocabulary, R rows whose logits are wanted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from alpage.models import rope
from alpage.models.config import MAX_LAYERS, MAX_POSITIONS, ConfigReader
from alpage.models.layers import Embedding, Head, Linear, RMSNorm
from alpage.models.model import Model
from alpage.ops.attention import PagedLayer, attention
from alpage.ops.rows import rotate, silu_mul
from alpage.partition import Sharder, Stage
from alpage.workload import ModelShape


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class LlamaConfig:
    """The numbers of one Llama. `rope_scaling` is as in a Hugging Face config, empty for none."""

    shape: ModelShape
    max_positions: int
    norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any]
    window: int | None
    has_attention_bias: bool
    has_mlp_bias: bool

    @staticmethod
    def from_hf(config: Mapping[str, Any]) -> "LlamaConfig":
        """Read a Hugging Face config.json.

        Raises:
            BadCheckpoint: a number is missing or does not fit the others.
            Unsupported: it asks for what this file does not compute.
        """
        read = ConfigReader(config)
        d_model, num_heads = read.size("hidden_size"), read.size("num_attention_heads")
        rope_config = read.table("rope_parameters") or read.table("rope_scaling")
        read.must_be("hidden_act", ("silu", "swish"), default="silu")
        shape = ModelShape(
            num_layers=read.size("num_hidden_layers", at_most=MAX_LAYERS),
            d_model=d_model,
            num_heads=num_heads,
            num_kv_heads=read.size("num_key_value_heads", default=num_heads),
            head_dim=read.size("head_dim", default=max(1, d_model // num_heads)),
            d_ff=read.size("intermediate_size"),
            num_ffn_matrices=3,
            vocab_size=read.size("vocab_size"),
            is_tied=read.flag("tie_word_embeddings"),
        )
        read.must_divide(
            "num_key_value_heads", shape.num_kv_heads, "num_attention_heads", num_heads
        )
        read.must_divide("2", 2, "head_dim", shape.head_dim)
        return LlamaConfig(
            shape=shape,
            max_positions=read.size("max_position_embeddings", default=2048, at_most=MAX_POSITIONS),
            norm_eps=read.number("rms_norm_eps", default=1e-6),
            rope_theta=ConfigReader(rope_config).number(
                "rope_theta", read.number("rope_theta", 1e4)
            ),
            rope_scaling=rope_config,
            window=read.size_or_none("sliding_window", at_most=MAX_POSITIONS),
            has_attention_bias=read.flag("attention_bias"),
            has_mlp_bias=read.flag("mlp_bias"),
        )


@final
class Llama(Model):
    """tokens_T -> logits_TV, or a stage of the way."""

    def __init__(self, config: LlamaConfig, sharder: Sharder, stage: Stage | None) -> None:
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
            self.norm = RMSNorm(shape.d_model, config.norm_eps, sharder)
            self.head = self.embedding if shape.is_tied else Head(shape, sharder)
        frequency_J, self.turn_factor = rope.frequencies(
            shape.head_dim, config.rope_theta, config.rope_scaling, config.max_positions
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
        return self.head.logits(x_RD)


@final
class Block(nn.Module):
    """x_TD -> x_TD."""

    def __init__(self, config: LlamaConfig, sharder: Sharder) -> None:
        super().__init__()
        d_model = config.shape.d_model
        self.attention_norm = RMSNorm(d_model, config.norm_eps, sharder)
        self.attention = Attention(
            config.shape, sharder, window=config.window, has_bias=config.has_attention_bias
        )
        self.mlp_norm = RMSNorm(d_model, config.norm_eps, sharder)
        self.mlp = MLP(config, sharder)

    def forward(self, x_TD: Tensor, turn_TK: Tensor, kv: PagedLayer | None) -> Tensor:
        """Add attention, then the feed-forward."""
        x_TD = x_TD + self.attention(self.attention_norm(x_TD), turn_TK, kv)
        return x_TD + self.mlp(self.mlp_norm(x_TD))  # type: ignore[no-any-return]


@final
class Attention(nn.Module):
    """Grouped-query attention with rotary positions."""

    def __init__(
        self, shape: ModelShape, sharder: Sharder, *, window: int | None, has_bias: bool
    ) -> None:
        super().__init__()
        self.sharder = sharder
        self.head_dim = shape.head_dim
        self.window = window
        num_kv_heads = sharder.share("G", shape.num_kv_heads)
        self.heads = [sharder.share("H", shape.num_heads), 2 * num_kv_heads]
        embed = ("E", shape.d_model)
        query = ("H", shape.num_heads * shape.head_dim)
        key = value = ("G", shape.num_kv_heads * shape.head_dim)
        self.qkv = Linear((embed,), (query, key, value), sharder, has_bias=has_bias)
        self.out = Linear((query,), (embed,), sharder, has_bias=has_bias)

    def forward(self, x_TD: Tensor, turn_TK: Tensor, kv: PagedLayer | None) -> Tensor:
        """Project, turn, attend, project back."""
        constrain = self.sharder.constrain
        qkv_THK = self.qkv(constrain(x_TD, "block input")).unflatten(-1, (-1, self.head_dim))
        q_THK, kv_TGK = qkv_THK.split(self.heads, dim=-2)
        q_THK = rotate(constrain(q_THK, "queries"), turn_TK)
        k_TGK, v_TGK = constrain(kv_TGK.unflatten(-2, (2, -1)), "keys and values").unbind(-3)
        out_THK = attention(q_THK, rotate(k_TGK, turn_TK), v_TGK, kv, window=self.window)
        return constrain(self.out(constrain(out_THK, "attended").flatten(-2)), "block output")


@final
class MLP(nn.Module):
    """down(silu(gate) * up)."""

    def __init__(self, config: LlamaConfig, sharder: Sharder) -> None:
        super().__init__()
        self.sharder = sharder
        embed, gate = ("E", config.shape.d_model), ("F", config.shape.d_ff)
        self.gate_up = Linear((embed,), (gate, gate), sharder, has_bias=config.has_mlp_bias)
        self.down = Linear((gate,), (embed,), sharder, has_bias=config.has_mlp_bias)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Gate."""
        constrain = self.sharder.constrain
        both_T2F = self.gate_up(constrain(x_TD, "block input")).unflatten(-1, (2, -1))
        hidden_TF = constrain(silu_mul(constrain(both_T2F, "hidden, partial")), "hidden")
        return constrain(self.down(hidden_TF), "block output")


def build(config: Mapping[str, Any], sharder: Sharder, stage: Stage | None) -> Llama:
    """Return a Llama without weights from a Hugging Face config.json."""
    return Llama(LlamaConfig.from_hf(config), sharder, stage)


# Our parameter <- the Hugging Face tensors whose rows it stacks. `{}` is the number of the block.
WEIGHTS: Mapping[str, tuple[str, ...]] = {
    "embedding": ("model.embed_tokens",),
    "blocks.{}.attention_norm": ("model.layers.{}.input_layernorm",),
    "blocks.{}.attention.qkv": (
        "model.layers.{}.self_attn.q_proj",
        "model.layers.{}.self_attn.k_proj",
        "model.layers.{}.self_attn.v_proj",
    ),
    "blocks.{}.attention.out": ("model.layers.{}.self_attn.o_proj",),
    "blocks.{}.mlp_norm": ("model.layers.{}.post_attention_layernorm",),
    "blocks.{}.mlp.gate_up": ("model.layers.{}.mlp.gate_proj", "model.layers.{}.mlp.up_proj"),
    "blocks.{}.mlp.down": ("model.layers.{}.mlp.down_proj",),
    "norm": ("model.norm",),
    "head": ("lm_head",),
}
