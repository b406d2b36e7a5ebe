// pair_pages: keys and values of a tile where pages hold pairs of bfloat16 (attention.h), as `vdpbf16ps` takes them.
//
// Every load is a line of a page: nothing is transposed and nothing widened. Weights are rounded to bfloat16, and summed
// as they were rounded, so that what rounding takes from the values it takes from their sum as well.
#pragma once

#include "scratch.h"

#if defined(__AVX512BF16__)
namespace alpage::ALPAGE_ISA {
namespace {

class PairPages {
  public:
    PairPages(const Attention& a, const Tile& tile, Scratch& s) : a_(a), tile_(tile), s_(s) {}

    // A block is read whole and keys of the next one are fetched: beyond the tile's end there are some of it again.
    void find(int begin, Span keys, int end) {
        const int32_t* table = a_.table_BP + tile_.sequences[0] * a_.table_stride;
        const int64_t head = int64_t{tile_.first_kv_head} * a_.page_size * a_.head_dim;
        const int first = keys.begin / kPairTokens, last = (end - 1 - begin) / kPairTokens;
        for (int i = 0; i < kSplitKeys / kPairTokens + kBlockVectors; ++i) {
            const int token = begin + smaller(greater(i, first), last) * kPairTokens;
            s_.place[i] = table[token / a_.page_size] * a_.page_stride + head + token % a_.page_size * a_.head_dim;
        }
    }

    void enter(int block, int head, Span) {
        const int64_t size = int64_t{a_.page_size} * a_.head_dim;
        const bool is_last = head + 1 == tile_.num_kv_heads;
        place_ = s_.place + block / kPairTokens;
        next_place_ = is_last ? place_ + kBlockVectors : place_;
        head_ = head * size;
        next_head_ = is_last ? 0 : head_ + size;
    }

    // Each half of the work on a block fetches what the next one reads: scores fetch values, and values the next keys.
    const float* units(int v) const { return keys() + (place_[v] + head_) / 2; }
    const float* next_units(int v) const { return values() + (place_[v] + head_) / 2; }
    static constexpr int kUnitStride = kLanes;
    static constexpr bool kFetchesUnits = true;

    ALPAGE_INLINE Vec rounded(Vec weight) {
        return bit_cast<Vec>(_mm512_slli_epi32(_mm512_cvtepu16_epi32((__m256i)_mm512_cvtneps_pbh((__m512)weight)), 16));
    }

    Vec scaled_score(Vec score, int) const { return score; }
    Vec scaled_weight(Vec weight, int) const { return weight; }

    template <int Rows, int Columns, bool IsFetching>
    __attribute__((always_inline)) inline void add_values(
        Vec (&sum)[Rows][Columns], const float* weight, int c, Span seen) const {
        float pairs[Rows][kBlockKeys / 2]; // two weights of a row side by side
        for (int i = 0; i < Rows; ++i)
            for (int k = 0; k < kBlockKeys; k += 2 * kLanes) {
                const float* from = weight + i * kBlockKeys + k;
                store(&pairs[i][k / 2], bit_cast<Vec>(_mm512_cvtne2ps_pbh((__m512)load(from + kLanes), (__m512)load(from))));
            }
        for (int k = seen.begin / kPairTokens * kPairTokens; k < seen.end; k += kPairTokens) {
            const Span own{greater(seen.begin - k, 0), smaller(seen.end - k, kPairTokens)};
            if (own.begin == 0 && own.end == kPairTokens) add_tokens<Rows, Columns, IsFetching, false>(sum, pairs, c, k, own);
            else add_tokens<Rows, Columns, IsFetching, true>(sum, pairs, c, k, own);
        }
    }

  private:
    static constexpr int kBlockVectors = kBlockKeys / kPairTokens;

    // Adds the values of `own` of the tokens that lie side by side from k on in the block.
    template <int Rows, int Columns, bool IsFetching, bool IsPart>
    __attribute__((always_inline)) inline void add_tokens(
        Vec (&sum)[Rows][Columns], const float (&pairs)[Rows][kBlockKeys / 2], int c, int k, Span own) const {
        const int stride = a_.head_dim, first = IsPart ? own.begin / 2 : 0;
        const int end = IsPart ? (own.end + 1) / 2 : kPairTokens / 2;
        const float* value = values() + (place_[k / kPairTokens] + head_) / 2 + c * kLanes;
        const float* next = keys() + (next_place_[k / kPairTokens] + next_head_) / 2 + c * kLanes;
        for (int p = first; p < end; ++p)
            for (int j = 0; j < Columns; ++j) {
                Vec both = load(value + p * stride + j * kLanes);
                if constexpr (IsPart) both = seen_of(both, 2 * p, own);
                if constexpr (IsFetching) __builtin_prefetch(next + p * stride + j * kLanes);
                for (int i = 0; i < Rows; ++i)
                    sum[i][j] = Dot<bfloat16>::add(sum[i][j], pairs[i][k / 2 + p], both);
            }
    }

    // Nobody may read what is in a place that no token has, not even to multiply it by zero.
    ALPAGE_INLINE Vec seen_of(Vec both, int token, Span own) {
        const uint32_t mask = (token < own.begin ? 0 : 0xffff) | (token + 1 < own.end ? 0xffff0000 : 0);
        return bit_cast<Vec>(bit_cast<WordVec>(both) & mask);
    }

    const float* keys() const { return static_cast<const float*>(a_.k_PGSK); }
    const float* values() const { return static_cast<const float*>(a_.v_PGSK); }

    const Attention& a_;
    const Tile& tile_;
    Scratch& s_;
    // Of the block and head at work and of the next ones: places of the tile's first head, and the way from there.
    const int64_t* place_ = nullptr;
    const int64_t* next_place_ = nullptr;
    int64_t head_ = 0, next_head_ = 0;
};

} // namespace
} // namespace alpage::ALPAGE_ISA
#endif
