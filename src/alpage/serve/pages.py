"""Pages: hand out fixed-size KV pages, share them by reference, and find equal prefixes again.

A page holds the keys and values of `page_size` consecutive tokens in every layer
(Kwon et al. 2023, arXiv:2309.06180, section 4). Here a page is a number; the tensors are the
runner's.

Sharing is by reference count. A holder that wants to write asks `is_writable`; a page that others
hold is copied first (copy-on-write), which is the scheduler's business.

Prefixes are found through chained hashes: the digest of a full page covers its tokens and the
digest of the page before it, so one lookup a page answers "who computed this prefix?" in constant
time. Where the chain of full pages ends, the pages that continue it are searched for the longest
common run of tokens, so a partly equal page is shared too and the first write to it copies it. Hit
lengths are those of a radix tree over tokens; the structures stay flat (ADR 0003). Digests are
keyed, so nobody can craft a collision.

Invariants (checked by `PagePool.check`, attacked by tests/unit/serve/test_pages_machine.py):
    every page is either held (refs > 0) or free, never both; a free page may be cached;
    an entry of the prefix index names a page that names it back.
"""

import hashlib
from array import array
from collections import Counter, OrderedDict, deque
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import final

_DIGEST_BYTES = 16
# Pages that continue the same prefix with the same token, looked at newest first: a bound on the
# search.
_MAX_TAIL_CANDIDATES = 16
# Pages to which something happened of late, kept for those who look on.
NUM_LATELY = 256


@final
@dataclass(frozen=True, slots=True)
class Prefix:
    """Pages that already hold the start of a token sequence.

    `num_tokens` may end inside the last page; `digests` are those of the full pages among them.
    """

    pages: tuple[int, ...]
    digests: tuple[bytes, ...]
    num_tokens: int


@final
@dataclass(frozen=True, slots=True)
class _Entry:
    """What the prefix index knows of one page: which prefix it continues, and with what tokens."""

    parent: bytes
    tokens: tuple[int, ...]
    digest: bytes | None  # only full pages can be a link of a chain


@final
class PagePool:
    """All KV pages of one device, or of the host memory that backs it.

    Args:
        num_pages: how many pages there are.
        page_size: tokens a page holds.
        first: number of the first page; pools side by side number theirs on.
        key: secret for the digests, at most 64 bytes.
        has_prefix_cache: whether freed pages keep what they hold until they are needed.

    Attributes:
        num_evicted: cached pages that were given out for something else.
        lately_evicted: the last of them.
    """

    def __init__(
        self,
        num_pages: int,
        page_size: int,
        *,
        first: int = 0,
        key: bytes = b"",
        has_prefix_cache: bool = True,
    ) -> None:
        self.num_pages = num_pages
        self.page_size = page_size
        self.first = first
        self.num_evicted = 0
        self.lately_evicted: deque[int] = deque(maxlen=NUM_LATELY)
        self._key = key
        self._has_prefix_cache = has_prefix_cache
        self._numbers = range(first, first + num_pages)
        self._refs = dict.fromkeys(self._numbers, 0)
        # Taken from the front. What may be worth keeping is put at the back: least recently used
        # first.
        self._free: OrderedDict[int, None] = OrderedDict.fromkeys(self._numbers)
        self._entries: dict[int, _Entry] = {}
        self._by_digest: dict[bytes, int] = {}
        self._continuations: dict[tuple[bytes, int], dict[int, None]] = {}

    # -- ownership ---------------------------------------------------------------------------------

    @property
    def num_free(self) -> int:
        """Pages that can be allocated now; those that are merely cached count."""
        return len(self._free)

    @property
    def num_held(self) -> int:
        """Pages that somebody holds."""
        return self.num_pages - len(self._free)

    def refs(self, page: int) -> int:
        """How many holders a page has."""
        return self._refs[page]

    def all_refs(self) -> Collection[int]:
        """How many holders each page has, in the order of their numbers."""
        return self._refs.values()

    def allocate(self) -> int:
        """Take a free page, with one reference; what it cached is forgotten.

        The caller has checked `num_free`.
        """
        page, _ = self._free.popitem(last=False)
        if page in self._entries:
            self.forget(page)
            self.num_evicted += 1
            self.lately_evicted.append(page)
        self._refs[page] = 1
        return page

    def share(self, page: int) -> None:
        """Add a holder, also to a page that is only cached."""
        if self._refs[page] == 0:
            del self._free[page]
        self._refs[page] += 1

    def release(self, pages: Iterable[int]) -> None:
        """Drop one reference of each page.

        Give a sequence's pages from its last to its first: a chain is then evicted from its end.
        """
        for page in pages:
            assert self._refs[page] > 0, f"page {page} was released once too often"
            self._refs[page] -= 1
            if self._refs[page] == 0:
                self._free[page] = None
                if page not in self._entries:
                    self._free.move_to_end(page, last=False)

    def is_writable(self, page: int, place: int) -> bool:
        """Whether its holder may write a page from `place` on without copying it first.

        Not if another holds it too, nor if the prefix index promises tokens at or behind `place`.
        """
        entry = self._entries.get(page)
        return self._refs[page] == 1 and (entry is None or len(entry.tokens) <= place)

    # -- prefixes ----------------------------------------------------------------------------------

    def root(self, salt: str) -> bytes:
        """The digest that chains with this salt begin at; other salts never share pages."""
        return self._digest(b"", salt.encode())

    def match(self, tokens: Sequence[int], limit: int, salt: str = "") -> Prefix:
        """Find the longest cached prefix of `tokens`, at most `limit` tokens; take no reference."""
        if not self._has_prefix_cache:
            return Prefix((), (), 0)
        pages: list[int] = []
        digests: list[bytes] = []
        parent, size = self.root(salt), self.page_size
        while (len(pages) + 1) * size <= limit:
            digest = self._digest(
                parent, _packed(tokens[len(pages) * size : (len(pages) + 1) * size])
            )
            page = self._by_digest.get(digest)
            if page is None:
                break
            pages.append(page)
            digests.append(digest)
            parent = digest
        start = len(pages) * size
        tail, num_tail_tokens = self._match_tail(parent, tokens[start : min(limit, start + size)])
        if tail is not None:
            pages.append(tail)
        return Prefix(tuple(pages), tuple(digests), start + num_tail_tokens)

    def register(self, page: int, parent: bytes, tokens: Sequence[int]) -> bytes | None:
        """Tell the index what a held page holds, and that it follows the prefix `parent`.

        Returns the digest of the prefix that ends with this page, None where the page is not full:
        the index knows such a page too, but no chain goes through it. Of equal full pages the first
        stays.
        """
        if not self._has_prefix_cache:
            return None
        digest = self._digest(parent, _packed(tokens)) if len(tokens) == self.page_size else None
        if digest is None or digest not in self._by_digest:
            self.forget(page)
            self._entries[page] = _Entry(parent, tuple(tokens), digest)
            self._continuations.setdefault((parent, tokens[0]), {})[page] = None
            if digest is not None:
                self._by_digest[digest] = page
        return digest

    def forget(self, page: int) -> None:
        """Take a page out of the prefix index."""
        entry = self._entries.pop(page, None)
        if entry is None:
            return
        siblings = self._continuations[entry.parent, entry.tokens[0]]
        del siblings[page]
        if not siblings:
            del self._continuations[entry.parent, entry.tokens[0]]
        if entry.digest is not None:
            del self._by_digest[entry.digest]

    def indexed_pages(self) -> Collection[int]:
        """The pages that the prefix index knows, held or free."""
        return self._entries.keys()

    def reset(self) -> None:
        """Forget all cached prefixes; pages that are held stay held."""
        for page in list(self._entries):
            self.forget(page)

    def _match_tail(self, parent: bytes, tokens: Sequence[int]) -> tuple[int | None, int]:
        """The page behind `parent` with the longest run of `tokens`, and the length of that run."""
        best, best_run = None, 0
        if tokens:
            candidates = self._continuations.get((parent, tokens[0]), {})
            for page, _ in zip(reversed(candidates), range(_MAX_TAIL_CANDIDATES), strict=False):
                run = common_run(self._entries[page].tokens, tokens)
                if run > best_run:
                    best, best_run = page, run
        return best, best_run

    def _digest(self, parent: bytes, content: bytes) -> bytes:
        return hashlib.blake2b(parent + content, key=self._key, digest_size=_DIGEST_BYTES).digest()

    # -- the invariants ----------------------------------------------------------------------------

    def check(self, tables: Iterable[Sequence[int]]) -> None:
        """Assert every invariant, given the page tables of all holders."""
        held = Counter(page for table in tables for page in table)
        for page in self._numbers:
            assert self._refs[page] == held[page], (
                f"page {page}: refs {self._refs[page]}, held {held[page]}"
            )
            assert (page in self._free) == (held[page] == 0), (
                f"page {page} is both held and free, or lost"
            )
        for page, entry in self._entries.items():
            assert page in self._continuations[entry.parent, entry.tokens[0]], (
                f"page {page} cannot be found"
            )
            assert entry.digest is None or self._by_digest[entry.digest] == page, (
                f"page {page}: digest"
            )
        assert sum(map(len, self._continuations.values())) == len(self._entries), (
            "stale continuation"
        )
        assert set(self._by_digest.values()) <= set(self._entries), "stale digest"


def _packed(tokens: Sequence[int]) -> bytes:
    return array("q", tokens).tobytes()


def common_run(one: Sequence[int], other: Sequence[int]) -> int:
    """Length of the longest common start of two token runs.

    >>> common_run([1, 2, 3], [1, 2, 9, 3])
    2
    """
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))
