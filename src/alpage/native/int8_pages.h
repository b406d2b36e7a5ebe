// int8_pages: keys and values of a tile where pages hold them in 8 bits with a scale for each token (attention.h).
//
// A block is widened as it is entered, into a page of its own in the order in which it lay, and other pages' code goes
// on from there. The scales of keys are left to the scores and those of values to the weights: one product a key
// instead of one a number.
#pragma once

#include "pair_pages.h"
#include "row_pages.h"

namespace alpage::ALPAGE_ISA {
namespace {

// What a T is widened to: where a unit is one element, a float.
template <class T, int Elements>
struct WideOf { using Type = T; };
template <class T>
struct WideOf<T, 1> { using Type = float; };
template <class T>
using Wide = typename WideOf<T, Dot<T>::kElements>::Type;

ALPAGE_INLINE void widen(const int8_t* from, float* to, int num) {
    for (int i = 0; i < num; ++i) to[i] = float(from[i]);
}

#if defined(__AVX512BF16__)
ALPAGE_INLINE __m512 widened_floats(const int8_t* from) {
    return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(from))));
}

ALPAGE_INLINE void widen(const int8_t* from, bfloat16* to, int num) {
    int i = 0;
    for (; i + 2 * kLanes <= num; i += 2 * kLanes)
        store(reinterpret_cast<float*>(to + i),
              bit_cast<Vec>(_mm512_cvtne2ps_pbh(widened_floats(from + i + kLanes), widened_floats(from + i))));
    for (; i < num; ++i) to[i].bits = bit_cast<uint32_t>(float(from[i])) >> 16;
}
#endif

// `Pages` read the widened block; `Together` tokens lie in the order that they want, and are widened together.
template <class Pages, class T, int Together>
class Int8Pages {
  public:
    Int8Pages(const Attention& a, const Tile& tile, Scratch& s)
        : a_(a), tile_(tile), block_(block_of(a)), block_tile_{&kFirst, 0, 1, 0, tile.rows_each, tile.num_rows, 0, 1},
          pages_(block_, block_tile_, s) {
        pages_.find(0, {0, kBlockKeys}, kBlockKeys);
    }

    void find(int begin, Span, int end) {
        begin_ = begin;
        last_ = end - 1;
    }

    __attribute__((noinline)) void enter(int block, int head, Span seen) {
        const bool is_last = head + 1 == tile_.num_kv_heads;
        const int ahead = is_last ? kBlockKeys : 0, next_head = is_last ? 0 : head + 1;
        const int end = (seen.end + Together - 1) / Together * Together;
        int num;
        for (int k = seen.begin / Together * Together; k < end; k += num) {
            const Run run = run_at(begin_ + block + k, head);
            num = smaller(run.num_left, end - k);
            const Run next = run_at(smaller(begin_ + block + k + ahead, last_), next_head);
            fetch(next, num);
            widen(run.key, keys_ + k * a_.head_dim, num * a_.head_dim);
            widen(run.value, values_ + k * a_.head_dim, num * a_.head_dim);
            memcpy(key_scales_ + k, run.key_scale, num * sizeof(float));
            memcpy(value_scales_ + k, run.value_scale, num * sizeof(float));
        }
        // A weight is 0 where no key is seen, and is to stay so whatever lies there.
        for (int k = 0; k < kBlockKeys; ++k)
            if (k < seen.begin || k >= seen.end) value_scales_[k] = 0.0f;
        pages_.enter(0, 0, seen);
    }

    const float* units(int v) const { return pages_.units(v); }
    static constexpr int kUnitStride = Pages::kUnitStride;
    static constexpr bool kFetchesUnits = false;

    ALPAGE_INLINE Vec rounded(Vec weight) { return weight; }
    Vec scaled_score(Vec score, int k) const { return score * load(key_scales_ + k); }
    Vec scaled_weight(Vec weight, int k) const { return weight * load(value_scales_ + k); }

    template <int Rows, int Columns, bool>
    __attribute__((always_inline)) inline void add_values(
        Vec (&sum)[Rows][Columns], const float* weight, int c, Span seen) const {
        pages_.template add_values<Rows, Columns, false>(sum, weight, c, seen);
    }

  private:
    static constexpr int kFirst = 0;
    static constexpr int32_t kFirstPage = 0;

    // Tokens that lie one after the other, from one on.
    struct Run {
        const int8_t *key, *value;
        const int8_t *key_scale, *value_scale;
        int num_left; // in the page
    };

    // The block as the only page of a pool.
    Attention block_of(const Attention& a) const {
        Attention block = a;
        block.k_PGSK = keys_;
        block.v_PGSK = values_;
        block.table_BP = &kFirstPage;
        block.page_stride = block.table_stride = 0;
        block.page_size = kBlockKeys;
        return block;
    }

    ALPAGE_INLINE void fetch_line(const int8_t* p) { __builtin_prefetch(p); }

    void fetch(const Run& run, int num) const {
        for (int i = 0; i < num * a_.head_dim; i += 64) {
            fetch_line(run.key + i);
            fetch_line(run.value + i);
        }
        fetch_line(run.key_scale);
        fetch_line(run.value_scale);
    }

    Run run_at(int token, int head) const {
        const int page = table_[token / a_.page_size], place = token % a_.page_size;
        const int64_t tile = page * a_.page_stride + (tile_.first_kv_head + head) * tile_bytes_;
        const int64_t scale = tile + numbers_ + place * kScaleBytes;
        const int64_t number = tile + int64_t{place} * a_.head_dim;
        const auto* keys = static_cast<const int8_t*>(a_.k_PGSK);
        const auto* values = static_cast<const int8_t*>(a_.v_PGSK);
        return {keys + number, values + number, keys + scale, values + scale, a_.page_size - place};
    }

    const Attention& a_;
    const Tile& tile_;
    const int32_t* const table_ = a_.table_BP + tile_.sequences[0] * a_.table_stride;
    const int64_t numbers_ = int64_t{a_.page_size} * a_.head_dim; // in a tile
    const int64_t tile_bytes_ = numbers_ + a_.page_size * kScaleBytes;
    const Attention block_;
    const Tile block_tile_;
    Pages pages_;
    int begin_ = 0, last_ = 0; // tokens: the split's first, the tile's last
    alignas(64) T keys_[kBlockKeys * kMaxHeadDim];
    alignas(64) T values_[kBlockKeys * kMaxHeadDim];
    alignas(64) float key_scales_[kBlockKeys];
    alignas(64) float value_scales_[kBlockKeys];
};

} // namespace
} // namespace alpage::ALPAGE_ISA
