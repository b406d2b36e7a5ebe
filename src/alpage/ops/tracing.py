"""Tracing: a model runs once on stand-ins for tensors, and what it does with them is noted.

A stand-in is a tensor of two rows, for two tokens. Views of it are made by PyTorch, which so works
out where in a row they lie; operations on tokens are noted; anything else cannot be traced.

Dims: T tokens, D features, H heads, G key/value heads, K head dim, F feed-forward.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from math import prod
from typing import Any, Final, final

import torch
from torch import Tensor

from alpage.ops.attention import attention, scale_of
from alpage.ops.linear import PackedWeight, linear
from alpage.ops.rows import rms_norm, rotate, silu_mul

_NUM_ROWS: Final = 2


@final
class Untraceable(Exception):
    """A model does what cannot be noted."""


@final
@dataclass(frozen=True, slots=True)
class Part:
    """Part of every row of a buffer.

    Attributes:
        buffer: its number.
        offset_bytes: from the row's beginning.
        sizes: of its dims behind the tokens.
    """

    buffer: int
    offset_bytes: int
    sizes: tuple[int, ...]

    @property
    def width(self) -> int:
        """Numbers in a row."""
        return prod(self.sizes)


@final
@dataclass(frozen=True, slots=True)
class Operation:
    """What is done with every token.

    Attributes:
        kind: its name.
        reads: where it reads.
        writes: where it writes.
        constants: the same in every step, by name.
    """

    kind: str
    reads: tuple[Part, ...]
    writes: tuple[Part, ...]
    constants: Mapping[str, Any] = field(default_factory=dict)


@final
@dataclass(frozen=True, slots=True)
class TracedLayer:
    """A layer's pages, whichever they will be."""

    number: int


@final
class TracedKV:
    """The pages of all layers."""

    def __getitem__(self, layer: int) -> TracedLayer:
        return TracedLayer(layer)


@final
class Trace:
    """What was noted.

    Attributes:
        row_bytes: of every buffer.
        operations: in their order.
    """

    def __init__(self) -> None:
        self.row_bytes: list[int] = []
        self.operations: list[Operation] = []

    def stand_in(self, *sizes: int, dtype: torch.dtype = torch.bfloat16) -> "Traced":
        """Return a tensor that stands for one of a row of these sizes for each token."""
        traced = torch.zeros(_NUM_ROWS, *sizes, dtype=dtype).as_subclass(Traced)
        traced.owner, traced.buffer = self, self.add_buffer(prod(sizes) * dtype.itemsize)
        return traced

    def add_buffer(self, row_bytes: int) -> int:
        """Return the number of a new buffer."""
        self.row_bytes.append(row_bytes)
        return len(self.row_bytes) - 1

    def note(
        self, kind: str, reads: tuple[Tensor, ...], sizes: tuple[int, ...], **constants: Any
    ) -> Tensor:
        """Note an operation; return what stands for its result."""
        result = self.stand_in(*sizes)
        parts = tuple(self.part(x) for x in reads)
        self.operations.append(Operation(kind, parts, (self.part(result),), constants))
        return result

    def part(self, x: Tensor) -> Part:
        """Return where a stand-in lies.

        Raises:
            Untraceable: it is none, or its numbers do not lie side by side.
        """
        if not isinstance(x, Traced) or x.owner is not self:
            raise Untraceable("a tensor that was there before")
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - PyTorch's way to say it
            row = x[0]
            offset = x.data_ptr() - x.untyped_storage().data_ptr()
            stride = x.stride(0) * x.element_size()
            if x.dim() < 2 or not row.is_contiguous() or stride != self.row_bytes[x.buffer]:
                raise Untraceable("numbers of a token that do not lie side by side")
            return Part(x.buffer, offset, tuple(row.shape))


@final
class Traced(Tensor):
    """A tensor that stands for another, with as many rows as a step has tokens.

    Attributes:
        owner: where its operations are noted.
        buffer: where it lies.
    """

    owner: Trace
    buffer: int

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        """Note an operation, make a view, or tell a fact; refuse all else."""
        kwargs = kwargs or {}
        if function in _NOTED:
            return _NOTED[function](*args, **kwargs)
        if function not in _VIEWS and function not in _FACTS:
            raise Untraceable(getattr(function, "__qualname__", str(function)))
        source = args[0]
        with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - PyTorch's way to say it
            result = function(*args, **kwargs)
        if function in _FACTS:
            return result
        views = [_view(source, x) for x in ((result,) if isinstance(result, Tensor) else result)]
        return views[0] if isinstance(result, Tensor) else tuple(views)


def _view(source: Traced, x: Tensor) -> Traced:
    with torch._C.DisableTorchFunctionSubclass():  # noqa: SLF001 - PyTorch's way to say it
        if x.untyped_storage().data_ptr() != source.untyped_storage().data_ptr():
            raise Untraceable("a copy")
        view = x.as_subclass(Traced)
    view.owner, view.buffer = source.owner, source.buffer
    return view


def _rms_norm(x_TD: Traced, weight_D: Tensor, eps: float) -> Tensor:
    return x_TD.owner.note("rms_norm", (x_TD,), (len(weight_D),), weight_D=weight_D, eps=eps)


def _silu_mul(both_T2F: Traced) -> Tensor:
    return both_T2F.owner.note("silu_mul", (both_T2F,), (both_T2F.shape[-1],))


def _rotate(x_THK: Traced, turn_TK: Tensor) -> Tensor:
    return x_THK.owner.note("rotate", (x_THK, turn_TK), tuple(x_THK.shape[1:]))


def _add(one_TD: Traced, other_TD: Tensor) -> Tensor:
    if not isinstance(other_TD, Traced) or one_TD.shape != other_TD.shape:
        raise Untraceable("a sum of unequal shapes")
    return one_TD.owner.note("add", (one_TD, other_TD), tuple(one_TD.shape[1:]))


def _linear(x_TK: Traced, weight: PackedWeight, bias_N: Tensor | None = None) -> Tensor:
    if weight.num_in % 2:
        raise Untraceable("an odd number of features")
    return x_TK.owner.note("linear", (x_TK,), (weight.num_out,), weight=weight, bias_N=bias_N)


def _attention(
    q_THK: Traced, k_TGK: Tensor, v_TGK: Tensor, kv: Any, *, window: int | None = None
) -> Tensor:
    if not isinstance(kv, TracedLayer):
        raise Untraceable("attention without pages")
    trace = q_THK.owner
    keys, values = trace.part(k_TGK), trace.part(v_TGK)
    trace.operations.append(Operation("store_kv", (keys, values), (), {"layer": kv.number}))
    sizes = tuple(q_THK.shape[1:])
    return trace.note(
        "attend",
        (q_THK,),
        sizes,
        layer=kv.number,
        num_kv_heads=keys.sizes[0],
        window=window,
        scale=scale_of(q_THK),
    )


_NOTED: Final[Mapping[Callable[..., Any], Callable[..., Tensor]]] = {
    rms_norm: _rms_norm,
    silu_mul: _silu_mul,
    rotate: _rotate,
    linear: _linear,
    attention: _attention,
    Tensor.add: _add,
}
_VIEWS: Final = frozenset({Tensor.unflatten, Tensor.flatten, Tensor.split, Tensor.unbind})
_FACTS: Final = frozenset(
    {Tensor.shape.__get__, Tensor.dim, Tensor.dtype.__get__, Tensor.device.__get__}  # type: ignore[attr-defined]
)
