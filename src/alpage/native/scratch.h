// scratch: what a tile's attention keeps while it goes through the keys, and what its dot products run on.
//
// For translation units of kernels.cpp alone, as vectors.h is.
#pragma once

#include "attention.h"
#include "vectors.h"

namespace alpage::ALPAGE_ISA {
namespace {

// What the dot product of queries and keys runs on. A `Unit` is the part of a key that one lane holds.
template <class T>
struct Dot {
    static constexpr int kElements = 1; // of T in a unit
    ALPAGE_INLINE Vec load_units(const T* p) { return load(p); }
    ALPAGE_INLINE float unit(const T* p) {
        if constexpr (sizeof(T) == 4) return *p;
        else return bit_cast<float>(uint32_t{p->bits} << 16);
    }
    ALPAGE_INLINE Vec add(Vec sum, float q, Vec k) { return sum + q * k; }
};

#if defined(__AVX512BF16__)
template <>
struct Dot<bfloat16> {
    static constexpr int kElements = 2;
    ALPAGE_INLINE Vec load_units(const bfloat16* p) { return load(reinterpret_cast<const float*>(p)); }
    ALPAGE_INLINE float unit(const bfloat16* p) {
        float pair;
        memcpy(&pair, p, sizeof pair);
        return pair;
    }
    ALPAGE_INLINE Vec add(Vec sum, float q, Vec k) {
        return bit_cast<Vec>(_mm512_dpbf16_ps(
            bit_cast<__m512>(sum), bit_cast<__m512bh>(k), bit_cast<__m512bh>(splat(q))));
    }
};
#endif

struct Scratch {
    alignas(64) float query[kTileRows * kMaxHeadDim];         // [row][unit]
    alignas(64) float key[kMaxHeadDim * kBlockKeys];          // [unit][key]
    alignas(64) float score[kTileRows * kBlockKeys];          // [row][key], later the weights
    alignas(64) float split_memory[kTileRows * (kMaxHeadDim + 2)];
    alignas(64) float whole_memory[kTileRows * (kMaxHeadDim + 2)];
    alignas(64) float rescale[kTileRows];
    int64_t place[kSplitKeys + kBlockKeys];                   // where keys are in the pool, by position in the split
    int position[kTileRows];
};

// Keys [begin, end) of a block; the others are not read.
struct Span {
    int begin, end;
};

template <int N>
struct Count {
    static constexpr int value = N;
};

// Calls f with `n`, at most 4, as a constant: loops of that length then stay in registers.
template <class F>
ALPAGE_INLINE void with_count(int n, F f) {
    switch (n) {
    case 1: return f(Count<1>{});
    case 2: return f(Count<2>{});
    case 3: return f(Count<3>{});
    default: return f(Count<4>{});
    }
}

// Columns are the vectors of a row of values. The last one begins early where the head dim is no multiple of the
// lanes, and its first elements are then computed twice.
ALPAGE_INLINE int num_columns(const Attention& a) { return (a.head_dim + kLanes - 1) / kLanes; }
ALPAGE_INLINE int column(const Attention& a, int c) { return smaller(c * kLanes, a.head_dim - kLanes); }

} // namespace
} // namespace alpage::ALPAGE_ISA
