"""Ops: the arithmetic behind one interface: attention over pages, and drawing tokens.

May import: the base modules. `backends()` are the ways to compute attention, the fastest first.
"""

from alpage.ops.attention import AttentionSpec, Backend, PagedKV, attention, select
from alpage.ops.backends import backends
from alpage.ops.kv import KvPool

__all__ = ["AttentionSpec", "Backend", "KvPool", "PagedKV", "attention", "backends", "select"]
