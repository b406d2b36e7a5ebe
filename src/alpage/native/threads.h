// threads: work on the threads of the OpenMP runtime that torch has loaded.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>
#include <vector>

namespace alpage {

// GOMP_parallel, the one entry that GNU's and LLVM's OpenMP runtimes both export (GOMP_4.0). Nothing links it: Python
// hands over that of the runtime in the process, whatever that library is called, so there can be no second one.
using RunOnTeam = void (*)(void (*run)(void*), void* data, unsigned num_threads, unsigned flags);
inline RunOnTeam run_on_team = nullptr;

// Work that a team shares out. It is done when its items are, whichever threads have come: one that lost its core to
// another program holds nobody up unless it has an item.
struct alignas(64) Round {
    std::atomic<int64_t> next{0}, num_done{0};
};

// One of the threads that run the same rounds of work.
class Team {
 public:
    Team(Round* rounds, int num_threads) : round_(rounds), num_threads_(num_threads) {}

    int num_threads() const { return num_threads_; }

    // Calls run(i) for each i in [0, num_items) on some thread, in any order; returns once all are done. All threads
    // come here, sooner or later. `run` must not throw.
    template <class Run>
    void share(int64_t num_items, Run run) {
        Round& round = *round_++;
        for (int64_t i; (i = round.next.fetch_add(1, std::memory_order_relaxed)) < num_items;) {
            run(i);
            round.num_done.fetch_add(1, std::memory_order_release);
        }
        // What is left is at work already, and takes no longer than a kernel: this waits awake.
        for (int i = 0; round.num_done.load(std::memory_order_acquire) < num_items; ++i)
            i < kPatience ? pause() : void(sched_yield());
    }

 private:
    // About 50 microseconds; then a thread that shares its core lets others run.
    static constexpr int kPatience = 2000;

    static void pause() {
#if defined(__x86_64__) || defined(__i386__)
        __builtin_ia32_pause();
#elif defined(__aarch64__)
        asm volatile("yield");
#endif
    }

    Round* round_;
    const int num_threads_;
};

// Calls work(team) on each thread of a team, which shares `num_rounds` times.
template <class Work>
void with_team(int num_threads, int64_t num_rounds, Work work) {
    struct Call {
        std::vector<Round> rounds;
        Work& work;
        int num_threads;
    } call{std::vector<Round>(num_rounds), work, num_threads};
    const auto run = [](void* data) {
        Call& call = *static_cast<Call*>(data);
        Team team(call.rounds.data(), call.num_threads);
        call.work(team);
    };
    // A team of another size than the last would make the runtime end its threads and start them again.
    if (num_threads > 1) run_on_team(run, &call, num_threads, 0);
    else run(&call);
}

// Calls run(i) for each i in [0, num_items), in any order. `run` must not throw.
template <class Run>
void for_each(int64_t num_items, int num_threads, Run run) {
    with_team(num_items > 1 ? num_threads : 1, 1, [&](Team& team) { team.share(num_items, run); });
}

} // namespace alpage
