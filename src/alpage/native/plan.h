// plan: a step's attention, cut into tiles that a team shares, and where its keys and values go.
//
// Not for kernels.cpp: what is inline in the standard library must not be compiled there.
#pragma once

#include <memory>

#include "attention.h"
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

struct KvStore {
    Dtype dtype;
    const void* k_TGK;
    const void* v_TGK;
    void* k_PGSK;
    void* v_PGSK;
    const int64_t* slot_T; // page * page_size + place
    int64_t k_token_stride, k_head_stride, v_token_stride, v_head_stride;
    int64_t page_stride;
    int64_t num_tokens, num_pages;
    int num_kv_heads, head_dim, page_size;
    TileForm form;
};

// Throws on a slot out of range.
void check_slots(const KvStore&);
// Copies keys and values of tokens [first, end) into their slots.
void store_kv(const KvStore&, int64_t first, int64_t end);

} // namespace alpage
