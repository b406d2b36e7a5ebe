"""Runs: what an engine needs of the thing that makes its steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, Protocol, final

from alpage.serve.batch import Batch
from alpage.serve.config import ELEMENT_BYTES, INT8_VOCAB_BYTES
from alpage.serve.results import RowResult
from alpage.serve.slots import DrawRule
from alpage.workload import ModelShape

if TYPE_CHECKING:
    import torch


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """What a step's price depends on.

    Attributes:
        shape: of the whole model.
        dtype: of weights and activations.
        kv_dtype: of keys and values as they are kept.
        device: that computes.
        quantization: of the blocks' matrices; None: they are of `dtype`.
        is_vocab_int8: whether the vocabulary projection is of 8 bits then.
    """

    shape: ModelShape
    dtype: "torch.dtype"
    kv_dtype: "torch.dtype"
    device: "torch.device"
    quantization: Literal["int8", "int4"] | None = None
    is_vocab_int8: bool = False

    @property
    def weight_element_bytes(self) -> float:
        """Bytes of a weight, on average."""
        if self.quantization is None:
            return self.dtype.itemsize
        block_bytes = ELEMENT_BYTES[self.quantization]
        head_bytes = INT8_VOCAB_BYTES if self.is_vocab_int8 else self.dtype.itemsize
        # What is only looked up in is never quantized.
        vocab_bytes = head_bytes if self.shape.is_tied else head_bytes + self.dtype.itemsize
        num_vocab = self.shape.vocab_size * self.shape.d_model
        num_blocks = self.shape.num_parameters - num_vocab * (1 if self.shape.is_tied else 2)
        num_bytes = num_blocks * block_bytes + num_vocab * vocab_bytes
        return num_bytes / self.shape.num_parameters


class Runs(Protocol):
    """Makes an engine's steps: each is started, then finished, and so is the next."""

    profile: Profile

    def open(self, request_id: str, rule: DrawRule) -> None:
        """Learn how a request draws, before a batch names it."""

    def close(self, request_id: str) -> None:
        """Forget a request."""

    def start(self, batch: Batch) -> None:
        """Begin a step."""

    def finish(self) -> list[RowResult]:
        """Return what each row of the step gave, waiting for it by `due_s` at the latest."""

    @property
    def signals(self) -> Sequence[int]:
        """File descriptors, one of which can be read once `finish` has its answer.

        None: it need not wait.
        """

    @property
    def due_s(self) -> float:
        """When, by `time.monotonic`, `finish` gives the step up that was started last."""
