"""Weights: fill a model's parameters from a checkpoint's tensors."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

from alpage.errors import BadCheckpoint
from alpage.models.checkpoint import StoredTensor


def fill(
    model: nn.Module,
    table: Mapping[str, tuple[str, ...]],
    tensors: Mapping[str, StoredTensor],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Give every parameter of a model its values, with one stored tensor at a time in memory.

    Args:
        model: its parameters may be on the meta device; they are replaced.
        table: our module's name <- the stored modules whose rows it stacks; `{}` is a block's
            number.
        tensors: the stored tensors by name.
        dtype: of the parameters.
        device: of the parameters.

    Raises:
        BadCheckpoint: a tensor is missing, left over, or of the wrong shape.
    """
    unused = {name for name in tensors if not _is_derived(name)}
    has_head = False
    for name, parameter in list(model.named_parameters()):
        sources = _sources(name, table)
        missing = [source for source in sources if source not in tensors]
        if missing:
            raise BadCheckpoint(
                field="tensor",
                value=missing[0],
                limit="is missing from the checkpoint",
                remedy="Get the checkpoint again, whole",
            )
        value = torch.empty(parameter.shape, dtype=dtype, device=device)
        _stack(value, {source: tensors[source] for source in sources})
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, nn.Parameter(value, requires_grad=False))
        unused.difference_update(sources)
        has_head = has_head or module == "head"
    if not has_head:
        # A tied checkpoint may store the projection that it shares with the embedding once more.
        unused.discard(f"{table['head'][0]}.weight")
    if unused:
        raise BadCheckpoint(
            field="tensor",
            value=min(unused),
            limit=f"and {len(unused) - 1} others have no place in this architecture",
            remedy="Check that config.json belongs to these weights",
        )


def _sources(name: str, table: Mapping[str, tuple[str, ...]]) -> Sequence[str]:
    """Return the stored names of a parameter such as blocks.3.attention.qkv.weight."""
    module, _, leaf = name.rpartition(".")
    numbers = [part for part in module.split(".") if part.isdigit()]
    pattern = ".".join("{}" if part.isdigit() else part for part in module.split("."))
    return [f"{source.format(*numbers)}.{leaf}" for source in table[pattern]]


def _stack(parameter: Tensor, stored: Mapping[str, StoredTensor]) -> None:
    start = 0
    for name, tensor in stored.items():
        num_rows = tensor.shape[0] if tensor.shape else 0
        rows = parameter[start : start + num_rows]
        start += num_rows
        is_last = name == list(stored)[-1]
        if tuple(rows.shape) != tuple(tensor.shape) or (is_last and start != len(parameter)):
            raise BadCheckpoint(
                field=name,
                value=tuple(tensor.shape),
                limit=f"does not fit a parameter of shape {tuple(parameter.shape)}",
                remedy="Check that config.json belongs to these weights",
            )
        rows.copy_(tensor.load())


def _is_derived(name: str) -> bool:
    """Whether old checkpoints store it though it follows from the config."""
    return name.endswith("rotary_emb.inv_freq")
