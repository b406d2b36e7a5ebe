// threads: work on the threads of the OpenMP runtime that torch has loaded.
#pragma once

#include <atomic>
#include <cstdint>

// The one entry that GNU's and LLVM's OpenMP runtimes both export (GOMP_4.0). Nothing links it: the dynamic linker
// takes it from the runtime in the process, whatever that library is called, so there can be no second one.
extern "C" void GOMP_parallel(void (*run)(void*), void* data, unsigned num_threads, unsigned flags);

namespace alpage {

// Calls run(i) for each i in [0, num_items), in any order. `run` must not throw.
template <class Run>
void for_each(int64_t num_items, int num_threads, Run run) {
    struct Team {
        std::atomic<int64_t> next{0};
        int64_t num_items;
        Run& run;
    } team{0, num_items, run};
    const auto work = [](void* data) {
        Team& team = *static_cast<Team*>(data);
        for (int64_t i; (i = team.next.fetch_add(1, std::memory_order_relaxed)) < team.num_items;) team.run(i);
    };
    // A team of another size would make the runtime end its threads and start them again.
    if (num_threads > 1 && num_items > 1) GOMP_parallel(work, &team, num_threads, 0);
    else work(&team);
}

} // namespace alpage
