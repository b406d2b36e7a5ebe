"""A fleet without a model: engines whose runners answer when they are told to, or fail."""

import math

from alpage.errors import RankLost
from alpage.serve.engine import Engine
from alpage.serve.fleet import Fleet
from alpage.serve.intake import Intake, Limits
from alpage.serve.kv_memory import KvMemory, PreemptionCost
from alpage.serve.outputs import Logprob
from alpage.serve.pages import PagePool
from alpage.serve.results import RowResult
from alpage.serve.runs import Runs
from alpage.serve.scheduler import Scheduler

VOCAB_SIZE = 64


class FakeRunner(Runs):
    """Draws tokens that follow from the rows alone; its file descriptor is its number.

    It is ready once it has started a step, unless a test waits in its own way.
    """

    def __init__(self, number, *, is_instant=False):
        self.number = number
        self.is_instant = is_instant
        self.batch = None
        self.num_steps = 0
        self.error = None
        self.due = math.inf
        self.rules = {}

    def open(self, request_id, rule):
        assert request_id not in self.rules
        self.rules[request_id] = rule

    def close(self, request_id):
        del self.rules[request_id]

    def start(self, batch):
        assert self.batch is None, "a step is finished before the next is started"
        self.batch = batch

    def finish(self):
        assert self.batch is not None, "a step is started before it is finished"
        batch, self.batch = self.batch, None
        self.num_steps += 1
        if self.error is not None:
            raise self.error
        return [self._result(row) for row in batch.rows]

    @property
    def signals(self):
        return () if self.is_instant else (self.number,)

    @property
    def due_s(self):
        return self.due

    def _result(self, row):
        token = (7 * row.context + row.index) % VOCAB_SIZE
        return RowResult(
            tokens=(token,) * row.num_draws,
            candidates=tuple((t, -1.0 - t) for t in range(8)) if row.num_draws else (),
            logprobs=({token: Logprob(-1.0, 1)},) * row.num_draws,
        )


def make_engine(runner, intake):
    """An engine of 64 pages of 4 tokens."""
    memory = KvMemory(
        PagePool(intake.limits.num_pages, 4, key=b"key"),
        PagePool(0, 4, has_prefix_cache=False),
        PreemptionCost(swap_s_per_page=1.0, recompute_s_per_token=1.0),
    )
    return Engine(Scheduler([memory], max_num_seqs=8, max_num_batched_tokens=16), runner, intake)


def make_intake(seed=0):
    limits = Limits(
        max_model_len=128,
        max_num_seqs=8,
        num_pages=64,
        page_size=4,
        vocab_size=VOCAB_SIZE,
        eos_ids=frozenset({63}),
    )
    return Intake(limits, None, seed=seed)


def make_fleet(num_replicas, *, seed=0, **options):
    """A fleet and its runners."""
    intake = make_intake(seed)
    runners = [FakeRunner(number) for number in range(num_replicas)]
    engines = [make_engine(runner, intake) for runner in runners]
    options.setdefault("wait", lambda signals, _timeout_s: signals)
    return Fleet(engines, intake, **options), runners


def lost():
    return RankLost(field="rank", value=1, limit="its process died", remedy="Start again")
