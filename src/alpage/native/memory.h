// memory: what the system has promised is asked for on all threads at once, before it is written for the first time.
#pragma once

#include <cstdint>

#if defined(__linux__)
#include <sys/mman.h>
#include <unistd.h>
#endif

#include "threads.h"

namespace alpage {

// Has the system give the memory of `num_bytes` in each of `num_regions`, which lie `stride` bytes apart. Contents stay
// as they are. Where the system cannot be asked nothing happens, and memory comes as it is written.
inline void populate(uintptr_t begin, int64_t stride, int64_t num_regions, int64_t num_bytes, int num_threads) {
#if defined(MADV_POPULATE_WRITE)
    const uintptr_t page = sysconf(_SC_PAGESIZE);
    for_each(num_regions, num_threads, [=](int64_t i) {
        const uintptr_t first = (begin + i * stride) / page * page, end = begin + i * stride + num_bytes;
        madvise(reinterpret_cast<void*>(first), end - first, MADV_POPULATE_WRITE);
    });
#endif
}

} // namespace alpage
