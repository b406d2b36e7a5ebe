"""Faults: the machines are run against code that is broken on purpose; each must be noticed."""

from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import run_state_machine_as_test

from alpage.serve.batch import Move
from alpage.serve.kv_memory import KvMemory
from alpage.serve.pages import PagePool
from alpage.serve.scheduler import Scheduler
from test_pages_machine import PagePoolMachine
from test_scheduler_machine import SchedulerMachine

_BUDGET = settings(
    # What hypothesis draws depends on which modules are loaded; most faults need under 100.
    max_examples=1000,
    stateful_step_count=50,
    derandomize=True,
    database=None,
    deadline=None,
    phases=[Phase.generate],  # it is enough to know that it fails
    report_multiple_bugs=False,
    suppress_health_check=list(HealthCheck),
)

# An invariant is broken, or something is not where it is looked up.
_SYMPTOMS = (AssertionError, LookupError)

Fault = Callable[[pytest.MonkeyPatch], None]


def _leak_a_reference(patch: pytest.MonkeyPatch) -> None:
    release = PagePool.release
    patch.setattr(PagePool, "release", lambda self, pages: release(self, list(pages)[1:]))


def _share_without_counting(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PagePool, "share", lambda self, page: self._free.pop(page, None))


def _never_copy_on_write(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PagePool, "is_writable", lambda self, page, place: True)


def _write_over_what_the_index_promises(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PagePool, "is_writable", lambda self, page, place: self._refs[page] == 1)


def _copy_the_wrong_page(patch: pytest.MonkeyPatch) -> None:
    take_moves = KvMemory.take_moves

    def wrong(self: KvMemory):
        swapped_out, swapped_in, copied = take_moves(self)
        num_pages = self.pool.num_pages
        wrong = tuple(Move((move.source + 1) % num_pages, move.target) for move in copied)
        return swapped_out, swapped_in, wrong

    patch.setattr(KvMemory, "take_moves", wrong)


def _share_a_page_that_is_being_filled(patch: pytest.MonkeyPatch) -> None:
    grow = KvMemory.grow

    def forgetful(self: KvMemory, sequence, num_tokens: int) -> None:
        grow(self, sequence, num_tokens)
        self._written.clear()

    patch.setattr(KvMemory, "grow", forgetful)


def _keep_a_stale_page_table(patch: pytest.MonkeyPatch) -> None:
    grow = KvMemory.grow

    def silent(self: KvMemory, sequence, num_tokens: int) -> None:
        num_sent_pages = sequence.num_sent_pages
        grow(self, sequence, num_tokens)
        sequence.num_sent_pages = num_sent_pages

    patch.setattr(KvMemory, "grow", silent)


def _keep_what_an_evicted_page_promised(patch: pytest.MonkeyPatch) -> None:
    def allocate(self: PagePool) -> int:
        page, _ = self._free.popitem(last=False)
        self._refs[page] = 1
        return page

    patch.setattr(PagePool, "allocate", allocate)


def _chain_digests_without_the_parent(patch: pytest.MonkeyPatch) -> None:
    digest = PagePool._digest
    patch.setattr(PagePool, "_digest", lambda self, parent, content: digest(self, b"", content))


def _ignore_the_salt(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(PagePool, "root", lambda self, salt: self._digest(b"", b""))


def _match_one_token_too_many(patch: pytest.MonkeyPatch) -> None:
    match = PagePool.match
    patch.setattr(
        PagePool, "match", lambda self, tokens, limit, salt="": match(self, tokens, limit + 1, salt)
    )


def _evict_the_start_of_a_chain_first(patch: pytest.MonkeyPatch) -> None:
    release = PagePool.release
    patch.setattr(PagePool, "release", lambda self, pages: release(self, reversed(list(pages))))


def _hand_back_host_pages_at_once(patch: pytest.MonkeyPatch) -> None:
    swap_or_drop = KvMemory._swap_or_drop

    def hasty(self: KvMemory, sequence, keep: int) -> None:
        swap_or_drop(self, sequence, keep)
        for page in sequence.host_pages:
            self._host._free[page] = None

    patch.setattr(KvMemory, "_swap_or_drop", hasty)


def _swap_out_in_the_wrong_order(patch: pytest.MonkeyPatch) -> None:
    swap_or_drop = KvMemory._swap_or_drop

    def confused(self: KvMemory, sequence, keep: int) -> None:
        swap_or_drop(self, sequence, keep)
        sequence.host_pages.reverse()

    patch.setattr(KvMemory, "_swap_or_drop", confused)


def _lose_a_slot(patch: pytest.MonkeyPatch) -> None:
    finish = Scheduler.finish

    def wasteful(self: Scheduler, group) -> None:
        group.slots = group.slots[1:]
        finish(self, group)

    patch.setattr(Scheduler, "finish", wasteful)


def _preempt_nobody(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(
        Scheduler,
        "_make_room",
        lambda self, group, sequence, step, num_pages: self._memory(group).num_free >= num_pages,
    )


def _let_beams_step_alone(patch: pytest.MonkeyPatch) -> None:
    def serve(self: Scheduler, group, step) -> None:
        for sequence in group.sequences:
            self._resume(group, sequence, step)
            self._compute(group, sequence, step, sequence.num_missing)

    patch.setattr(Scheduler, "_serve", serve)


def _take_hits_for_a_scored_prompt(patch: pytest.MonkeyPatch) -> None:
    admit = Scheduler._admit

    def eager(self: Scheduler, group, step) -> bool:
        wants, group.wants_prompt_logprobs = group.wants_prompt_logprobs, False
        is_admitted = admit(self, group, step)
        group.wants_prompt_logprobs = wants
        return is_admitted

    patch.setattr(Scheduler, "_admit", eager)


_OF_PAGES: list[Fault] = [
    _leak_a_reference,
    _never_copy_on_write,
    _write_over_what_the_index_promises,
    _keep_what_an_evicted_page_promised,
    _chain_digests_without_the_parent,
    _ignore_the_salt,
    _match_one_token_too_many,
    _evict_the_start_of_a_chain_first,
]
_OF_SCHEDULING: list[Fault] = [
    _leak_a_reference,
    _share_without_counting,
    _never_copy_on_write,
    _write_over_what_the_index_promises,
    _copy_the_wrong_page,
    _share_a_page_that_is_being_filled,
    _keep_a_stale_page_table,
    _keep_what_an_evicted_page_promised,
    _chain_digests_without_the_parent,
    _ignore_the_salt,
    _match_one_token_too_many,
    _hand_back_host_pages_at_once,
    _swap_out_in_the_wrong_order,
    _lose_a_slot,
    _preempt_nobody,
    _let_beams_step_alone,
    _take_hits_for_a_scored_prompt,
]


def _name(fault: Fault) -> str:
    return fault.__name__.strip("_")


@pytest.mark.parametrize("fault", _OF_PAGES, ids=_name)
def test_the_machine_of_pages_notices(fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises(_SYMPTOMS):
        run_state_machine_as_test(PagePoolMachine, settings=_BUDGET)


@pytest.mark.parametrize("fault", _OF_SCHEDULING, ids=_name)
def test_the_machine_of_the_scheduler_notices(fault, monkeypatch):
    fault(monkeypatch)
    with pytest.raises(_SYMPTOMS):
        run_state_machine_as_test(SchedulerMachine, settings=_BUDGET)
