"""Which failures are about memory, by what the libraries say."""

import pytest

from alpage.errors import OutOfMemory
from alpage.serve.allocation import allocating

SHORTAGES = [
    MemoryError(),
    RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 2 bytes."),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 2 bytes."),
    RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB."),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling cublasCreate(handle)"),
]


def fail(error):
    with allocating(field="step", value=5, limit="found no memory", remedy="Ask for less"):
        raise error


@pytest.mark.parametrize("error", SHORTAGES, ids=str)
def test_shortages_say_what_to_do(error):
    with pytest.raises(OutOfMemory, match=r"step=5: found no memory\. Ask for less\."):
        fail(error)


def test_other_failures_pass():
    with pytest.raises(RuntimeError, match="mat1 and mat2"):
        fail(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
