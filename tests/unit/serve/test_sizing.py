"""How many pages there are, on the device and on the host behind it."""

import pytest

from alpage.errors import OutOfMemory
from alpage.serve.config import EngineConfig
from alpage.serve.sizing import size
from alpage.units import GiB


def sizes(*, free_host_bytes=None, **options):
    return size(
        EngineConfig(**options),
        max_positions=4096,
        kv_bytes_per_token=2**16,
        free_bytes=4 * GiB,
        free_host_bytes=free_host_bytes,
        share=0.5,
        notify=lambda line: None,
    )


def test_a_quarter_is_swapped_to_unless_told():
    assert sizes(kv_memory="1GiB").num_host_pages == sizes(kv_memory="1GiB").num_pages // 4
    assert sizes(kv_memory="1GiB", swap_memory="3GiB").num_host_pages == 3 * GiB // 2**20
    assert sizes(kv_memory="4GiB").num_host_pages == 0
    assert sizes(kv_memory="4GiB", free_host_bytes=GiB).num_host_pages == 1024
    assert sizes(kv_memory="4GiB", swap_memory=0).num_host_pages == 0


@pytest.mark.parametrize("free_host_bytes", [None, 2 * GiB])
@pytest.mark.parametrize("swap_memory", ["1000TiB", "4GiB", 10**400])
def test_swap_memory_that_is_not_there(swap_memory, free_host_bytes):
    with pytest.raises(OutOfMemory, match=r"swap_memory.*2.0 GiB that the host has left"):
        sizes(kv_memory="2GiB", swap_memory=swap_memory, free_host_bytes=free_host_bytes)
