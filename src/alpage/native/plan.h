// plan: a step's attention, cut into tiles that a team shares.
//
// Not for kernels.cpp: what is inline in the standard library must not be compiled there.
#pragma once

#include <memory>

#include "attention.h"
#include "kv_store.h"
#include "threads.h"

namespace alpage {

// How a step's attention is cut into tiles: the same for all layers with the same window.
class AttentionPlan {
 public:
    // Throws on a page or token out of range.
    explicit AttentionPlan(const Attention&);
    ~AttentionPlan();

    // Every thread of a team calls this; the problem differs from the planned one in its layer alone.
    void run(Team&, const Attention&, const Isa&);

    // Splits of a head's keys that a run reads; one that a tile reads for several sequences counts once.
    int64_t num_splits() const;

 private:
    struct Parts;
    std::unique_ptr<Parts> parts_;
};

// Throws on a slot out of range.
void check_slots(const KvStore&);

} // namespace alpage
