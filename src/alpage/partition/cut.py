"""Cut: the weights of a whole model become those of one rank."""

from typing import TYPE_CHECKING, Protocol, runtime_checkable

import torch
from torch import nn

from alpage.partition.sharder import Parts

if TYPE_CHECKING:
    from alpage.partition.partitioned import Partitioned


@runtime_checkable
class Cuttable(Protocol):
    """A layer that says what its weight is made of.

    Attributes:
        weight: [..., rows, columns], or a vector that has `columns` alone.
        bias: along the rows of a matrix, or like the vector; None: there is none.
        rows: parts of its rows; none of a vector.
        columns: parts of its columns.
    """

    weight: nn.Parameter
    bias: nn.Parameter | None
    rows: Parts
    columns: Parts


def cut(model: nn.Module, sharder: "Partitioned") -> None:
    """Replace every parameter of a model that was built with a sharder by this rank's part.

    Raises:
        InvalidValue: a part cannot be cut evenly.
    """
    for layer in model.modules():
        if not isinstance(layer, Cuttable):
            assert not list(layer.parameters(recurse=False)), "every parameter is in some layer"
            continue
        layer.weight = nn.Parameter(_weight_part(layer, sharder), requires_grad=False)
        if layer.bias is not None:
            layer.bias = nn.Parameter(_bias_part(layer, sharder), requires_grad=False)


def _weight_part(layer: Cuttable, sharder: "Partitioned") -> torch.Tensor:
    if not layer.rows:
        return sharder.vector_part(layer.weight, layer.columns[0][0]).clone()
    bands = torch.split(layer.weight, [size for _, size in layer.rows], dim=-2)
    column_sizes = [size for _, size in layer.columns]
    return torch.cat(
        [
            torch.cat(
                [
                    sharder.stored_part(tile, row, column)
                    for (column, _), tile in zip(
                        layer.columns, torch.split(band, column_sizes, dim=-1), strict=True
                    )
                ],
                dim=-1,
            )
            for (row, _), band in zip(layer.rows, bands, strict=True)
        ],
        dim=-2,
    )


def _bias_part(layer: Cuttable, sharder: "Partitioned") -> torch.Tensor:
    assert layer.bias is not None
    if not layer.rows:
        return sharder.vector_part(layer.bias, layer.columns[0][0]).clone()
    parts = torch.split(layer.bias, [size for _, size in layer.rows])
    return torch.cat(
        [
            sharder.bias_part(part, row, layer.columns)
            for (row, _), part in zip(layer.rows, parts, strict=True)
        ]
    )
