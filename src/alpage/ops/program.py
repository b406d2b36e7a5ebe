"""Program: the blocks of a model as one call of our kernels.

Between PyTorch's calls a step of one token waits longer than it computes. So the blocks are traced
once, and what was noted becomes operations of a native program, which one team of threads runs from
the first to the last. The bits are those of the operations one by one.

Dims: T tokens, D model, K head dim.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import accumulate
from typing import Any, Final, final

import torch
from torch import Tensor

from alpage import native
from alpage.ops.arena import Lifetime, place
from alpage.ops.attention import PagedKV
from alpage.ops.tracing import Operation, Part, Trace, TracedKV, Untraceable

# x_TD -> x_TD, with turn_TK and the pages.
Blocks = Callable[[Tensor, Tensor, Any], Tensor]

_LINE_BYTES: Final = 64
# They wait for all tokens; all others go from one token's rows to the same token's.
_OF_ALL_TOKENS: Final = frozenset({"multiply", "attend", "keep"})


@final
class Program:
    """Blocks that run in one call.

    Args:
        trace: what they do.
        x: the buffer that they begin with.
        turn: the buffer of angles.
        y: where their result is.
    """

    def __init__(self, trace: Trace, x: int, turn: int, y: Part) -> None:
        outside = (x, turn, y.buffer)
        operations = [step for operation in trace.operations for step in _lowered(operation, trace)]
        live = _keep(operations, trace)
        # What is kept moves forward in its buffer, which had better not be the caller's.
        self._copied = [n for n, buffer in enumerate(outside) if buffer in live]
        self._d_model = y.width
        # The native program has the addresses of their weights.
        self._operations = operations
        starts, self._arena_bytes = _places(trace.row_bytes, operations, outside)
        buffers = list(zip(starts, trace.row_bytes, strict=True))
        # Buffers from outside are told to a run in the order of their numbers.
        self._order = sorted(range(3), key=lambda n: outside[n])
        self._native = native.NativeProgram(buffers)
        for operation in operations:
            _emit(operation, self._native)
        self._arena = torch.empty(0, dtype=torch.uint8)

    def __call__(
        self, x_TD: Tensor, turn_TK: Tensor, kv: PagedKV, num_kept_B: Sequence[int]
    ) -> Tensor:
        """Return x_RD, the rows of x_TD that are kept, behind the blocks.

        Behind the last layer's keys and values only these are computed.

        Args:
            x_TD: in front of the blocks.
            turn_TK: angles.
            kv: the pages.
            num_kept_B: of each sequence, how many of its last tokens are kept.

        Raises:
            IndexError: the step points outside of its pages, or keeps more than it has.
        """
        num_tokens, kept_B1 = len(x_TD), None
        assert num_tokens == len(turn_TK) == len(kv.step.slot_T)
        y_RD = torch.empty(sum(num_kept_B), self._d_model, dtype=torch.bfloat16)
        if self._arena_bytes * num_tokens > len(self._arena):
            capacity = 1 << (num_tokens - 1).bit_length()
            self._arena = torch.empty(self._arena_bytes * capacity, dtype=torch.uint8)
        outside = [x_TD.contiguous(), turn_TK.contiguous(), y_RD]
        if list(num_kept_B) != list(kv.step.num_queries):
            kept_B1 = torch.tensor([0, *accumulate(num_kept_B)], dtype=torch.int32)
            for n in self._copied:
                outside[n] = outside[n].clone()
        ordered = [outside[n] for n in self._order]
        self._native.run(ordered, self._arena, kv.pool.kv_L2PGSK, kv.step, kept_B1)
        return y_RD


def compiled(blocks: Blocks, d_model: int, head_dim: int) -> Program | None:
    """Return blocks as a program; None where PyTorch has to run them.

    Args:
        blocks: of which nothing depends on the step but what they are given.
        d_model: D.
        head_dim: K.
    """
    if not native.has_linear():
        return None
    trace = Trace()
    x_TD, turn_TK = trace.stand_in(d_model), trace.stand_in(head_dim, dtype=torch.float32)
    try:
        with torch.inference_mode():
            y = trace.part(blocks(x_TD, turn_TK, TracedKV()))
    except Untraceable:
        return None
    return Program(trace, x_TD.buffer, turn_TK.buffer, y)


def _lowered(operation: Operation, trace: Trace) -> list[Operation]:
    """Return an operation as those that the kernels have."""
    if operation.kind != "linear":
        return [operation]
    weight = operation.constants["weight"]
    product = replace(operation, kind="multiply")
    if weight.quantized_bytes is None:
        return [product]
    groups = Part(trace.add_buffer(weight.quantized_bytes), 0, (weight.quantized_bytes,))
    rounding = Operation("quantize", operation.reads, (groups,))
    return [rounding, replace(product, reads=(groups,))]


def _keep(operations: list[Operation], trace: Trace) -> set[int]:
    """Insert where tokens are kept; return the buffers that are written before and read behind."""
    stores = [n for n, operation in enumerate(operations) if operation.kind == "store_kv"]
    place = stores[-1] + 1 if stores else 0
    behind = operations[place:]
    read = {part.buffer for operation in behind for part in operation.reads}
    live = read - {part.buffer for operation in behind for part in operation.writes}
    parts = tuple(Part(buffer, 0, (trace.row_bytes[buffer],)) for buffer in sorted(live))
    operations.insert(place, Operation("keep", parts, parts))
    return live


def _places(
    row_bytes: Sequence[int], operations: Sequence[Operation], outside: Sequence[int]
) -> tuple[list[int | None], int]:
    """Return where buffers begin in the arena, for each token of a step, and its size likewise."""
    times: dict[int, list[int]] = {}
    stage, was_of_all = 0, True
    for operation in operations:
        # Rows of one buffer reach into other rows of the next: what is used at some time in a
        # chain of operations on rows is in use all the time.
        is_of_all = operation.kind in _OF_ALL_TOKENS
        stage += is_of_all or was_of_all
        was_of_all = is_of_all
        for part in (*operation.reads, *operation.writes):
            times.setdefault(part.buffer, []).append(stage)
    inside = sorted(times.keys() - set(outside))
    lifetimes = [Lifetime(times[b][0], times[b][-1], row_bytes[b]) for b in inside]
    starts, size = place(lifetimes, _LINE_BYTES)
    found = dict(zip(inside, starts, strict=True))
    return [found.get(b) for b in range(len(row_bytes))], -(-size // _LINE_BYTES) * _LINE_BYTES


def _emit(operation: Operation, program: native.NativeProgram) -> None:
    add = program.add
    reads = [(part.buffer, part.offset_bytes) for part in operation.reads]
    writes = [(part.buffer, part.offset_bytes) for part in operation.writes]
    sizes, constants = operation.reads[0].sizes, operation.constants
    match operation.kind:
        case "rms_norm":
            weight_D = constants["weight_D"]
            add.rms_norm(*reads, *writes, weight_D.data_ptr(), len(weight_D), constants["eps"])
        case "silu_mul":
            add.silu_mul(*reads, *writes, operation.writes[0].width)
        case "add":
            add.add(*reads, *writes, operation.writes[0].width)
        case "rotate":
            add.rotate(*reads, *writes, sizes)
        case "quantize":
            add.quantize(*reads, *writes, operation.reads[0].width)
        case "multiply":
            program.add_product(reads[0], writes[0], constants["weight"], constants["bias_N"])
        case "store_kv":
            add.store_kv(*reads, constants["layer"], sizes)
        case "keep":
            add.keep([buffer for buffer, _ in reads])
        case "attend":
            add.attend(reads[0], writes[0], heads=sizes, **constants)
        case _:
            raise AssertionError(operation.kind)
