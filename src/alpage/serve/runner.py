"""Runner: one step on one device: move pages, run the model, draw tokens.

Dims: T new tokens of all rows, D model.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import final

import torch
from torch import Tensor

from alpage.models import Model
from alpage.ops.attention import Backend, PagedKV
from alpage.ops.kv import KvPool
from alpage.ops.program import Program
from alpage.partition import Pipe
from alpage.serve.batch import Batch, Move
from alpage.serve.home import Home
from alpage.serve.inputs import StepInputs
from alpage.serve.readout import Hidden, Readout
from alpage.serve.results import RowResult
from alpage.serve.runs import Profile, Runs
from alpage.serve.slices import num_slices, sliced
from alpage.serve.slots import DrawRule, Slots


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class View:
    """A model in the layout for steps of some size.

    Attributes:
        model: the views of a runner share its weights.
        min_tokens: steps of fewer tokens run in another view.
        num_token_shards: parts that a step's tokens are cut into.
        program: its blocks in one call; None: one by one.
    """

    model: Model
    min_tokens: int = 0
    num_token_shards: int = 1
    program: Program | None = None

    def through(
        self, x_TD: Tensor, position_T: Tensor, kv: PagedKV, num_kept_B: Sequence[int]
    ) -> Tensor:
        """Run the blocks; return x_RD: of each row its last tokens, as many as are kept.

        Without a program all are.
        """
        turn_TK = self.model.turns(position_T)
        if self.program is None:
            return self.model.through_blocks(x_TD, turn_TK, kv)
        assert turn_TK is not None, "a model whose blocks are a program turns"
        return self.program(x_TD, turn_TK, kv, num_kept_B)


@final
class Runner(Runs):
    """A model, its pages and the state of its slots.

    Args:
        views: of the model, for ever larger steps; they run on the pool's device.
        pool: the pages.
        host: pages to swap to.
        backend: computes attention.
        slots: a row for each sequence that may run.
        home: whose pages are here; None: everybody's.
        pipe: to the stages before and behind this one; None: there are none.
    """

    def __init__(
        self,
        views: Sequence[View],
        pool: KvPool,
        host: KvPool,
        backend: Backend,
        slots: Slots,
        home: Home | None = None,
        pipe: Pipe | None = None,
    ) -> None:
        kv = pool.kv_L2PGSK
        model = views[0].model
        dtype = next(model.parameters()).dtype
        self.profile = Profile(
            shape=model.shape,
            dtype=dtype,
            kv_dtype=kv.dtype,
            device=kv.device,
            quantization=model.quantization,
            is_vocab_int8=model.is_vocab_int8,
        )
        self.views = views
        self.pool = pool
        self._host = host
        self._backend = backend
        self._slots = slots
        self._home = home or Home(num_pages=pool.num_pages, num_host_pages=host.num_pages)
        self._inputs = StepInputs(pool.page_size, kv.device, self._home)
        self._pipe = pipe or Pipe(dtype, kv.device)
        self._rules: dict[str, DrawRule] = {}
        self._readout = Readout(slots, self._rules)
        self._drawn: list[RowResult] = []

    def open(self, request_id: str, rule: DrawRule) -> None:
        """Learn how a request draws, before a batch names it."""
        self._rules[request_id] = rule

    def close(self, request_id: str) -> None:
        """Forget a request."""
        del self._rules[request_id]

    def start(self, batch: Batch) -> None:
        """Make a step, the whole of it."""
        self._drawn = self.run(batch)

    def finish(self) -> list[RowResult]:
        """Return what each row of the step gave."""
        return self._drawn

    @property
    def signals(self) -> Sequence[int]:
        """None, for a step that has started is done."""
        return ()

    @property
    def due_s(self) -> float:
        """Always."""
        return math.inf

    @torch.inference_mode()
    def run(self, batch: Batch) -> list[RowResult]:
        """Make a step; return what each row gave."""
        results: dict[int, RowResult] = {}
        for hidden in self._slices(batch):
            for row, result in zip(hidden.rows, self._readout.read(hidden), strict=True):
                before = results.get(row.slot)
                results[row.slot] = result if before is None else before.followed_by(result)
        return [results[row.slot] for row in batch.rows]

    @torch.inference_mode()
    def follow(self, batch: Batch) -> None:
        """Make a step beside the rank that runs it: take part in all that ranks do together."""
        for hidden in self._slices(batch):
            self._readout.follow(hidden)

    def _slices(self, batch: Batch) -> Iterator[Hidden]:
        """Run the model over a step's slices, and yield what comes out on the last stage.

        One device has one slice. In a pipeline a stage goes on with the next slice while the next
        stage has this one; a slice may end inside a row, whose later tokens attend to what the
        earlier ones have left in the pages (Li et al. 2021, arXiv:2102.07988, section 3.2).
        """
        self._slots.update(batch, self._rules)
        _move(self._home.out(batch.swapped_out), self.pool, self._host)
        _move(self._home.back(batch.swapped_in), self._host, self.pool)
        _move(self._home.copies(batch.copied), self.pool, self.pool)
        view = [view for view in self.views if view.min_tokens <= batch.num_tokens][-1]
        model = view.model
        ordered = [batch.rows[number] for number in self._home.order(batch.rows, self._slots)]
        for rows in sliced(ordered, num_slices(batch.num_tokens, self._pipe.num_stages)):
            inputs = self._inputs.fill(rows, self._slots, view.num_token_shards)
            model.sharder.place(inputs.num_tokens)
            if self._pipe.is_first:
                x_TD = model.enter(inputs.token_T, inputs.position_T)
            else:
                num_here = len(inputs.token_T) // view.num_token_shards
                width = model.sharder.share("R", model.shape.d_model)
                x_TD = self._pipe.receive(num_here, width)
            self.pool.populate(inputs.step.slot_T)
            kv = PagedKV(self.pool, inputs.step, self._backend)
            is_keeping = view.program is not None and self._pipe.is_last
            num_all = [len(row.tokens) for row in rows]
            num_kept = self._readout.num_read(rows) if is_keeping else num_all
            x_TD = view.through(x_TD, inputs.position_T, kv, num_kept)
            if self._pipe.is_last:
                lasts = [end - 1 for end in accumulate(num_kept)]
                yield Hidden(rows, lasts, model, model.leave(x_TD))
            else:
                self._pipe.send(x_TD)
        self._pipe.flush()


def _move(moves: Sequence[Move], source: KvPool, target: KvPool) -> None:
    if moves:
        source.copy_pages([m.source for m in moves], [m.target for m in moves], to=target)
