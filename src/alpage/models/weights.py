"""Weights: fill a model's parameters from a checkpoint's tensors.

A table says for each of our modules which stored modules it is made of. A plain tuple names those
whose rows it stacks; a marked one says how else they lie in it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn

from alpage.errors import BadCheckpoint, Unsupported
from alpage.models.checkpoint import StoredTensor
from alpage.models.layers import Layer
from alpage.models.quantize import Int4Matrix, Quantization, int8_rows
from alpage.partition import Sharder


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


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """The stored tensors that one parameter of a whole model is made of.

    Attributes:
        shape: of the parameter.
        row: what the table says of it.
        stored: the tensors by name, in order.
    """

    shape: tuple[int, ...]
    row: tuple[str, ...]
    stored: Mapping[str, StoredTensor]

    def load(self, dtype: torch.dtype, device: torch.device) -> nn.Parameter:
        """Return the parameter, with one stored tensor at a time in memory."""
        parameter = torch.empty(self.shape, dtype=dtype, device=device)
        lying, dim = _as_stored(parameter, self.row)
        start = 0
        for tensor in self.stored.values():
            part = tensor.load()
            lying.narrow(dim, start, part.shape[dim]).copy_(part)
            start += part.shape[dim]
        return nn.Parameter(parameter, requires_grad=False)

    def int4(self) -> Int4Matrix | None:
        """Return the parameter as it is stored, if all of it is in 4 bits; None: it is not."""
        if isinstance(self.row, (Columns, Transposed, PerExpert)):
            return None
        parts: list[Int4Matrix] = []
        for tensor in self.stored.values():
            part = tensor.int4()
            if part is None:
                return None
            parts.append(part)
        return Int4Matrix.stacked(parts)


def match(
    whole: nn.Module,
    table: Mapping[str, tuple[str, ...]],
    tensors: Mapping[str, StoredTensor],
) -> Mapping[str, Source]:
    """Find every parameter of a whole model in a checkpoint. Nothing is read or allocated.

    Args:
        whole: its parameters may be on the meta device.
        table: our module's name <- the stored modules it is made of; `{}` is a block's number.
        tensors: the stored tensors by name.

    Returns:
        What each parameter is made of, by its name.

    Raises:
        BadCheckpoint: a tensor is missing, left over, or of the wrong shape.
    """
    tensors = _with_prefix(tensors, table)
    unused = {name for name in tensors if not _is_derived(name)}
    sources: dict[str, Source] = {}
    for name, parameter in whole.named_parameters():
        row = _row(name, table)
        names = _stored_names(name, row, num_experts=len(parameter))
        missing = [stored for stored in names if stored not in tensors]
        if missing:
            raise BadCheckpoint(
                field="tensor",
                value=missing[0],
                limit="is missing from the checkpoint",
                remedy="Get the checkpoint again, whole",
            )
        stored = {stored: tensors[stored] for stored in names}
        _check_shapes(*_as_stored(parameter, row), stored)
        unused.difference_update(names)
        sources[name] = Source(shape=tuple(parameter.shape), row=row, stored=stored)
    if not any(name.startswith("head.") for name in sources):
        # A tied checkpoint may store the projection that it shares with the embedding once more.
        unused.discard(f"{table['head'][0]}.weight")
    if unused:
        raise BadCheckpoint(
            field="tensor",
            value=min(unused),
            limit=f"and {len(unused) - 1} others have no place in this architecture",
            remedy="Check that config.json belongs to these weights",
        )
    return sources


def fill(
    model: nn.Module,
    sources: Mapping[str, Source],
    sharder: Sharder,
    *,
    dtype: torch.dtype,
    device: torch.device,
    quantization: Quantization | None = None,
    twin: nn.Module | None = None,
) -> None:
    """Give every parameter of a rank's part of a model its values.

    A layer is cut as soon as it is whole, so no more than one whole weight is in memory.

    Args:
        model: has blocks of the whole model; its parameters, whole and on the meta device, are
            replaced.
        sources: what the whole model's parameters are made of.
        sharder: cuts them.
        dtype: of the parameters.
        device: of the parameters.
        quantization: of matrices; each is quantized while it is whole, so that no cut changes it.
            "int4" takes what is stored in 4 bits as it is, and other matrices as "int8".
        twin: where matrices are taken from, instead of another copy.

    Raises:
        InvalidValue: a weight cannot be cut into equal parts.
        Unsupported: "int4", and no matrix is stored so.
    """
    num_int4 = 0
    for path, layer in model.named_modules():
        if not isinstance(layer, Layer):
            continue
        taken = None if twin is None or _lies_as_activations(layer) else twin.get_submodule(path)
        is_quantized = quantization is not None and layer.is_quantizable
        matrix = None
        if is_quantized and quantization == "int4":
            matrix = sources[f"{path}.weight"].int4()
        if matrix is not None:
            layer.take(matrix)
            num_int4 += 1
        elif taken is None or is_quantized:
            layer.weight = sources[f"{path}.weight"].load(dtype, device)
        if is_quantized and matrix is None:
            layer.weight, layer.scale = (
                nn.Parameter(part, requires_grad=False) for part in int8_rows(layer.weight)
            )
        if layer.bias is not None:
            layer.bias = sources[f"{path}.bias"].load(dtype, device)
        sharder.cut(layer)
        if taken is not None:
            assert isinstance(taken, Layer)
            assert taken.weight.shape == layer.weight.shape, f"{path} is not cut alike"
            layer.weight = taken.weight
    if quantization == "int4" and num_int4 == 0:
        raise Unsupported(
            field="quantization",
            value=quantization,
            limit="takes matrices that are stored in 4 bits, and this checkpoint has none",
            remedy='Use a GGUF file of Q4_0 or Q4_1, or quantization="int8"',
        )
    assert not any(parameter.is_meta for parameter in model.parameters()), "all are in layers"


def _lies_as_activations(layer: Layer) -> bool:
    """Whether its weight is cut as activations between blocks are: norms, learned positions."""
    return any(letter == "R" for letter, _ in layer.columns)


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


def _stored_names(name: str, row: tuple[str, ...], num_experts: int) -> list[str]:
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


def _is_derived(name: str) -> bool:
    """Whether old checkpoints store it though it follows from the config."""
    return name.endswith(("rotary_emb.inv_freq", ".attn.bias", ".attn.masked_bias"))
