"""Runs: what an engine needs of the thing that makes its steps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol, final

from alpage.serve.batch import Batch
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
        dtype: of weights, keys and values.
        device: that computes.
    """

    shape: ModelShape
    dtype: "torch.dtype"
    device: "torch.device"


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
