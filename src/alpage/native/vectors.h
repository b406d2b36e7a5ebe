// vectors: the few vector operations that the kernels are written in, as wide as the instruction set has them.
//
// Included once by each translation unit of kernels.cpp. All is in a namespace named after the instruction set, and
// no code comes from the standard library: an inline function shared between units could be taken from the unit with
// the newer instructions and run on a machine without them.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>

#if defined(__AVX512F__)
#include <immintrin.h>
#endif

namespace alpage::ALPAGE_ISA {

#if defined(__AVX512F__)
constexpr int kLanes = 16;
#elif defined(__AVX__)
constexpr int kLanes = 8;
#else
constexpr int kLanes = 4;
#endif

// Accumulators of one register tile: rows by vectors.
constexpr int kRegisterRows = 4;
#if defined(__AVX512F__) || defined(__aarch64__)
constexpr int kRegisterVectors = 4; // 32 registers
#else
constexpr int kRegisterVectors = 2; // 16 registers
#endif

using Vec = float __attribute__((vector_size(kLanes * 4)));
using IntVec = int32_t __attribute__((vector_size(kLanes * 4)));
using WordVec = uint32_t __attribute__((vector_size(kLanes * 4)));
using HalfVec = uint16_t __attribute__((vector_size(kLanes * 2)));

struct bfloat16 {
    uint16_t bits;
};

#define ALPAGE_INLINE static inline __attribute__((always_inline))

template <class To, class From>
ALPAGE_INLINE To bit_cast(From from) {
    static_assert(sizeof(To) == sizeof(From));
    To to;
    memcpy(&to, &from, sizeof to);
    return to;
}

template <class Value>
ALPAGE_INLINE Value smaller(Value a, Value b) { return a < b ? a : b; }
template <class Value>
ALPAGE_INLINE Value greater(Value a, Value b) { return a > b ? a : b; }

ALPAGE_INLINE Vec splat(float x) { return x - Vec{}; }

ALPAGE_INLINE Vec load(const float* p) {
    Vec x;
    memcpy(&x, p, sizeof x);
    return x;
}

ALPAGE_INLINE Vec load(const bfloat16* p) {
    HalfVec x;
    memcpy(&x, p, sizeof x);
#if defined(__AVX512F__) // GCC 12 widens by halves
    return bit_cast<Vec>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bit_cast<__m256i>(x)), 16));
#else
    return bit_cast<Vec>(__builtin_convertvector(x, WordVec) << 16);
#endif
}

ALPAGE_INLINE void store(float* p, Vec x) { memcpy(p, &x, sizeof x); }

// Rounds to nearest, ties to even, as torch does; a NaN stays one.
ALPAGE_INLINE void store(bfloat16* p, Vec x) {
    const WordVec bits = bit_cast<WordVec>(x);
    const WordVec rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const WordVec nan = (bits >> 16) | 0x40;
    const HalfVec half = __builtin_convertvector((x == x) ? rounded : nan, HalfVec);
    memcpy(p, &half, sizeof half);
}

template <int... I>
using Indices = std::integer_sequence<int, I...>;
using Lanes = std::make_integer_sequence<int, kLanes>;

template <int... I>
ALPAGE_INLINE IntVec lane_numbers(Indices<I...>) { return IntVec{I...}; }

// a0 b0 a1 b1 … of the lower halves and of the upper halves.
template <int... I>
ALPAGE_INLINE Vec zip_lower(Vec a, Vec b, Indices<I...>) {
    return __builtin_shufflevector(a, b, (I / 2 + I % 2 * kLanes)...);
}
template <int... I>
ALPAGE_INLINE Vec zip_upper(Vec a, Vec b, Indices<I...>) {
    return __builtin_shufflevector(a, b, (kLanes / 2 + I / 2 + I % 2 * kLanes)...);
}

// Lane i of vector j becomes lane j of vector i: log2(kLanes) perfect shuffles.
ALPAGE_INLINE void transpose(Vec (&rows)[kLanes]) {
#pragma GCC unroll 4
    for (int stride = 1; stride < kLanes; stride *= 2) {
        Vec zipped[kLanes];
#pragma GCC unroll 8
        for (int i = 0; i < kLanes / 2; ++i) {
            zipped[2 * i] = zip_lower(rows[i], rows[i + kLanes / 2], Lanes{});
            zipped[2 * i + 1] = zip_upper(rows[i], rows[i + kLanes / 2], Lanes{});
        }
#pragma GCC unroll 16
        for (int i = 0; i < kLanes; ++i) rows[i] = zipped[i];
    }
}

template <int Distance, int... I>
ALPAGE_INLINE Vec swap_lanes(Vec x, Indices<I...>) {
    return __builtin_shufflevector(x, x, (I ^ Distance)...);
}

// The sum (greatest) of all lanes, in every lane.
template <int Distance = kLanes / 2>
ALPAGE_INLINE Vec sum_lanes(Vec x) {
    if constexpr (Distance == 0) return x;
    else return sum_lanes<Distance / 2>(x + swap_lanes<Distance>(x, Lanes{}));
}
template <int Distance = kLanes / 2>
ALPAGE_INLINE Vec greatest_lane(Vec x) {
    if constexpr (Distance == 0) return x;
    else return greatest_lane<Distance / 2>(greater(x, swap_lanes<Distance>(x, Lanes{})));
}

// 2**x for x <= 0, within 2 units in the last place; exactly 1 at 0, exactly 0 below -126; a NaN stays one.
// The polynomial is the Taylor series of 2**f on [-1/2, 1/2]: the first term left out is below 1.2e-7.
ALPAGE_INLINE Vec exp2(Vec x) {
    constexpr float kRound = 12582912.0f; // 1.5 * 2**23: adding it rounds to a whole number
    const Vec shifted = x + kRound;
    const Vec f = x - (shifted - kRound);
    Vec y = splat(1.5403530e-4f);
    y = y * f + 1.3333558e-3f;
    y = y * f + 9.6181291e-3f;
    y = y * f + 5.5504109e-2f;
    y = y * f + 2.4022651e-1f;
    y = y * f + 6.9314718e-1f;
    y = y * f + 1.0f;
    const WordVec exponent = bit_cast<WordVec>(shifted) << 23; // the low bits of `shifted` hold the whole number
    return x < -126.0f ? Vec{} : bit_cast<Vec>(bit_cast<WordVec>(y) + exponent);
}

} // namespace alpage::ALPAGE_ISA
