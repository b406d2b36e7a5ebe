"""Architectures: which file computes which, and how a checkpoint becomes a model that runs."""

import importlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from alpage.errors import Unsupported
from alpage.models.checkpoint import Checkpoint
from alpage.models.layers import Layer
from alpage.models.model import Model
from alpage.models.packed_cache import PackedModel
from alpage.models.quantize import Quantization
from alpage.models.weights import fill, match
from alpage.ops.linear import is_packable
from alpage.partition import REPLICATED, Sharder, Stage

# Hugging Face's name of an architecture -> our file, which has `build` and `WEIGHTS`.
ARCHITECTURES: Mapping[str, str] = {
    "GPT2LMHeadModel": "alpage.models.gpt2",
    "LlamaForCausalLM": "alpage.models.llama",
    "MistralForCausalLM": "alpage.models.llama",
    "MixtralForCausalLM": "alpage.models.mixtral",
    "PaLMForCausalLM": "alpage.models.palm",
}


def build(
    config: Mapping[str, Any], sharder: Sharder = REPLICATED, stage: Stage | None = None
) -> tuple[Model, Mapping[str, tuple[str, ...]]]:
    """Return a model without weights, on the meta device, and the table of its weights' names.

    Args:
        config: a Hugging Face config.json.
        sharder: how it runs on this rank.
        stage: the blocks that this rank has; None: all.

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
        return file.build(config, sharder, stage), file.WEIGHTS


def load(  # noqa: PLR0913 - what is loaded, and how
    checkpoint: Checkpoint,
    *,
    dtype: torch.dtype,
    device: torch.device,
    sharder: Sharder = REPLICATED,
    stage: Stage | None = None,
    quantization: Quantization | None = None,
    twin: Model | None = None,
    cache: Path | None = None,
) -> Model:
    """Return the checkpoint's model with its weights, or this rank's part of it, ready to run.

    Args:
        checkpoint: the whole model; all of it is checked, whatever the part.
        dtype: of the weights.
        device: that computes.
        sharder: how it runs on this rank.
        stage: the blocks that this rank has; None: all.
        quantization: of matrices; None: they are of `dtype`. "int4" leaves those that are stored
            in 4 bits as they are.
        twin: the same stage under a sharder that stores matrices alike: its matrices are taken,
            and only what depends on the layout in use is loaded anew.
        cache: directory where a whole model on a CPU is kept as it is returned; None: nowhere.

    Raises:
        Unsupported: no file here computes this architecture, or nothing the quantization.
        BadCheckpoint: config and tensors do not fit each other.
        InvalidValue: a weight cannot be cut into equal parts.
        OutOfMemory: the device cannot hold the weights.
    """
    if quantization == "int4":
        _check_int4(dtype, device, sharder)
    model, table = build(checkpoint.config, sharder, stage)
    model.quantization = quantization
    kept = None
    if cache is not None:
        assert sharder is REPLICATED, "what a rank holds is not kept"
        assert stage is None, "nor what a stage does"
        assert device.type == "cpu", "files are mapped"
        kept = PackedModel.at(cache, checkpoint, dtype, quantization)
        if kept.restore(model):
            return model.eval()
    whole, _ = build(checkpoint.config)
    sources = match(whole, table, checkpoint.tensors)
    fill(model, sources, sharder, dtype=dtype, device=device, quantization=quantization, twin=twin)
    model = model.to(device).eval()
    if sharder is REPLICATED:
        for layer in model.modules():
            # An embedding that is no head is only looked up in.
            if isinstance(layer, Layer) and (layer is not model.embedding or layer is model.head):
                layer.pack(quantization)
    if kept is not None:
        kept.store(model)
    return model


def _check_int4(dtype: torch.dtype, device: torch.device, sharder: Sharder) -> None:
    if sharder is not REPLICATED or not is_packable(
        torch.empty(0, dtype=dtype, device=device), "int4"
    ):
        raise Unsupported(
            field="quantization",
            value="int4",
            limit="is multiplied by the native kernels alone: in bfloat16, on a CPU with AVX-512, "
            "bf16 and VNNI, on one device",
            remedy='Use quantization="int8"',
        )
