"""KV memory: the page tables of sequences, as they grow, fork, are shed and come back.

Everything here keeps two promises: a page that two sequences hold is never written (copy-on-write),
and a page is not reused before the moves of the step that reads it have run. Moves are collected
while a step is scheduled; the runner makes them in the order out to the host, in from the host,
copies. That order is right because the scheduler never sheds a sequence that has grown or come back
in the same step.
"""

from collections import deque
from collections.abc import Iterable
from collections.abc import Sequence as Seq
from dataclasses import astuple, dataclass, fields
from typing import final

from alpage.serve.batch import Move
from alpage.serve.pages import NUM_LATELY, PagePool, common_run
from alpage.serve.sequence import Sequence


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class PreemptionCost:
    """What it takes to get the keys and values of a preempted sequence back.

    Attributes:
        swap_s_per_page: seconds to move a page to the host and back.
        recompute_s_per_token: seconds to compute one token of a prompt.
    """

    swap_s_per_page: float
    recompute_s_per_token: float


@final
@dataclass(frozen=True, slots=True, kw_only=True)
class KvUsage:
    """KV memory at one moment.

    Attributes:
        num_held_pages: pages that sequences hold.
        num_table_entries: pages they would hold if nothing were shared.
        num_filled_slots: token places in held pages that hold a token.
        num_held_slots: token places in held pages.
    """

    num_held_pages: int
    num_table_entries: int
    num_filled_slots: int
    num_held_slots: int

    @staticmethod
    def total(parts: Iterable["KvUsage"]) -> "KvUsage":
        """Return the usage of several memories together."""
        sums = map(sum, zip(*map(astuple, parts), strict=True))
        return KvUsage(**dict(zip((field.name for field in fields(KvUsage)), sums, strict=True)))


@final
class KvMemory:
    """Page tables over one pool of device pages and one of host pages.

    Args:
        pool: the device's pages, with the prefix index.
        host: pages to swap to; may have none.
        cost: decides between swap and recompute.

    Attributes:
        num_swapped_pages: that went to the host.
        num_copied_pages: that were copied because others held them too.
        lately_copied: the last pages that were copied to.
    """

    def __init__(self, pool: PagePool, host: PagePool, cost: PreemptionCost) -> None:
        self.pool = pool
        self.num_swapped_pages = 0
        self.num_copied_pages = 0
        self.lately_copied: deque[int] = deque(maxlen=NUM_LATELY)
        self.num_dropped_tokens = 0
        self._host = host
        self._cost = cost
        self._out: list[Move] = []
        self._in: list[Move] = []
        self._copies: list[Move] = []
        self._copy_sources: set[int] = set()
        self._written: set[int] = set()
        self._pinned: list[int] = []
        self._host_read: list[int] = []

    @property
    def num_free(self) -> int:
        """Pages that can be given out now."""
        return self.pool.num_free

    def num_pages(self, num_tokens: int) -> int:
        """Pages that hold this many tokens."""
        return -(-num_tokens // self.pool.page_size)

    def take_moves(self) -> tuple[tuple[Move, ...], tuple[Move, ...], tuple[Move, ...]]:
        """Return the moves (out, in, copies) since the last call.

        The pages that they read may be reused from now on.
        """
        moves = (tuple(self._out), tuple(self._in), tuple(self._copies))
        self.num_swapped_pages += len(self._out)
        self.num_copied_pages += len(self._copies)
        self.lately_copied.extend(move.target for move in self._copies)
        self.pool.release(self._pinned)
        self._host.release(self._host_read)
        for used in (self._out, self._in, self._copies, self._pinned, self._host_read):
            used.clear()
        self._copy_sources.clear()
        self._written.clear()
        return moves

    # -- growth ------------------------------------------------------------------------------------

    def num_pages_to_grow(self, sequence: Sequence, num_tokens: int) -> int:
        """Free pages needed before `num_tokens` more tokens can be written."""
        num_total = self.num_pages(sequence.num_computed + num_tokens)
        return max(0, num_total - len(sequence.table)) + self._must_copy(sequence)

    def has_place(self, sequence: Sequence, num_tokens: int) -> bool:
        """Take the next `num_tokens` places in the sequence's last page, if they are its own.

        It is what most steps need, and short of `num_pages_to_grow` and `grow`.
        """
        entry, place = divmod(sequence.num_computed, self.pool.page_size)
        is_inside = place > 0 and place + num_tokens <= self.pool.page_size
        if not is_inside or not self.pool.is_writable(sequence.table[entry], place):
            return False
        self._written.add(sequence.table[entry])
        return True

    def grow(self, sequence: Sequence, num_tokens: int) -> None:
        """Make the places of the next `num_tokens` tokens the sequence's own.

        The pages that it takes must be free.
        """
        if self._must_copy(sequence):
            entry = sequence.num_computed // self.pool.page_size
            source, target = sequence.table[entry], self.pool.allocate()
            self._copies.append(Move(source, target))
            self._copy_sources.add(source)
            self._release([source])
            sequence.table[entry] = target
            sequence.num_sent_pages = min(sequence.num_sent_pages, entry)
        while len(sequence.table) < self.num_pages(sequence.num_computed + num_tokens):
            sequence.table.append(self.pool.allocate())
        self._written.update(sequence.table[sequence.num_computed // self.pool.page_size :])

    def computed(self, sequence: Sequence, num_tokens: int, salt: str) -> None:
        """Note that `num_tokens` more tokens are written; index the pages that became full."""
        sequence.num_computed += num_tokens
        size = self.pool.page_size
        for entry in range(len(sequence.digests), sequence.num_computed // size):
            tokens = sequence.tokens[entry * size : (entry + 1) * size]
            digest = self.pool.register(sequence.table[entry], self._parent(sequence, salt), tokens)
            if digest is None:
                break
            sequence.digests.append(digest)

    def fork(self, parent: Sequence, child: Sequence) -> None:
        """Let `child` hold all that `parent` holds."""
        for page in parent.table:
            self.pool.share(page)
        child.table = list(parent.table)
        child.digests = list(parent.digests)
        child.num_computed = parent.num_computed
        child.num_sent_pages = parent.num_sent_pages
        child.is_running = parent.is_running

    def release(self, sequence: Sequence) -> None:
        """Take everything from a sequence."""
        self._drop_host(sequence)
        self._truncate(sequence, 0)

    def retire(self, sequence: Sequence, salt: str) -> None:
        """Take everything from a sequence that is done, and index its last, partly filled page."""
        size = self.pool.page_size
        entry = sequence.num_computed // size
        tail = sequence.tokens[entry * size : sequence.num_computed]
        is_own = not self._must_copy(sequence)
        if tail and is_own and len(sequence.digests) == entry:
            self.pool.register(sequence.table[entry], self._parent(sequence, salt), tail)
        self.release(sequence)

    def _must_copy(self, sequence: Sequence) -> bool:
        entry, place = divmod(sequence.num_computed, self.pool.page_size)
        return place > 0 and not self.pool.is_writable(sequence.table[entry], place)

    def _parent(self, sequence: Sequence, salt: str) -> bytes:
        return sequence.digests[-1] if sequence.digests else self.pool.root(salt)

    # -- preemption --------------------------------------------------------------------------------

    def shed_tail(self, sequence: Sequence, num_pages: int) -> None:
        """Free up to `num_pages` pages from the sequence's end, none that another holds too."""
        keep = len(sequence.table)
        lowest = max(0, keep - num_pages)
        while keep > lowest and self.pool.refs(sequence.table[keep - 1]) == 1:
            keep -= 1
        if keep == len(sequence.table):
            return
        assert self._written.isdisjoint(sequence.table[keep:]), "shed in the step that filled it"
        num_kept_tokens = keep * self.pool.page_size
        if sequence.num_computed > num_kept_tokens:
            self._swap_or_drop(sequence, keep)
        self._truncate(sequence, keep)

    def shed_all(self, sequence: Sequence) -> None:
        """Free the sequence's own pages and give back those that it shares."""
        self.shed_tail(sequence, len(sequence.table))
        self._truncate(sequence, 0)

    def _swap_or_drop(self, sequence: Sequence, keep: int) -> None:
        """Choose for the computed pages from entry `keep` on: to the host, or computed again."""
        pages = sequence.table[keep : self.num_pages(sequence.num_computed)]
        num_tokens = sequence.num_computed - keep * self.pool.page_size
        swap_s = len(pages) * self._cost.swap_s_per_page
        recompute_s = num_tokens * self._cost.recompute_s_per_token
        # What is on the host already follows directly only if there is no gap between.
        is_gapless = not sequence.host_pages or sequence.host_start == sequence.num_computed
        if swap_s > recompute_s or len(pages) > self._host.num_free or not is_gapless:
            self._drop_host(sequence)
            self.num_dropped_tokens += num_tokens
            return
        hosts = [self._host.allocate() for _ in pages]
        self._out += [Move(page, host) for page, host in zip(pages, hosts, strict=True)]
        sequence.host_pages = hosts + sequence.host_pages
        sequence.host_start = keep * self.pool.page_size
        sequence.num_swapped += num_tokens

    def _truncate(self, sequence: Sequence, keep: int) -> None:
        released = sequence.table[keep:]
        del sequence.table[keep:]
        del sequence.digests[keep:]
        sequence.num_computed = min(sequence.num_computed, keep * self.pool.page_size)
        sequence.num_sent_pages = min(sequence.num_sent_pages, keep)
        sequence.is_running = False
        self._release(reversed(released))

    def _drop_host(self, sequence: Sequence) -> None:
        # Another may get these host pages in this very step: what was to go there must not.
        self._out = [move for move in self._out if move.target not in sequence.host_pages]
        self._host.release(sequence.host_pages)
        sequence.host_pages = []
        sequence.num_swapped = 0

    def _release(self, pages: Iterable[int]) -> None:
        """Release pages, but keep the sources of this step's copies until these have run."""
        for page in pages:
            if page in self._copy_sources and self.pool.refs(page) == 1:
                self._pinned.append(page)
            else:
                self.pool.release([page])

    # -- the way back ------------------------------------------------------------------------------

    def adopt_cached(self, sequence: Sequence, salt: str, *, has_tail: bool) -> None:
        """Take what the prefix cache holds of the sequence's tokens behind those it has.

        With `has_tail` also a page that is used in part: it costs a page more, for the copy.
        """
        limit = sequence.host_start if sequence.host_pages else len(sequence.tokens) - 1
        prefix = self.pool.match(sequence.tokens, limit, salt)
        num_full = len(prefix.digests) * self.pool.page_size
        num_tokens = prefix.num_tokens if has_tail else num_full
        self._adopt(sequence, prefix.pages, prefix.digests, num_tokens)

    def adopt_shared(self, sequence: Sequence, sibling: Sequence) -> None:
        """Take what a sibling holds of the sequence's tokens behind those it has."""
        limit = sequence.host_start if sequence.host_pages else len(sequence.tokens) - 1
        num_tokens = min(limit, sibling.num_computed, common_run(sequence.tokens, sibling.tokens))
        self._adopt(sequence, sibling.table, sibling.digests, num_tokens)

    def swap_in(self, sequence: Sequence) -> None:
        """Bring back the sequence's host pages, or give them up where a gap lies before them."""
        if sequence.host_pages and sequence.num_computed == sequence.host_start:
            pages = [self.pool.allocate() for _ in sequence.host_pages]
            self._in += [
                Move(host, page) for host, page in zip(sequence.host_pages, pages, strict=True)
            ]
            self._host_read += sequence.host_pages
            sequence.host_pages = []
            self._written.update(pages)
            sequence.table += pages
            sequence.num_computed += sequence.num_swapped
            sequence.num_swapped = 0
        self._drop_host(sequence)

    def _adopt(
        self, sequence: Sequence, pages: Seq[int], digests: Seq[bytes], num_tokens: int
    ) -> None:
        """Go on with `pages`, which hold the sequence's first `num_tokens` tokens, behind its own.

        Full pages that it has stay: its siblings may share them. A partly used page will be copied
        before the step computes anything, so it cannot be one that this very step fills; full
        pages can.
        """
        size = self.pool.page_size
        if num_tokens % size and pages[num_tokens // size] in self._written:
            num_tokens -= num_tokens % size
        if num_tokens <= sequence.num_computed:
            return
        num_kept = sequence.num_computed // size
        adopted = [*sequence.table[:num_kept], *pages[num_kept : self.num_pages(num_tokens)]]
        for page in adopted:
            self.pool.share(page)
        self._release(reversed(sequence.table))
        sequence.table = adopted
        sequence.digests = list(digests[: num_tokens // size])
        sequence.num_computed = num_tokens
        sequence.num_sent_pages = 0

    # -- figures -----------------------------------------------------------------------------------

    def usage(self, sequences: Iterable[Sequence]) -> KvUsage:
        """How full the held pages are and how much sharing saves, given all that hold pages."""
        size = self.pool.page_size
        held: dict[int, int] = {}
        num_entries = 0
        for sequence in sequences:
            num_entries += len(sequence.table)
            for entry, page in enumerate(sequence.table):
                num_filled = min(size, max(0, sequence.num_computed - entry * size))
                held[page] = max(held.get(page, 0), num_filled)
        return KvUsage(
            num_held_pages=len(held),
            num_table_entries=num_entries,
            num_filled_slots=sum(held.values()),
            num_held_slots=len(held) * size,
        )
