// plan: see plan.h.
#include <algorithm>
#include <atomic>
#include <memory>
#include <numeric>
#include <stdexcept>
#include <string>
#include <tuple>
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

// A sequence's tile whose splits run apart. Whoever finishes the last one joins them all.
struct Joint {
    Tile tile;
    int64_t first_partial;
    int num_items = 0;
    std::atomic<int> num_left{0};
    Joint(Tile tile, int64_t first_partial) : tile(tile), first_partial(first_partial) {}
    Joint(const Joint& other) : tile(other.tile), first_partial(other.first_partial) {}
};

struct Item {
    Tile tile;
    int first_joint; // in the list of joints, one for each sequence; or whole
    static constexpr int whole = -1;
};

// One split of a sequence that makes one token; all of its keys are seen.
struct SeenSplit {
    int split, first_page, sequence;
    bool operator<(const SeenSplit& other) const {
        return std::tie(split, first_page, sequence) < std::tie(other.split, other.first_page, other.sequence);
    }
};

// Sequences whose pages of a split are the same ones.
struct Sharers {
    int split;
    std::vector<int> sequences;
};

} // namespace

struct AttentionPlan::Parts {
    const int group;
    std::vector<int> numbers; // of the sequences, from 0
    std::vector<Sharers> sharers;
    std::vector<std::vector<bool>> is_shared; // by sequence and split
    std::vector<std::vector<int>> joint_of;   // by sequence with shared splits and key/value head
    std::vector<Item> items;
    std::vector<Joint> joints;
    std::vector<int> item_joints;
    int64_t num_partials = 0; // floats
    std::unique_ptr<float[]> partials;

    explicit Parts(const Attention& a)
        : group(a.num_heads / a.num_kv_heads), numbers(a.num_sequences), is_shared(a.num_sequences),
          joint_of(a.num_sequences) {
        std::iota(numbers.begin(), numbers.end(), 0);
    }

    void find_sharers(const Attention& a) {
        const int pages = kSplitKeys / a.page_size;
        if (pages * a.page_size != kSplitKeys || group > kTileRows) return;
        std::vector<SeenSplit> seen;
        for (int sequence : numbers) {
            const Rows rows = rows_of(a, sequence);
            if (rows.num_tokens != 1) continue;
            const int first = (first_key(a, rows.past) + kSplitKeys - 1) / kSplitKeys;
            for (int split = first; (split + 1) * kSplitKeys <= rows.past + 1; ++split)
                seen.push_back({split, table(a, sequence)[split * pages], sequence});
        }
        std::sort(seen.begin(), seen.end());
        for (size_t i = 0; i < seen.size();) {
            Sharers found{seen[i].split, {}};
            const int32_t* own = table(a, seen[i].sequence) + found.split * pages;
            size_t j = i;
            for (; j < seen.size() && seen[j].split == seen[i].split && seen[j].first_page == seen[i].first_page; ++j)
                if (std::equal(own, own + pages, table(a, seen[j].sequence) + found.split * pages))
                    found.sequences.push_back(seen[j].sequence);
            i = j;
            if (found.sequences.size() > 1) sharers.push_back(std::move(found));
        }
        for (const Sharers& found : sharers)
            for (int sequence : found.sequences) {
                is_shared[sequence].resize(a.table_width * a.page_size / kSplitKeys + 1);
                is_shared[sequence][found.split] = true;
            }
    }

    static const int32_t* table(const Attention& a, int sequence) { return a.table_BP + sequence * a.table_stride; }

    // Tiles of one sequence, but for the splits that it shares.
    void add(const Attention& a, const Tile& tile, bool is_split) {
        const std::vector<bool>& shared = is_shared[tile.sequences[0]];
        if (shared.empty() && (!is_split || tile.end_split - tile.first_split <= kItemSplits)) {
            items.push_back({tile, Item::whole});
            return;
        }
        if (!shared.empty()) joint_of[tile.sequences[0]].push_back(joints.size());
        for (int split = tile.first_split; split < tile.end_split;) {
            Tile part = tile;
            part.first_split = split;
            const int limit = std::min(split + kItemSplits, tile.end_split);
            while (split < limit && (shared.empty() || !shared[split])) ++split;
            part.end_split = split;
            if (part.end_split > part.first_split) {
                items.push_back({part, int(item_joints.size())});
                item_joints.push_back(joints.size());
            } else {
                ++split;
            }
        }
        joints.emplace_back(tile, num_partials);
        num_partials += (tile.end_split - tile.first_split) * softmax_floats(tile.total_rows(), a.head_dim);
    }

    // Tiles of the splits that sequences share, as many sequences in each as it has rows for.
    void add_shared(const Attention& a) {
        const int most = kTileRows / group;
        for (const Sharers& found : sharers)
            for (size_t first = 0; first < found.sequences.size(); first += most) {
                const int num = std::min<int>(most, found.sequences.size() - first);
                for (int kv_head = 0; kv_head < a.num_kv_heads; ++kv_head) {
                    const int* sequences = found.sequences.data() + first;
                    items.push_back({{sequences, kv_head, 1, 0, group, num * group, found.split, found.split + 1},
                                     int(item_joints.size())});
                    for (int i = 0; i < num; ++i) item_joints.push_back(joint_of[sequences[i]][kv_head]);
                }
            }
    }

    void finish() {
        for (int joint : item_joints) ++joints[joint].num_items;
        for (Joint& joint : joints) joint.num_left.store(joint.num_items, std::memory_order_relaxed);
        partials.reset(new float[num_partials]);
    }

    void run(const Attention& a, const Kernels& kernels, const Item& item) {
        if (item.first_joint == Item::whole) return kernels.attend(a, item.tile);
        const Tile& tile = item.tile;
        const int num = tile.num_rows / tile.rows_each;
        const int* own = item_joints.data() + item.first_joint;
        const int64_t size = softmax_floats(tile.num_kv_heads * tile.rows_each, a.head_dim);
        float* places[kTileRows];
        for (int i = 0; i < num; ++i) {
            const Joint& joint = joints[own[i]];
            places[i] = partials.get() + joint.first_partial + (tile.first_split - joint.tile.first_split) * size;
        }
        kernels.attend_splits(a, tile, places);
        for (int i = 0; i < num; ++i) {
            Joint& joint = joints[own[i]];
            if (joint.num_left.fetch_sub(1, std::memory_order_acq_rel) > 1) continue;
            kernels.join_splits(a, joint.tile, partials.get() + joint.first_partial);
            joint.num_left.store(joint.num_items, std::memory_order_relaxed);
        }
    }
};

AttentionPlan::AttentionPlan(const Attention& a) : parts_(new Parts(a)) {
    const int group = parts_->group;
    int64_t num_items = 0;
    for (int sequence : parts_->numbers) {
        const Rows rows = rows_of(a, sequence);
        if (!rows.num_tokens) continue;
        check_pages(a, sequence, rows);
        num_items += divided_up(rows.past + rows.num_tokens - first_key(a, rows.past), kItemSplits * kSplitKeys);
    }
    parts_->find_sharers(a);
    for (const int& sequence : parts_->numbers) {
        const Rows rows = rows_of(a, sequence);
        const int num_rows = rows.num_tokens * group;
        const bool is_split = num_rows <= kMaxSplitTiles * kTileRows;
        const bool is_joined = num_items >= kMinItems && parts_->is_shared[sequence].empty() &&
                               num_rows * a.num_kv_heads <= kTileRows;
        const int num_kv_heads = is_joined ? a.num_kv_heads : 1;
        for (int kv_head = 0; kv_head < a.num_kv_heads; kv_head += num_kv_heads)
            for (int row = 0; row < num_rows; row += kTileRows) {
                const int end = std::min(row + kTileRows, num_rows);
                const int oldest = first_key(a, rows.past + row / group);
                const int newest = rows.past + (end - 1) / group;
                const int first_split = oldest / kSplitKeys, end_split = newest / kSplitKeys + 1;
                parts_->add(
                    a, {&sequence, kv_head, num_kv_heads, row, end - row, end - row, first_split, end_split}, is_split);
            }
    }
    parts_->add_shared(a);
    parts_->finish();
}

AttentionPlan::~AttentionPlan() = default;

void AttentionPlan::run(Team& team, const Attention& a, const Isa& isa) {
    const Kernels& kernels = kernels_of(isa, a);
    const int64_t num_items = parts_->items.size();
    // From the end: a prompt's last rows see the most keys, and long work comes first.
    team.share(num_items, [&](int64_t i) { parts_->run(a, kernels, parts_->items[num_items - 1 - i]); });
}

int64_t AttentionPlan::num_splits() const {
    int64_t num = 0;
    for (const Item& item : parts_->items)
        num += item.tile.num_kv_heads * (item.tile.end_split - item.tile.first_split);
    return num;
}

void check_slots(const KvStore& s) {
    for (int64_t t = 0; t < s.num_tokens; ++t)
        if (s.slot_T[t] < 0 || s.slot_T[t] >= s.num_pages * s.page_size)
            refuse("slot", s.slot_T[t], s.num_pages * s.page_size);
}

} // namespace alpage
