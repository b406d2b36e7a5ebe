"""The page pool against a model of it: lists of holders, and a search through all that is known."""

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from alpage.serve.pages import PagePool

_TOKENS = st.lists(st.integers(0, 1), max_size=9)
_SALTS = st.sampled_from(["", "", "salt"])
_PLACES = st.integers(0, 50)


class _Holder:
    """A sequence as the pool sees it: pages, and what the holder has put in them."""

    def __init__(self, pages: list[int], digests: list[bytes], tokens: list[int], salt: str):
        self.pages, self.digests, self.tokens, self.salt = pages, digests, tokens, salt


class PagePoolMachine(RuleBasedStateMachine):
    """Holders grow, fork, adopt cached prefixes and go; the model knows where everything is."""

    @initialize(num_pages=st.integers(1, 9), page_size=st.integers(1, 4))
    def build(self, num_pages: int, page_size: int) -> None:
        self.pool = PagePool(num_pages, page_size, key=b"key")
        self.size = page_size
        self.holders: list[_Holder] = []
        self.free = list(range(num_pages))  # in the order in which they are to be given out
        self.known: dict[int, tuple[str, tuple[int, ...]]] = {}  # page: salt, tokens to its end

    @rule(salt=_SALTS)
    def start(self, salt: str) -> None:
        self.holders.append(_Holder([], [], [], salt))

    @precondition(lambda self: self.holders)
    @rule(place=_PLACES, tokens=_TOKENS)
    def grow(self, place: int, tokens: list[int]) -> None:
        holder = self.holders[place % len(self.holders)]
        for token in tokens:
            entry, offset = divmod(len(holder.tokens), self.size)
            if offset == 0:
                if not self.free:
                    return
                holder.pages.append(self._allocate())
            elif not self._is_writable(holder.pages[entry], offset):
                if not self.free:
                    return
                source, holder.pages[entry] = holder.pages[entry], self._allocate()
                self._release([source])
            holder.tokens.append(token)
            if offset == self.size - 1:
                holder.digests.append(self._register(holder))

    @precondition(lambda self: self.holders)
    @rule(place=_PLACES)
    def fork(self, place: int) -> None:
        parent = self.holders[place % len(self.holders)]
        for page in parent.pages:
            self._share(page)
        self.holders.append(
            _Holder(list(parent.pages), list(parent.digests), list(parent.tokens), parent.salt)
        )

    @rule(tokens=_TOKENS, cut=st.integers(0, 2), salt=_SALTS)
    def adopt(self, tokens: list[int], cut: int, salt: str) -> None:
        limit = max(0, len(tokens) - cut)
        prefix = self.pool.match(tokens, limit, salt)
        assert prefix.num_tokens == self._longest(tokens[:limit], salt)
        assert len(prefix.digests) == prefix.num_tokens // self.size
        assert len(prefix.pages) == -(-prefix.num_tokens // self.size)
        for entry, page in enumerate(prefix.pages):
            known_salt, known = self.known[page]
            end = min((entry + 1) * self.size, prefix.num_tokens)
            assert known_salt == salt
            assert known[:end] == tuple(tokens[:end])
        for page in prefix.pages:
            self._share(page)
        self.holders.append(
            _Holder(list(prefix.pages), list(prefix.digests), tokens[: prefix.num_tokens], salt)
        )

    @precondition(lambda self: self.holders)
    @rule(place=_PLACES, has_tail=st.booleans())
    def leave(self, place: int, has_tail: bool) -> None:
        holder = self.holders.pop(place % len(self.holders))
        offset = len(holder.tokens) % self.size
        if has_tail and offset and self._is_writable(holder.pages[-1], offset):
            assert self._register(holder) is None
        self._release(holder.pages[::-1])

    @rule(place=_PLACES)
    def forget(self, place: int) -> None:
        page = place % self.pool.num_pages
        self.pool.forget(page)
        self.known.pop(page, None)

    @rule()
    def reset(self) -> None:
        self.pool.reset()
        self.known.clear()

    @invariant()
    def agrees(self) -> None:
        tables = [holder.pages for holder in self.holders]
        self.pool.check(tables)
        assert list(self.pool._free) == self.free
        assert self.pool.num_free == len(self.free)
        assert self.pool.num_held == len({page for table in tables for page in table})
        for page in range(self.pool.num_pages):
            assert self.pool.refs(page) == self._refs(page)
            for place in range(self.size):
                assert self.pool.is_writable(page, place) == self._is_writable(page, place)

    def teardown(self) -> None:
        for holder in getattr(self, "holders", []):
            self.pool.release(reversed(holder.pages))

    # -- the model ---------------------------------------------------------------------------------

    def _refs(self, page: int) -> int:
        return sum(page in holder.pages for holder in self.holders)

    def _is_writable(self, page: int, place: int) -> bool:
        _, known = self.known.get(page, ("", ()))
        num_promised = (len(known) - 1) % self.size + 1 if known else 0
        return self._refs(page) == 1 and num_promised <= place

    def _allocate(self) -> int:
        page = self.free.pop(0)
        self.known.pop(page, None)
        assert self.pool.allocate() == page
        return page

    def _share(self, page: int) -> None:
        if page in self.free:
            self.free.remove(page)
        self.pool.share(page)

    def _release(self, pages: list[int]) -> None:
        """Release pages of a holder that is no longer, or no longer holds them."""
        self.pool.release(pages)
        for page in pages:
            if self._refs(page) == 0:
                self.free.insert(len(self.free) if page in self.known else 0, page)

    def _register(self, holder: _Holder) -> bytes | None:
        """Index the page that the holder's tokens end in."""
        start = (len(holder.tokens) - 1) // self.size * self.size
        parent = (
            self.pool.root(holder.salt) if start == 0 else holder.digests[start // self.size - 1]
        )
        page, content = holder.pages[start // self.size], (holder.salt, tuple(holder.tokens))
        is_full = len(holder.tokens) % self.size == 0
        if not is_full or content not in self.known.values():
            self.known[page] = content
        digest = self.pool.register(page, parent, holder.tokens[start:])
        assert (digest is not None) == is_full
        return digest

    def _longest(self, tokens: list[int], salt: str) -> int:
        """The longest prefix that pages hold, by looking at all of them."""
        known = {content for owner, content in self.known.values() if owner == salt}
        num_full = 0
        while tuple(tokens[: num_full + self.size]) in known and num_full + self.size <= len(
            tokens
        ):
            num_full += self.size
        best = num_full
        for content in known:
            is_next = num_full < len(content) <= num_full + self.size
            if is_next and content[:num_full] == tuple(tokens[:num_full]):
                pairs = enumerate(zip(content, tokens, strict=False))
                run = next((i for i, (a, b) in pairs if a != b), min(len(content), len(tokens)))
                best = max(best, run)
        return best


TestPagePoolMachine = PagePoolMachine.TestCase
TestPagePoolMachine.settings = settings(deadline=None, stateful_step_count=50)
