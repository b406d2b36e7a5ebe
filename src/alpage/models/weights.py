"""Weights: fill a model's parameters from a checkpoint's tensors.

A table says for each of our modules which stored modules it is made of. A plain tuple names those
whose rows it stacks; a marked one says how else they lie in it.
"""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from alpage.errors import BadCheckpoint
from alpage.models.checkpoint import StoredTensor


@final
class Columns(tuple[str, ...]):
    """Stored modules whose columns lie side by side in ours: each reads a part of its input."""

    __slots__ = ()


@final
class Transposed(tuple[str, ...]):
    """A stored module with a row for every input, where ours has one for every output."""

    __slots__ = ()


@final
class PerExpert(tuple[str, ...]):
    """Stored modules whose rows make up one expert of ours; the last `{}` is its number."""

    __slots__ = ()


def fill(
    model: nn.Module,
    table: Mapping[str, tuple[str, ...]],
    tensors: Mapping[str, StoredTensor],
    *,
    dtype: torch.dtype,
    device: torch.device,
) -> None:
    """Give every parameter of a model its values, with one stored tensor at a time in memory.

    Nothing is allocated before all shapes are known to fit.

    Args:
        model: its parameters may be on the meta device; they are replaced.
        table: our module's name <- the stored modules it is made of; `{}` is a block's number.
        tensors: the stored tensors by name.
        dtype: of the parameters.
        device: of the parameters.

    Raises:
        BadCheckpoint: a tensor is missing, left over, or of the wrong shape.
    """
    tensors = _with_prefix(tensors, table)
    unused = {name for name in tensors if not _is_derived(name)}
    has_head = False
    stored_of: dict[str, dict[str, StoredTensor]] = {}
    for name, parameter in model.named_parameters():
        row = _row(name, table)
        sources = _sources(name, row, num_experts=len(parameter))
        missing = [source for source in sources if source not in tensors]
        if missing:
            raise BadCheckpoint(
                field="tensor",
                value=missing[0],
                limit="is missing from the checkpoint",
                remedy="Get the checkpoint again, whole",
            )
        stored_of[name] = {source: tensors[source] for source in sources}
        _check_shapes(*_as_stored(parameter, row), stored_of[name])
        unused.difference_update(sources)
        has_head = has_head or name.startswith("head.")
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
    for name, parameter in list(model.named_parameters()):
        value = torch.empty(parameter.shape, dtype=dtype, device=device)
        _join(*_as_stored(value, _row(name, table)), stored_of[name])
        module, _, leaf = name.rpartition(".")
        setattr(model.get_submodule(module), leaf, nn.Parameter(value, requires_grad=False))


def _with_prefix(
    tensors: Mapping[str, StoredTensor], table: Mapping[str, tuple[str, ...]]
) -> Mapping[str, StoredTensor]:
    """Return the tensors under the table's names: a bare transformer's lack their first part."""
    prefix, _, bare = table["embedding"][0].partition(".")
    if f"{bare}.weight" not in tensors:
        return tensors
    return {f"{prefix}.{name}": tensor for name, tensor in tensors.items()}


def _row(name: str, table: Mapping[str, tuple[str, ...]]) -> tuple[str, ...]:
    """Return what the table says of a parameter such as blocks.3.attention.qkv.weight."""
    module = name.rpartition(".")[0]
    return table[".".join("{}" if part.isdigit() else part for part in module.split("."))]


def _sources(name: str, row: tuple[str, ...], num_experts: int) -> list[str]:
    """Return the names of the stored tensors that a parameter is made of, in order."""
    module, _, leaf = name.rpartition(".")
    numbers: list[object] = [part for part in module.split(".") if part.isdigit()]
    experts = [[expert] for expert in range(num_experts)] if isinstance(row, PerExpert) else [[]]
    return [f"{part.format(*numbers, *expert)}.{leaf}" for expert in experts for part in row]


def _as_stored(parameter: Tensor, row: tuple[str, ...]) -> tuple[Tensor, int]:
    """Return a view in which the stored tensors lie one after the other, and the dim they do so."""
    match row:
        case Transposed():
            return parameter.t(), 0
        case PerExpert():
            return parameter.flatten(0, 1), 0
        case Columns():
            assert parameter.dim() == 2, "biases that are added up do not lie side by side"
            return parameter, 1
    return parameter, 0


def _check_shapes(parameter: Tensor, dim: int, stored: Mapping[str, StoredTensor]) -> None:
    num_left, last = parameter.shape[dim], list(stored)[-1]
    for name, tensor in stored.items():
        size = tensor.shape[dim] if len(tensor.shape) > dim else 0
        num_left -= size
        is_overfull_or_short = num_left < 0 or (name == last and num_left > 0)
        expected = (*parameter.shape[:dim], size, *parameter.shape[dim + 1 :])
        if is_overfull_or_short or tuple(tensor.shape) != expected:
            raise BadCheckpoint(
                field=name,
                value=tuple(tensor.shape),
                limit=f"does not fit a parameter of shape {tuple(parameter.shape)}",
                remedy="Check that config.json belongs to these weights",
            )


def _join(parameter: Tensor, dim: int, stored: Mapping[str, StoredTensor]) -> None:
    start = 0
    for tensor in stored.values():
        part = tensor.load()
        parameter.narrow(dim, start, part.shape[dim]).copy_(part)
        start += part.shape[dim]


def _is_derived(name: str) -> bool:
    """Whether old checkpoints store it though it follows from the config."""
    return name.endswith(("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"))
