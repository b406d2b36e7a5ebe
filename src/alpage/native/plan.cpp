// plan: see plan.h.
#include <algorithm>
#include <atomic>
#include <cstring>
#include <memory>
#include <stdexcept>
#include <string>
#include <vector>

#include "plan.h"

namespace alpage {
namespace {

[[noreturn]] void refuse(const char* what, int64_t value, int64_t limit) {
    throw std::out_of_range(std::string(what) + " " + std::to_string(value) + " is not in [0, " +
                            std::to_string(limit) + ")");
}

struct Rows {
    int num_tokens, past;
};

Rows rows_of(const Attention& a, int sequence) {
    const int start = a.query_start_B1[sequence], end = a.query_start_B1[sequence + 1];
    if (start < 0 || start > end || end > a.num_tokens) refuse("query start", end, a.num_tokens + 1);
    const int past = a.context_B[sequence] - (end - start);
    if (past < 0) refuse("tokens before the step", past, a.context_B[sequence] + 1);
    return {end - start, past};
}

int first_key(const Attention& a, int position) { return std::max(0, position - a.window + 1); }

void check_pages(const Attention& a, int sequence, Rows rows) {
    const int first = first_key(a, rows.past) / a.page_size;
    const int last = (rows.past + rows.num_tokens - 1) / a.page_size;
    if (last >= a.table_width) refuse("page of the table", last, a.table_width);
    const int32_t* table = a.table_BP + sequence * a.table_stride;
    for (int i = first; i <= last; ++i)
        if (table[i] < 0 || table[i] >= a.num_pages) refuse("page", table[i], a.num_pages);
}

// A tile whose splits run apart. Whoever finishes the last one joins them all.
struct Shared {
    Tile tile;
    int64_t first_partial;
    std::atomic<int> num_left;
    Shared(Tile tile, int64_t first_partial)
        : tile(tile), first_partial(first_partial), num_left(tile.end_split - tile.first_split) {}
    Shared(const Shared& other) : Shared(other.tile, other.first_partial) {}
};

struct Item {
    Tile tile;
    int shared; // index of its Shared, or whole
    static constexpr int whole = -1;
};

} // namespace

struct AttentionPlan::Parts {
    std::vector<Item> items;
    std::vector<Shared> shared;
    int64_t num_partials = 0; // floats
    std::unique_ptr<float[]> partials;

    void add(const Attention& a, const Tile& tile, bool is_split) {
        if (!is_split || tile.end_split - tile.first_split == 1) {
            items.push_back({tile, Item::whole});
            return;
        }
        shared.emplace_back(tile, num_partials);
        for (int split = tile.first_split; split < tile.end_split; ++split) {
            Tile part = tile;
            part.first_split = split;
            part.end_split = split + 1;
            items.push_back({part, int(shared.size()) - 1});
            num_partials += softmax_floats(tile.num_rows, a.head_dim);
        }
    }
};

AttentionPlan::AttentionPlan(const Attention& a) : parts_(new Parts) {
    const int group = a.num_heads / a.num_kv_heads;
    for (int sequence = 0; sequence < a.num_sequences; ++sequence) {
        const Rows rows = rows_of(a, sequence);
        if (rows.num_tokens == 0) continue;
        check_pages(a, sequence, rows);
        const int num_rows = rows.num_tokens * group;
        const bool is_split = num_rows <= kMaxSplitTiles * kTileRows;
        for (int kv_head = 0; kv_head < a.num_kv_heads; ++kv_head)
            for (int row = 0; row < num_rows; row += kTileRows) {
                const int end = std::min(row + kTileRows, num_rows);
                const int oldest = first_key(a, rows.past + row / group);
                const int newest = rows.past + (end - 1) / group;
                const int first_split = oldest / kSplitKeys, end_split = newest / kSplitKeys + 1;
                parts_->add(a, {sequence, kv_head, row, end - row, first_split, end_split}, is_split);
            }
    }
    parts_->partials.reset(new float[parts_->num_partials]);
}

AttentionPlan::~AttentionPlan() = default;

void AttentionPlan::run(Team& team, const Attention& a, const Isa& isa) {
    const Kernels& kernels = kernels_of(isa, a);
    const int64_t num_items = parts_->items.size();
    team.share(num_items, [&](int64_t i) {
        // From the end: a prompt's last rows see the most keys, and long work comes first.
        const Item& item = parts_->items[num_items - 1 - i];
        if (item.shared == Item::whole) return kernels.attend(a, item.tile);
        Shared& shared = parts_->shared[item.shared];
        float* first = parts_->partials.get() + shared.first_partial;
        const int64_t size = softmax_floats(item.tile.num_rows, a.head_dim);
        kernels.attend_split(a, item.tile, first + (item.tile.first_split - shared.tile.first_split) * size);
        if (shared.num_left.fetch_sub(1, std::memory_order_acq_rel) > 1) return;
        kernels.join_splits(a, shared.tile, first);
        shared.num_left.store(shared.tile.end_split - shared.tile.first_split, std::memory_order_relaxed);
    });
}

void check_slots(const KvStore& s) {
    for (int64_t t = 0; t < s.num_tokens; ++t)
        if (s.slot_T[t] < 0 || s.slot_T[t] >= s.num_pages * s.page_size)
            refuse("slot", s.slot_T[t], s.num_pages * s.page_size);
}

namespace {

// Writes a token's key or value of one head into its tile.
void store_row(const char* from, char* tile, int64_t place, const KvStore& s) {
    const int64_t row = s.head_dim * (s.dtype == Dtype::float32 ? 4 : 2);
    std::memcpy(tile + place * row, from, row);
}

void store_key_pairs(const char* from, char* tile, int64_t place, const KvStore& s) {
    char* to = tile + (place / kPairTokens * kPairTokens * s.head_dim + place % kPairTokens * 2) * 2;
    for (int64_t unit = 0; unit < s.head_dim / 2; ++unit) std::memcpy(to + unit * kPairTokens * 4, from + unit * 4, 4);
}

void store_value_pairs(const char* from, char* tile, int64_t place, const KvStore& s) {
    char* to = tile + (place / 2 * 2 * s.head_dim + place % 2) * 2;
    for (int64_t i = 0; i < s.head_dim; ++i) std::memcpy(to + i * 4, from + i * 2, 2);
}

} // namespace

void store_kv(const KvStore& s, int64_t first, int64_t end) {
    const int64_t element = s.dtype == Dtype::float32 ? 4 : 2;
    const bool is_pairs = s.form == TileForm::pairs;
    const auto store_key = is_pairs ? store_key_pairs : store_row, store_value = is_pairs ? store_value_pairs : store_row;
    for (int64_t t = first; t < end; ++t) {
        const int64_t page = s.slot_T[t] / s.page_size, place = s.slot_T[t] % s.page_size;
        for (int64_t g = 0; g < s.num_kv_heads; ++g) {
            const int64_t tile = (page * s.page_stride + g * s.page_size * s.head_dim) * element;
            const int64_t k = (t * s.k_token_stride + g * s.k_head_stride) * element;
            const int64_t v = (t * s.v_token_stride + g * s.v_head_stride) * element;
            store_key(static_cast<const char*>(s.k_TGK) + k, static_cast<char*>(s.k_PGSK) + tile, place, s);
            store_value(static_cast<const char*>(s.v_TGK) + v, static_cast<char*>(s.v_PGSK) + tile, place, s);
        }
    }
}

} // namespace alpage
