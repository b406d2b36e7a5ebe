"""Program: operations on every token of a step that run in one call."""

from collections.abc import Sequence
from typing import TypeAlias, final

import torch
from torch import Tensor

from alpage.native.kernels import Step, import_kernels
from alpage.native.packed import PackedWeight

# A buffer's number, and bytes into each of its rows.
Place: TypeAlias = tuple[int, int]


@final
class NativeProgram:
    """Operations of the kernels, one after the other.

    Args:
        buffers: where each begins in the arena, in bytes for each token of a step, or None where a
            run is told; and the bytes of a row.

    Attributes:
        add: the compiled program; its methods add operations.
    """

    def __init__(self, buffers: Sequence[tuple[int | None, int]]) -> None:
        module = import_kernels()
        assert not isinstance(module, str), "the caller has asked whether it is there"
        self.add = module.Program(buffers, None)

    def add_product(
        self, read: Place, write: Place, weight: PackedWeight, bias_N: Tensor | None
    ) -> None:
        """Multiply rows with a packed weight; they have been quantized where it says so."""
        self.add.multiply(
            read,
            write,
            weights=weight.kind,
            panels=weight.panels.data_ptr(),
            scale=0 if weight.scale_N is None else weight.scale_N.data_ptr(),
            bias=0 if bias_N is None else bias_N.data_ptr(),
            n=weight.num_out,
            k=weight.num_in,
        )

    def run(
        self,
        outside: Sequence[Tensor],
        arena: Tensor,
        kv_L2PGSK: Tensor,
        step: Step,
        kept_B1: Tensor | None = None,
    ) -> None:
        """Run all operations.

        Args:
            outside: buffers that do not lie in the arena, in the order of their numbers: dense.
            arena: memory for those that do.
            kv_L2PGSK: pages of bfloat16, or of int8 with scales.
            step: the flat form of the step.
            kept_B1: int32: where the last tokens of each sequence that the program keeps begin
                among all kept ones, then their number; None: it keeps all.

        Raises:
            IndexError: the step points outside of the pages, its own tables or its tokens, or
                keeps more of a sequence than there is.
        """
        slot_T, table_BP = step.slot_T, step.table_BP
        assert kv_L2PGSK.is_contiguous()
        assert kv_L2PGSK.dtype in (torch.bfloat16, torch.int8)
        assert all(x.is_contiguous() for x in outside)
        assert slot_T.dtype == torch.int64
        assert slot_T.is_contiguous()
        assert step.query_start_B1.dtype == step.context_B.dtype == table_BP.dtype == torch.int32
        if kept_B1 is not None:
            assert kept_B1.dtype == torch.int32
            assert kept_B1.is_contiguous()
            assert kept_B1.shape == step.query_start_B1.shape
        assert table_BP.stride(1) == 1
        layer_stride, value_stride, page_stride, *_ = kv_L2PGSK.stride()
        self.add.run(
            num_tokens=len(slot_T),
            outside=[x.data_ptr() for x in outside],
            arena=arena.data_ptr(),
            kv_L2PGSK=kv_L2PGSK.data_ptr(),
            is_int8=kv_L2PGSK.dtype == torch.int8,
            layer_stride=layer_stride,
            value_stride=value_stride,
            page_stride=page_stride,
            num_pages=kv_L2PGSK.shape[2],
            page_size=kv_L2PGSK.shape[4],
            slot_T=slot_T.data_ptr(),
            query_start_B1=step.query_start_B1.data_ptr(),
            kept_B1=0 if kept_B1 is None else kept_B1.data_ptr(),
            context_B=step.context_B.data_ptr(),
            table_BP=table_BP.data_ptr(),
            table_stride=table_BP.stride(0),
            table_width=table_BP.shape[1],
            num_sequences=table_BP.shape[0],
            num_threads=torch.get_num_threads(),
        )
