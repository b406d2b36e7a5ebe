"""GPT-2: GPT-2 small to XL, DistilGPT-2, DialoGPT and every other checkpoint of that form.

The choices of the architecture (Radford et al. 2019, "Language Models are Unsupervised Multitask
Learners", section 2.3; what it does not say is as in GPT, Radford et al. 2018):
    decoder only, every block `x += attention(norm(x)); x += mlp(norm(x))`
    LayerNorm with a bias before attention and MLP, and once at the end
    learned positions, added to the embedding: there are none behind the last
    multi-head attention, every head with its own keys and values
    feed-forward down(gelu(up(x))), GELU by its tanh formula (Hendrycks and Gimpel 2016,
    arXiv:1606.08415, section 2)
    biases everywhere but in the vocabulary projection, which is tied to the embedding

Dropout is left out. A checkpoint stores weights with a row for every input, and may store old
constants of the causal mask, which are ignored.

Dims: T tokens (any leading dims: a flat serving step, or B L in training), D model, H heads,
K head dim, F feed-forward, V vocabulary, R rows whose logits are wanted.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch.nn.functional as F
from torch import Tensor, nn

from alpage.models.config import MAX_LAYERS, ConfigReader
from alpage.models.layers import Embedding, Head, LayerNorm, Linear, Positions
from alpage.models.model import Model
from alpage.models.weights import Transposed
from alpage.ops.attention import PagedLayer, attention
from alpage.partition import Sharder, Stage
from alpage.workload import ModelShape


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class GPT2Config:
    """The numbers of one GPT-2."""

    shape: ModelShape
    max_positions: int
    norm_eps: float

    @staticmethod
    def from_hf(config: Mapping[str, Any]) -> "GPT2Config":
        """Read a Hugging Face config.json.

        Raises:
            BadCheckpoint: a number is missing or does not fit the others.
            Unsupported: it asks for what this file does not compute.
        """
        read = ConfigReader(config)
        d_model, num_heads = read.size("n_embd"), read.size("n_head")
        read.must_divide("n_head", num_heads, "n_embd", d_model)
        read.must_be("activation_function", ("gelu_new", "gelu_pytorch_tanh"), default="gelu_new")
        read.must_be("scale_attn_weights", (True,), default=True)
        read.must_be("scale_attn_by_inverse_layer_idx", (False,), default=False)
        read.must_be("add_cross_attention", (False,), default=False)
        shape = ModelShape(
            num_layers=read.size("n_layer", at_most=MAX_LAYERS),
            d_model=d_model,
            num_heads=num_heads,
            num_kv_heads=num_heads,
            head_dim=d_model // num_heads,
            d_ff=read.size("n_inner", default=4 * d_model),
            num_ffn_matrices=2,
            vocab_size=read.size("vocab_size"),
            is_tied=read.flag("tie_word_embeddings", default=True),
            num_norm_statistics=2,
        )
        return GPT2Config(
            shape=shape,
            max_positions=read.size("n_positions", default=1024),
            norm_eps=read.number("layer_norm_epsilon", default=1e-5),
        )


@final
class GPT2(Model):
    """tokens_T -> logits_TV, or a stage of the way."""

    def __init__(self, config: GPT2Config, sharder: Sharder, stage: Stage | None) -> None:
        super().__init__()
        shape = config.shape
        stage = stage or Stage.whole(shape.num_layers)
        self.config = config
        self.sharder = sharder
        self.embedding = self.positions = self.norm = self.head = None
        if stage.is_first or (stage.is_last and shape.is_tied):
            self.embedding = Embedding(shape.vocab_size, shape.d_model, sharder)
        if stage.is_first:
            self.positions = Positions(config.max_positions, shape.d_model)
        self.blocks = nn.ModuleDict({str(layer): Block(config, sharder) for layer in stage.layers})
        if stage.is_last:
            self.norm = LayerNorm(shape.d_model, config.norm_eps, sharder, has_bias=True)
            self.head = self.embedding if shape.is_tied else Head(shape, sharder)

    @property
    def shape(self) -> ModelShape:
        """Its sizes."""
        return self.config.shape

    @property
    def max_positions(self) -> int:
        """Tokens of the longest sequence."""
        return self.config.max_positions

    def enter(self, tokens_T: Tensor, positions_T: Tensor) -> Tensor:
        """Embed tokens and positions."""
        assert self.embedding is not None, "the first stage enters"
        assert self.positions is not None, "it has both"
        x_TD = self.embedding(tokens_T)
        # The lookup itself asserts that there is such a position.
        return x_TD + self.positions(self.sharder.tokens(positions_T))  # type: ignore[no-any-return]

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

    def __init__(self, config: GPT2Config, sharder: Sharder) -> None:
        super().__init__()
        d_model = config.shape.d_model
        self.attention_norm = LayerNorm(d_model, config.norm_eps, sharder, has_bias=True)
        self.attention = Attention(config.shape, sharder)
        self.mlp_norm = LayerNorm(d_model, config.norm_eps, sharder, has_bias=True)
        self.mlp = MLP(config.shape, sharder)

    def forward(self, x_TD: Tensor, _: None, kv: PagedLayer | None) -> Tensor:
        """Add attention, then the feed-forward."""
        x_TD = x_TD + self.attention(self.attention_norm(x_TD), kv)
        return x_TD + self.mlp(self.mlp_norm(x_TD))  # type: ignore[no-any-return]


@final
class Attention(nn.Module):
    """Multi-head attention."""

    def __init__(self, shape: ModelShape, sharder: Sharder) -> None:
        super().__init__()
        self.sharder = sharder
        self.head_dim = shape.head_dim
        embed, heads = ("E", shape.d_model), ("H", shape.d_model)
        self.qkv = Linear((embed,), (heads, heads, heads), sharder, has_bias=True)
        self.out = Linear((heads,), (embed,), sharder, has_bias=True)

    def forward(self, x_TD: Tensor, kv: PagedLayer | None) -> Tensor:
        """Project, attend, project back."""
        constrain = self.sharder.constrain
        qkv = self.qkv(constrain(x_TD, "block input"))
        q_T1HK, kv_T2HK = qkv.unflatten(-1, (3, -1, self.head_dim)).split((1, 2), dim=-3)
        q_THK = constrain(q_T1HK.squeeze(-3), "queries")
        k_THK, v_THK = constrain(kv_T2HK, "keys and values").unbind(-3)
        out_THK = attention(q_THK, k_THK, v_THK, kv)
        return constrain(self.out(constrain(out_THK, "attended").flatten(-2)), "block output")


@final
class MLP(nn.Module):
    """down(gelu(up))."""

    def __init__(self, shape: ModelShape, sharder: Sharder) -> None:
        super().__init__()
        self.sharder = sharder
        embed, ffw = ("E", shape.d_model), ("F", shape.d_ff)
        self.up = Linear((embed,), (ffw,), sharder, has_bias=True)
        self.down = Linear((ffw,), (embed,), sharder, has_bias=True)

    def forward(self, x_TD: Tensor) -> Tensor:
        """Widen, bend, narrow."""
        constrain = self.sharder.constrain
        up_TF = constrain(self.up(constrain(x_TD, "block input")), "hidden, partial")
        hidden_TF = constrain(F.gelu(up_TF, approximate="tanh"), "hidden")
        return constrain(self.down(hidden_TF), "block output")


def build(config: Mapping[str, Any], sharder: Sharder, stage: Stage | None) -> GPT2:
    """Return a GPT-2 without weights from a Hugging Face config.json."""
    return GPT2(GPT2Config.from_hf(config), sharder, stage)


# Our parameter <- the Hugging Face tensor that it is. `{}` is the number of the block.
WEIGHTS: Mapping[str, tuple[str, ...]] = {
    "embedding": ("transformer.wte",),
    "positions": ("transformer.wpe",),
    "blocks.{}.attention_norm": ("transformer.h.{}.ln_1",),
    "blocks.{}.attention.qkv": Transposed(("transformer.h.{}.attn.c_attn",)),
    "blocks.{}.attention.out": Transposed(("transformer.h.{}.attn.c_proj",)),
    "blocks.{}.mlp_norm": ("transformer.h.{}.ln_2",),
    "blocks.{}.mlp.up": Transposed(("transformer.h.{}.mlp.c_fc",)),
    "blocks.{}.mlp.down": Transposed(("transformer.h.{}.mlp.c_proj",)),
    "norm": ("transformer.ln_f",),
    "head": ("lm_head",),
}
