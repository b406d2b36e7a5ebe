"""Pages: sharing, the order of eviction, and what the prefix index finds."""

import pytest

from alpage.serve.pages import PagePool

_SIZE = 4


def _chain(pool: PagePool, tokens: list[int], salt: str = "") -> list[int]:
    """Hold pages for tokens, as a sequence does that computes them; index the full ones."""
    parent, pages = pool.root(salt), []
    for start in range(0, len(tokens), pool.page_size):
        page = pool.allocate()
        part = tokens[start : start + pool.page_size]
        if len(part) == pool.page_size:
            parent = pool.register(page, parent, part) or parent
        pages.append(page)
    return pages


def test_full_pages_of_an_equal_prefix_are_found():
    pool = PagePool(8, _SIZE)
    pages = _chain(pool, list(range(11)))
    prefix = pool.match([*range(8), 99, 99], limit=9)
    assert prefix.pages == tuple(pages[:2])
    assert prefix.num_tokens == 8
    assert len(prefix.digests) == 2


def test_a_page_is_found_only_behind_its_own_prefix():
    pool = PagePool(8, _SIZE)
    _chain(pool, [1, 1, 1, 1, 2, 2, 2, 2])
    assert pool.match([2, 2, 2, 2, 1, 1, 1, 1], limit=8).num_tokens == 0
    assert pool.match([9, 9, 9, 9, 2, 2, 2, 2], limit=8).num_tokens == 0


def test_the_longest_run_inside_a_page_is_found():
    pool = PagePool(8, _SIZE)
    _chain(pool, [0, 0, 0, 0, 1, 2, 3, 4])
    longest = _chain(pool, [5, 5, 5, 5])
    third = pool.allocate()
    pool.register(third, pool.root(""), [5, 5, 6])
    prefix = pool.match([5, 5, 5, 7, 8], limit=4)
    assert (prefix.pages, prefix.digests, prefix.num_tokens) == (tuple(longest), (), 3)
    prefix = pool.match([5, 5, 6, 6, 6], limit=4)
    assert (prefix.pages, prefix.num_tokens) == ((third,), 3)


def test_a_hit_ends_at_the_limit():
    pool = PagePool(8, _SIZE)
    pages = _chain(pool, list(range(8)))
    prefix = pool.match(list(range(8)), limit=7)
    assert (prefix.pages, prefix.num_tokens) == (tuple(pages), 7)
    assert len(prefix.digests) == 1
    assert pool.match(list(range(8)), limit=4).pages == (pages[0],)
    assert pool.match(list(range(8)), limit=0).pages == ()


def test_salt_separates_equal_tokens():
    pool = PagePool(8, _SIZE)
    _chain(pool, list(range(6)), salt="one")
    assert pool.match(list(range(6)), limit=5, salt="other").num_tokens == 0
    assert pool.match(list(range(6)), limit=5, salt="one").num_tokens == 4


def test_keys_separate_digests():
    one, other = PagePool(1, _SIZE, key=b"one"), PagePool(1, _SIZE, key=b"other")
    assert one.root("") != other.root("")


def test_pages_without_a_use_go_first_and_a_chain_goes_from_its_end():
    pool = PagePool(6, _SIZE)
    first = _chain(pool, list(range(10)))
    second = _chain(pool, list(range(50, 58)))
    pool.release(reversed(first))
    pool.release(reversed(second))
    never_used = 5
    tail, cached = first[2], [first[1], first[0], second[1], second[0]]
    assert [pool.allocate() for _ in range(6)] == [tail, never_used, *cached]


def test_a_page_that_is_used_again_is_evicted_later():
    pool = PagePool(2, _SIZE)
    (one,), (other,) = _chain(pool, [1] * 4), _chain(pool, [2] * 4)
    pool.release([one])
    pool.release([other])
    pool.share(one)
    pool.release([one])
    assert pool.allocate() == other


def test_an_evicted_page_is_not_found_again():
    pool = PagePool(2, _SIZE)
    pages = _chain(pool, list(range(8)))
    pool.release(reversed(pages))
    assert pool.allocate() == pages[1]
    assert pool.match(list(range(8)), limit=8).pages == (pages[0],)
    pool.check([[pages[1]]])


def test_a_hit_is_never_given_out_while_it_is_held():
    pool = PagePool(3, _SIZE)
    pages = _chain(pool, list(range(8)))
    pool.release(reversed(pages))
    for page in pool.match(list(range(8)), limit=8).pages:
        pool.share(page)
    assert pool.num_free == 1
    assert pool.allocate() not in pages


def test_of_equal_pages_the_first_stays():
    pool = PagePool(4, _SIZE)
    (first,), (second,) = _chain(pool, [7] * 4), _chain(pool, [7] * 4)
    assert pool.match([7] * 4, limit=4).pages == (first,)
    pool.release([second])
    assert pool.allocate() == second, "a page that is nowhere in the index is worth nothing"


def test_a_page_may_be_written_only_behind_what_others_rely_on():
    pool = PagePool(2, _SIZE)
    page = pool.allocate()
    assert pool.is_writable(page, 0)
    pool.register(page, pool.root(""), [1, 2])
    assert not pool.is_writable(page, 1)
    assert pool.is_writable(page, 2)
    pool.share(page)
    assert not pool.is_writable(page, 2)


def test_without_a_cache_nothing_is_found_or_kept():
    pool = PagePool(2, _SIZE, has_prefix_cache=False)
    page = pool.allocate()
    assert pool.register(page, pool.root(""), [1] * 4) is None
    assert pool.match([1] * 4, limit=4).pages == ()
    assert pool.is_writable(page, 0)


def test_reset_forgets_prefixes_and_keeps_holders():
    pool = PagePool(4, _SIZE)
    held, cached = _chain(pool, [1] * 4), _chain(pool, [2] * 4)
    pool.release(cached)
    pool.reset()
    assert pool.match([1] * 4, limit=4).pages == pool.match([2] * 4, limit=4).pages == ()
    pool.check([held])


def test_releasing_twice_is_caught():
    pool = PagePool(1, _SIZE)
    page = pool.allocate()
    pool.release([page])
    with pytest.raises(AssertionError, match="once too often"):
        pool.release([page])


@pytest.mark.parametrize("tables", [[], [[0], [0]], [[1]]])
def test_check_notices_holders_that_do_not_match(tables):
    pool = PagePool(2, _SIZE)
    assert pool.allocate() == 0
    with pytest.raises(AssertionError, match="page"):
        pool.check(tables)
