"""Mixtral: Mixtral 8x7B, 8x22B and every other checkpoint of that form.

The choices of the architecture (Jiang et al. 2024, arXiv:2401.04088):
    Mistral's decoder, whose attention is Llama's: RMSNorm before each half of a block, grouped
    queries, rotary positions, no biases; it may see a window of positions
    the feed-forward is a mixture of experts: a router picks 2 of 8 SwiGLU feed-forwards for every
    token, and weighs them by the softmax of their scores (section 2.1)

What balances experts in training, an extra loss and noise on the router, is not part of the model.

Dims: T tokens (any leading dims: a flat serving step, or B L in training), D model, K head dim,
V vocabulary, R rows whose logits are wanted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

from torch import Tensor, nn

from alpage.errors import BadCheckpoint
from alpage.models import rope
from alpage.models.config import MAX_LAYERS, MAX_POSITIONS, ConfigReader
from alpage.models.experts import RoutedMLP
from alpage.models.layers import Embedding, Head, RMSNorm
from alpage.models.llama import Attention
from alpage.models.model import Model
from alpage.models.weights import PerExpert
from alpage.ops.attention import PagedLayer
from alpage.partition import Sharder, Stage
from alpage.workload import ModelShape


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class MixtralConfig:
    """The numbers of one Mixtral. `rope_scaling` is as in a Hugging Face config, empty for none."""

    shape: ModelShape
    max_positions: int
    norm_eps: float
    rope_theta: float
    rope_scaling: Mapping[str, Any]
    window: int | None

    @staticmethod
    def from_hf(config: Mapping[str, Any]) -> "MixtralConfig":
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
            num_kv_heads=read.size("num_key_value_heads", default=8),
            head_dim=read.size("head_dim", default=max(1, d_model // num_heads)),
            d_ff=read.size("intermediate_size"),
            num_ffn_matrices=3,
            vocab_size=read.size("vocab_size"),
            is_tied=read.flag("tie_word_embeddings"),
            num_experts=read.size("num_local_experts", default=8),
            num_active_experts=read.size("num_experts_per_tok", default=2),
        )
        read.must_divide(
            "num_key_value_heads", shape.num_kv_heads, "num_attention_heads", num_heads
        )
        read.must_divide("2", 2, "head_dim", shape.head_dim)
        if shape.num_active_experts > shape.num_experts:
            raise BadCheckpoint(
                field="num_experts_per_tok",
                value=shape.num_active_experts,
                limit=f"must be at most num_local_experts={shape.num_experts}",
                remedy="Mend the model's config.json",
            )
        return MixtralConfig(
            shape=shape,
            max_positions=read.size(
                "max_position_embeddings", default=131072, at_most=MAX_POSITIONS
            ),
            norm_eps=read.number("rms_norm_eps", default=1e-5),
            rope_theta=ConfigReader(rope_config).number(
                "rope_theta", read.number("rope_theta", 1e6)
            ),
            rope_scaling=rope_config,
            window=read.size_or_none("sliding_window", at_most=MAX_POSITIONS),
        )


@final
class Mixtral(Model):
    """tokens_T -> logits_TV, or a stage of the way."""

    def __init__(self, config: MixtralConfig, sharder: Sharder, stage: Stage | None) -> None:
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

    def __init__(self, config: MixtralConfig, sharder: Sharder) -> None:
        super().__init__()
        d_model = config.shape.d_model
        self.attention_norm = RMSNorm(d_model, config.norm_eps, sharder)
        self.attention = Attention(config.shape, sharder, window=config.window, has_bias=False)
        self.mlp_norm = RMSNorm(d_model, config.norm_eps, sharder)
        self.mlp = RoutedMLP(config.shape, sharder)

    def forward(self, x_TD: Tensor, turn_TK: Tensor, kv: PagedLayer | None) -> Tensor:
        """Add attention, then what the picked experts say."""
        x_TD = x_TD + self.attention(self.attention_norm(x_TD), turn_TK, kv)
        return x_TD + self.mlp(self.mlp_norm(x_TD))  # type: ignore[no-any-return]


def build(config: Mapping[str, Any], sharder: Sharder, stage: Stage | None) -> Mixtral:
    """Return a Mixtral without weights from a Hugging Face config.json."""
    return Mixtral(MixtralConfig.from_hf(config), sharder, stage)


# Our parameter <- the Hugging Face tensors whose rows it stacks. `{}` is the number of the block,
# then that of the expert.
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
    "blocks.{}.mlp.router": ("model.layers.{}.block_sparse_moe.gate",),
    "blocks.{}.mlp.gate_up": PerExpert(
        (
            "model.layers.{}.block_sparse_moe.experts.{}.w1",
            "model.layers.{}.block_sparse_moe.experts.{}.w3",
        )
    ),
    "blocks.{}.mlp.down": PerExpert(("model.layers.{}.block_sparse_moe.experts.{}.w2",)),
    "norm": ("model.norm",),
    "head": ("lm_head",),
}
