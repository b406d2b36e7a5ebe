// threads: work on the threads of the OpenMP runtime that torch has loaded.
#pragma once

#include <sched.h>

#include <atomic>
#include <cstdint>

// Entries that GNU's and LLVM's OpenMP runtimes both export (GOMP_4.0, OMP_1.0). Nothing links them: the dynamic linker
// takes them from the runtime in the process, whatever that library is called, so there can be no second one.
extern "C" void GOMP_parallel(void (*run)(void*), void* data, unsigned num_threads, unsigned flags);
extern "C" int omp_get_num_threads();

namespace alpage {

// What the threads of a team have in common.
class Meeting {
 public:
    int64_t take() { return next_.fetch_add(1, std::memory_order_relaxed); }

    // Returns once all have come. Between them there is no work for longer than a kernel takes, so they wait awake.
    void wait(int num_threads) {
        const unsigned round = round_.load(std::memory_order_acquire);
        if (arrived_.fetch_add(1, std::memory_order_acq_rel) + 1 == num_threads) {
            arrived_.store(0, std::memory_order_relaxed);
            next_.store(0, std::memory_order_relaxed);
            round_.store(round + 1, std::memory_order_release);
            return;
        }
        for (int i = 0; round_.load(std::memory_order_acquire) == round; ++i) i < kPatience ? pause() : void(sched_yield());
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

    alignas(64) std::atomic<int64_t> next_{0};
    alignas(64) std::atomic<int> arrived_{0};
    alignas(64) std::atomic<unsigned> round_{0};
};

// Threads that run the same program; each has a Team of its own.
class Team {
 public:
    Team(Meeting& meeting, int num_threads) : meeting_(meeting), num_threads_(num_threads) {}

    // Calls run(i) for each i in [0, num_items) on some thread, in any order; returns once all are done. All threads
    // have to come here. `run` must not throw.
    template <class Run>
    void share(int64_t num_items, Run run) {
        for (int64_t i; (i = meeting_.take()) < num_items;) run(i);
        meeting_.wait(num_threads_);
    }

 private:
    Meeting& meeting_;
    const int num_threads_;
};

// Calls work(team) on each thread of a team.
template <class Work>
void with_team(int num_threads, Work work) {
    struct Call {
        Meeting meeting;
        Work& work;
    } call{{}, work};
    if (num_threads == 1) {
        Team team(call.meeting, 1);
        return work(team);
    }
    // The runtime may give fewer threads than asked for. A team of another size than the last would make it end its
    // threads and start them again.
    const auto run = [](void* data) {
        Call& call = *static_cast<Call*>(data);
        Team team(call.meeting, omp_get_num_threads());
        call.work(team);
    };
    GOMP_parallel(run, &call, num_threads, 0);
}

// Calls run(i) for each i in [0, num_items), in any order. `run` must not throw.
template <class Run>
void for_each(int64_t num_items, int num_threads, Run run) {
    with_team(num_items > 1 ? num_threads : 1, [&](Team& team) { team.share(num_items, run); });
}

} // namespace alpage
