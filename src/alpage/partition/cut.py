"""Cut: the weights of a whole layer become those of one rank."""

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from alpage.partition.sharder import Cuttable

if TYPE_CHECKING:
    from alpage.partition.partitioned import Partitioned


def cut(layer: Cuttable, sharder: "Partitioned") -> None:
    """Replace the parameters of a layer by this rank's parts, which keep nothing of the whole.

    Raises:
        InvalidValue: a part cannot be cut evenly.
    """
    layer.weight = nn.Parameter(_weight_part(layer, sharder), requires_grad=False)
    if layer.bias is not None:
        layer.bias = nn.Parameter(_bias_part(layer, layer.bias, sharder), requires_grad=False)

    if layer.scale is not None:
        layer.scale = nn.Parameter(_scale_part(layer, layer.scale, sharder), requires_grad=False)


def _scale_part(layer: Cuttable, scale: Tensor, sharder: "Partitioned") -> Tensor:
    parts = torch.split(scale, [size for _, size in layer.rows], dim=-1)
    return torch.cat(
        [sharder.vector_part(part, row) for (row, _), part in zip(layer.rows, parts, strict=True)],
        dim=-1,
    )


def _weight_part(layer: Cuttable, sharder: "Partitioned") -> Tensor:
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


def _bias_part(layer: Cuttable, bias: Tensor, sharder: "Partitioned") -> Tensor:
    if not layer.rows:
        return sharder.vector_part(bias, layer.columns[0][0]).clone()
    parts = torch.split(bias, [size for _, size in layer.rows])
    return torch.cat(
        [
            sharder.bias_part(part, row, layer.columns)
            for (row, _), part in zip(layer.rows, parts, strict=True)
        ]
    )
