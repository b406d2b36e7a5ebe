// row_pages: keys and values of a tile where pages hold one token after the other.
//
// A block of keys is transposed, so that a vector holds one element (or one pair of bfloat16) of many keys: scores
// then need no sum across lanes, and the work of transposing is shared by all rows of the tile.
#pragma once

#include "scratch.h"

namespace alpage::ALPAGE_ISA {
namespace {

alignas(64) const float kZeroRow[kMaxHeadDim] = {};

template <class T>
class RowPages {
  public:
    RowPages(const Attention& a, const Tile& tile, Scratch& s)
        : a_(a), tile_(tile), s_(s), units_(a.head_dim / Dot<T>::kElements) {}

    // Finds keys [begin + keys.begin, begin + keys.end), those of one split.
    void find(int begin, Span keys, int) {
        const int32_t* table = a_.table_BP + tile_.sequences[0] * a_.table_stride;
        const int64_t head = int64_t{tile_.first_kv_head} * a_.page_size * a_.head_dim;
        for (int i = keys.begin; i < keys.end;) {
            const int page = (begin + i) / a_.page_size;
            const int end = smaller((page + 1) * a_.page_size - begin, keys.end);
            int64_t place = table[page] * a_.page_stride + head + (begin + i) % a_.page_size * a_.head_dim;
            for (; i < end; ++i, place += a_.head_dim) s_.place[i] = place;
        }
        // What is fetched ahead of the last block is the last key again.
        for (int i = keys.end; i < keys.end + kBlockKeys; ++i) s_.place[i] = s_.place[keys.end - 1];
    }

    // Makes `seen` of the keys from `block` on in the split the ones that `units` gives, those of a head of the tile.
    __attribute__((noinline)) void enter(int block, int head, Span seen) {
        place_ = s_.place + block;
        head_ = int64_t{head} * a_.page_size * a_.head_dim;
        const T* pool = static_cast<const T*>(a_.k_PGSK) + head_;
        const int units = units_, head_dim = a_.head_dim;
        float* key = s_.key;
        for (int k = 0; k < seen.end; k += kLanes) {
            const T* row[kLanes];
            for (int i = 0; i < kLanes; ++i) {
                const bool is_seen = seen.begin <= k + i && k + i < seen.end;
                row[i] = is_seen ? pool + place_[k + i] : reinterpret_cast<const T*>(kZeroRow);
                if (is_seen) fetch(pool + place_[k + i + kBlockKeys], head_dim);
            }
            for (int u = 0; u < units; u += kLanes) {
                const int first = units < kLanes ? 0 : smaller(u, units - kLanes);
                Vec block[kLanes];
                if (units < kLanes) {
                    for (int i = 0; i < kLanes; ++i) block[i] = load_few_units(row[i], head_dim);
                } else {
#pragma GCC unroll 16
                    for (int i = 0; i < kLanes; ++i)
                        block[i] = Dot<T>::load_units(row[i] + first * Dot<T>::kElements);
                }
                transpose(block);
                float* to = key + first * kBlockKeys + k;
#pragma GCC unroll 16
                for (int i = 0; i < kLanes; ++i) store(to + i * kBlockKeys, block[i]);
            }
        }
    }

    // The first units of as many keys as a vector has lanes, the v-th such vector of the block.
    const float* units(int v) const { return s_.key + v * kLanes; }
    static constexpr int kUnitStride = kBlockKeys;

    // Whether units of the next block are worth fetching: these were fetched as this one was entered.
    static constexpr bool kFetchesUnits = false;

    // What is done to a row's weights before they are summed.
    ALPAGE_INLINE Vec rounded(Vec weight) { return weight; }

    // Scores and weights of the keys from k on in the block, by the scales of keys and values.
    Vec scaled_score(Vec score, int) const { return score; }
    Vec scaled_weight(Vec weight, int) const { return weight; }

    // Adds the block's values to columns of rows, by their weights.
    template <int Rows, int Columns, bool IsFetching>
    __attribute__((always_inline)) inline void add_values(
        Vec (&sum)[Rows][Columns], const float* weight, int c, Span seen) const {
        const T* pool = static_cast<const T*>(a_.v_PGSK) + head_;
        int first[Columns];
        for (int j = 0; j < Columns; ++j) first[j] = column(a_, c + j);
        for (int k = seen.begin; k < seen.end; ++k) {
            const T* row = pool + place_[k];
            if (IsFetching) fetch(pool + place_[k + kBlockKeys] + first[0], Columns * kLanes);
            for (int j = 0; j < Columns; ++j) {
                const Vec value = load(row + first[j]);
                for (int i = 0; i < Rows; ++i) sum[i][j] += weight[i * kBlockKeys + k] * value;
            }
        }
    }

  private:
    ALPAGE_INLINE void fetch(const T* row, int head_dim) {
        for (int i = 0; i < head_dim; i += 64 / int(sizeof(T))) __builtin_prefetch(row + i);
    }

    __attribute__((noinline)) static Vec load_few_units(const T* p, int head_dim) {
        T padded[kLanes * Dot<T>::kElements] = {};
        for (int i = 0; i < head_dim; ++i) padded[i] = p[i];
        return Dot<T>::load_units(padded);
    }

    const Attention& a_;
    const Tile& tile_;
    Scratch& s_;
    const int units_;
    const int64_t* place_ = nullptr;
    int64_t head_ = 0; // from a place of the tile's first head to that of the one at work
};

} // namespace
} // namespace alpage::ALPAGE_ISA
