"""Architectures: which file computes which, and how a checkpoint becomes a model that runs."""

import importlib
from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from alpage.errors import Unsupported
from alpage.models.checkpoint import Checkpoint
from alpage.models.weights import fill
from alpage.ops.attention import PagedKV
from alpage.partition import REPLICATED, Sharder
from alpage.workload import ModelShape

# Hugging Face's name of an architecture -> our file, which has `build` and `WEIGHTS`.
ARCHITECTURES: Mapping[str, str] = {
    "GPT2LMHeadModel": "alpage.models.gpt2",
    "LlamaForCausalLM": "alpage.models.llama",
    "MistralForCausalLM": "alpage.models.llama",
    "MixtralForCausalLM": "alpage.models.mixtral",
    "PaLMForCausalLM": "alpage.models.palm",
}


class Model(Protocol):
    """What serving and training need of a model.

    Attributes:
        sharder: how it runs on this rank.
    """

    sharder: Sharder

    @property
    def shape(self) -> ModelShape:
        """Its sizes."""

    @property
    def max_positions(self) -> int:
        """Tokens of the longest sequence."""

    def parameters(self) -> Iterator[nn.Parameter]:
        """Its weights."""

    def hidden(self, tokens_T: Tensor, positions_T: Tensor, kv: PagedKV | None = None) -> Tensor:
        """Return x_TD, what `logits` reads."""

    def logits(self, x_RD: Tensor) -> Tensor:
        """Return logits_RV."""


def build(
    config: Mapping[str, Any], sharder: Sharder = REPLICATED
) -> tuple[Model, Mapping[str, tuple[str, ...]]]:
    """Return a model without weights, on the meta device, and the table of its weights' names.

    Args:
        config: a Hugging Face config.json.
        sharder: how it runs on this rank.

    Raises:
        Unsupported: no file here computes this architecture.
        BadCheckpoint: the config's numbers do not fit each other.
    """
    names = config.get("architectures")
    name = names[0] if isinstance(names, list) and names else None
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise Unsupported(
            field="architectures",
            value=names,
            limit="must be one of " + ", ".join(ARCHITECTURES),
            remedy="Use a checkpoint of one of these architectures",
        )
    file = importlib.import_module(ARCHITECTURES[name])
    with torch.device("meta"):
        return file.build(config, sharder), file.WEIGHTS


def load(
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    device: torch.device,
    sharder: Sharder = REPLICATED,
) -> Model:
    """Return the checkpoint's model with its weights, ready to run.

    Raises:
        Unsupported: no file here computes this architecture.
        BadCheckpoint: config and tensors do not fit each other.
        OutOfMemory: the device cannot hold the weights.
    """
    model, table = build(checkpoint.config, sharder)
    assert isinstance(model, nn.Module)
    fill(model, table, checkpoint.tensors, dtype=dtype, device=device)
    sharder.cut(model)
    return model.to(device).eval()
