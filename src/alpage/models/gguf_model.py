"""GGUF models: a file's metadata and tensors in the terms of Hugging Face.

What differs between architectures is data: one `_Architecture` each.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final, final

import numpy as np
import torch
from torch import Tensor

from alpage.errors import BadCheckpoint, Unsupported
from alpage.models.gguf_file import GgufFile
from alpage.models.gguf_tensor import GgufTensor
from alpage.models.quantize import Int4Matrix

_MAX_SIZE = 2**31
_MIN_NUMBER, _MAX_NUMBER = 1e-30, 1e30
_ROPE_FACTORS = "rope_freqs.weight"
_EOS_KEYS = ("eos_token_id", "eot_token_id", "eom_token_id")


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class _Architecture:
    """How one of llama.cpp's architectures is called and laid out.

    Args:
        class_name: Hugging Face's name of the architecture.
        model_type: Hugging Face's `model_type`.
        modules: Hugging Face's module <- the file's; `{}` is a block's number.
        interleaved: the modules whose rows are permuted for rotary pairs (0, 1), (2, 3), …, and
            the key of their number of heads.
        unsupported: keys that ask for what Hugging Face's class does not compute.
    """

    class_name: str
    model_type: str
    modules: Mapping[str, str]
    interleaved: Mapping[str, str]
    unsupported: tuple[str, ...]


_LLAMA: Final = _Architecture(
    class_name="LlamaForCausalLM",
    model_type="llama",
    modules={
        "token_embd": "model.embed_tokens",
        "output_norm": "model.norm",
        "output": "lm_head",
        "blk.{}.attn_norm": "model.layers.{}.input_layernorm",
        "blk.{}.attn_q": "model.layers.{}.self_attn.q_proj",
        "blk.{}.attn_k": "model.layers.{}.self_attn.k_proj",
        "blk.{}.attn_v": "model.layers.{}.self_attn.v_proj",
        "blk.{}.attn_output": "model.layers.{}.self_attn.o_proj",
        "blk.{}.ffn_norm": "model.layers.{}.post_attention_layernorm",
        "blk.{}.ffn_gate": "model.layers.{}.mlp.gate_proj",
        "blk.{}.ffn_up": "model.layers.{}.mlp.up_proj",
        "blk.{}.ffn_down": "model.layers.{}.mlp.down_proj",
    },
    interleaved={"blk.{}.attn_q": "num_attention_heads", "blk.{}.attn_k": "num_key_value_heads"},
    unsupported=(
        "expert_count",
        "attention.sliding_window",
        "rope.scale_linear",
        "rope.scaling.attn_factor",
        "rope.scaling.yarn_log_multiplier",
    ),
)
_ARCHITECTURES: Final[Mapping[str, _Architecture]] = {"llama": _LLAMA}


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRotaryTensor:
    """Rows of queries or keys, in Hugging Face's order of rotary pairs.

    llama.cpp stores the features of a head so that a pair lies side by side, (0, K/2), (1, K/2+1)
    and so on; Hugging Face stores the first halves of all pairs, then the second halves.
    """

    stored: GgufTensor
    num_heads: int

    @property
    def shape(self) -> tuple[int, ...]:
        """Its shape."""
        return self.stored.shape

    @property
    def dtype_name(self) -> str:
        """The type of its blocks."""
        return self.stored.dtype_name

    def load(self) -> Tensor:
        """Return the tensor, as `GgufTensor.load`, with its rows reordered."""
        return self.stored.load()[self._order()]

    def int4(self) -> Int4Matrix | None:
        """Return the matrix, as `GgufTensor.int4`, with its rows reordered."""
        stored = self.stored.int4()
        return None if stored is None else stored.rows(self._order())

    def _order(self) -> Tensor:
        pairs = torch.arange(self.shape[0]).view(self.num_heads, -1, 2)
        return pairs.transpose(1, 2).flatten()


@final
class GgufModel:
    """A GGUF file read as a model of one known architecture.

    Raises:
        Unsupported: the architecture is not known.
        BadCheckpoint: the file does not name one.
    """

    def __init__(self, file: GgufFile) -> None:
        self._file = file
        self._name = file.need("general.architecture", str)
        if self._name not in _ARCHITECTURES:
            raise Unsupported(
                field=f"{file.path.name}: general.architecture",
                value=self._name,
                limit=f"must be one of {', '.join(_ARCHITECTURES)}",
                remedy="Use a file of one of these architectures",
            )
        self._architecture = _ARCHITECTURES[self._name]

    def config(self) -> dict[str, Any]:
        """Return the model's config in the form of Hugging Face's config.json.

        Raises:
            BadCheckpoint: a number is missing, absurd, or contradicts another.
            Unsupported: it asks for something that Hugging Face's class does not compute.
        """
        for key in self._architecture.unsupported:
            if self._file.metadata.get(f"{self._name}.{key}"):
                raise self._unsupported(key)
        hidden_size = self._size("embedding_length")
        num_heads = self._size("attention.head_count")
        head_dim = self._head_dim(hidden_size, num_heads)
        config = {
            "architectures": [self._architecture.class_name],
            "model_type": self._architecture.model_type,
            "vocab_size": self._shape("token_embd.weight")[0],
            "hidden_size": hidden_size,
            "intermediate_size": self._size("feed_forward_length"),
            "num_hidden_layers": self._num_blocks(),
            "num_attention_heads": num_heads,
            "num_key_value_heads": self._size("attention.head_count_kv", default=num_heads),
            "head_dim": head_dim,
            "hidden_act": "silu",
            "rms_norm_eps": self._number("attention.layer_norm_rms_epsilon"),
            "rope_theta": self._number("rope.freq_base", default=10000.0),
            "rope_scaling": self._rope_scaling(head_dim),
            "max_position_embeddings": self._size("context_length"),
            "tie_word_embeddings": "output.weight" not in self._file.tensors,
            "attention_bias": "blk.0.attn_q.bias" in self._file.tensors,
            "mlp_bias": "blk.0.ffn_gate.bias" in self._file.tensors,
        }
        for name in ("bos_token_id", "eos_token_id"):
            config[name] = self._token_id(name)
        return config

    def tensors(self) -> dict[str, GgufTensor | SplitRotaryTensor]:
        """Return the tensors by Hugging Face's names, equal to Hugging Face's.

        Raises:
            BadCheckpoint: a tensor's rows do not divide into the model's heads.
            Unsupported: the file has a tensor that has no place in the architecture.
        """
        config = self.config()
        tensors: dict[str, GgufTensor | SplitRotaryTensor] = {}
        for name, tensor in self._file.tensors.items():
            if name == _ROPE_FACTORS:
                continue
            module, _, leaf = name.rpartition(".")
            prefix, number, part = _split(module)
            pattern = f"{prefix}{{}}{part}" if number else module
            if pattern not in self._architecture.modules:
                raise Unsupported(
                    field=f"{self._file.path.name}: {name}",
                    value=tensor.shape,
                    limit=f"has no place in the architecture {self._name}",
                    remedy="Use a file of an architecture that is known here",
                )
            heads_key = self._architecture.interleaved.get(pattern)
            target = f"{self._architecture.modules[pattern].format(number)}.{leaf}"
            tensors[target] = self._split_rotary(tensor, config[heads_key]) if heads_key else tensor
        return tensors

    def eos_ids(self) -> frozenset[int]:
        """Return the tokens that end a generation: end of sequence, of turn and of message.

        Raises:
            BadCheckpoint: one of them is not in the vocabulary.
        """
        return frozenset(i for key in _EOS_KEYS if (i := self._token_id(key)) is not None)

    def _split_rotary(self, tensor: GgufTensor, num_heads: int) -> SplitRotaryTensor:
        if tensor.shape[0] % (2 * num_heads):
            limit = f"has rows that are not {num_heads} heads of rotary pairs"
            raise self._file.bad(tensor.name, tensor.shape, limit)
        return SplitRotaryTensor(stored=tensor, num_heads=num_heads)

    def _num_blocks(self) -> int:
        count = self._size("block_count")
        if f"blk.{count - 1}.attn_norm.weight" not in self._file.tensors:
            raise self._bad("block_count", f"but block {count - 1} has no tensors")
        return count

    def _head_dim(self, hidden_size: int, num_heads: int) -> int:
        head_dim = self._size("attention.key_length", default=hidden_size // num_heads or 1)
        for key in ("attention.value_length", "rope.dimension_count"):
            if self._size(key, default=head_dim) != head_dim:
                raise self._unsupported(key)
        return head_dim

    def _rope_scaling(self, head_dim: int) -> dict[str, Any] | None:
        kind = self._file.get(f"{self._name}.rope.scaling.type", str) or "none"
        if _ROPE_FACTORS in self._file.tensors and kind == "none":
            return {"rope_type": "factors", "factors": self._rope_factors(head_dim)}
        if kind == "none":
            return None
        if kind not in ("linear", "yarn") or _ROPE_FACTORS in self._file.tensors:
            raise self._unsupported("rope.scaling.type")
        factor = self._number("rope.scaling.factor")
        if kind == "linear":
            return {"rope_type": "linear", "factor": factor}
        trained = self._size("rope.scaling.original_context_length")
        return {
            "rope_type": "yarn",
            "factor": factor,
            "original_max_position_embeddings": trained,
        }

    def _rope_factors(self, head_dim: int) -> list[float]:
        """Return the divisor of each frequency: what Llama 3's scaling comes to."""
        factors = self._file.tensors[_ROPE_FACTORS].load().float()
        is_sound = bool((factors > 0).all() and factors.isfinite().all())
        if not is_sound or tuple(factors.shape) != (head_dim // 2,):
            limit = f"must be {head_dim // 2} positive numbers"
            raise self._file.bad(_ROPE_FACTORS, tuple(factors.shape), limit)
        return factors.tolist()

    def _token_id(self, name: str) -> int | None:
        key = f"tokenizer.ggml.{name}"
        token_id = self._file.get(key, int)
        if token_id is not None and not 0 <= token_id < self._shape("token_embd.weight")[0]:
            raise self._file.bad(key, token_id, "is not a token of the vocabulary")
        return token_id

    def _size(self, key: str, default: int | None = None) -> int:
        value = self._file.get(f"{self._name}.{key}", int)
        value = default if value is None else value
        if value is None or not 0 < value < _MAX_SIZE:
            raise self._bad(key, "must be a positive whole number")
        return value

    def _number(self, key: str, default: float | None = None) -> float:
        value = self._file.get(f"{self._name}.{key}", float)
        value = default if value is None else value
        if value is None or not _MIN_NUMBER < value < _MAX_NUMBER:
            raise self._bad(key, "must be a positive number of sound size")
        # The file stores float32; its shortest decimal is what the model's authors wrote.
        return float(str(np.float32(value)))

    def _shape(self, name: str) -> tuple[int, ...]:
        if name not in self._file.tensors:
            raise self._file.bad(name, None, "is missing")
        return self._file.tensors[name].shape

    def _bad(self, key: str, limit: str) -> BadCheckpoint:
        key = f"{self._name}.{key}"
        return self._file.bad(key, self._file.metadata.get(key), limit)

    def _unsupported(self, key: str) -> Unsupported:
        return Unsupported(
            field=f"{self._file.path.name}: {self._name}.{key}",
            value=self._file.metadata.get(f"{self._name}.{key}"),
            limit="is not something that can be computed here",
            remedy="Use a file of a model without it",
        )


def _split(module: str) -> tuple[str, str, str]:
    """Split blk.12.attn_q into "blk.", "12" and ".attn_q"."""
    head, dot, rest = module.partition(".")
    number, _, tail = rest.partition(".")
    if number.isdecimal() and number.isascii():
        return f"{head}{dot}", number, f".{tail}"
    return module, "", ""
