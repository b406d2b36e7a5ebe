// linear_avx512: tiles of products by `vdpbf16ps` and `vpdpbusd`, 16 outputs a vector.
#include <immintrin.h>

#include "linear.h"

namespace alpage {
namespace {

#define ALPAGE_INLINE static inline __attribute__((always_inline))

constexpr int kVectors = kPanel / 16;
constexpr int kAhead = 2048; // bytes

ALPAGE_INLINE __mmask16 lanes_left(int64_t left) {
    return left >= 16 ? __mmask16(0xffff) : left <= 0 ? __mmask16(0) : __mmask16((1u << left) - 1);
}

ALPAGE_INLINE void store(const Product& p, int64_t row, int64_t column, __m512 value) {
    const __mmask16 mask = lanes_left(p.n - column);
    if (!mask) return;
    if (p.bias) value = _mm512_add_ps(value, _mm512_maskz_loadu_ps(mask, p.bias + column));
    const int64_t place = row * p.y_stride + column;
    _mm256_mask_storeu_epi16(static_cast<uint16_t*>(p.y) + place, mask, (__m256i)_mm512_cvtneps_pbh(value));
}

ALPAGE_INLINE int32_t word_at(const void* p) {
    int32_t word;
    __builtin_memcpy(&word, p, sizeof word);
    return word;
}

struct Bfloat16 {
    using Sum = __m512;
    static constexpr int kElements = 2, kBytes = 2;
    ALPAGE_INLINE Sum zero() { return _mm512_setzero_ps(); }
    ALPAGE_INLINE Sum add(Sum sum, __m512i x, __m512i w) {
        return _mm512_dpbf16_ps(sum, (__m512bh)x, (__m512bh)w);
    }
    ALPAGE_INLINE __m512 value(const Product&, Sum sum, int64_t, int64_t) { return sum; }
};

struct Int8 {
    using Sum = __m512i;
    static constexpr int kElements = 4, kBytes = 1;
    ALPAGE_INLINE Sum zero() { return _mm512_setzero_si512(); }
    // By hand: GCC 12 stores every sum to the stack after each step of the intrinsic.
    ALPAGE_INLINE Sum add(Sum sum, __m512i x, __m512i w) {
        asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(x), "v"(w));
        return sum;
    }
    ALPAGE_INLINE __m512 value(const Product& p, Sum sum, int64_t row, int64_t column) {
        const __m512i whole = _mm512_sub_epi32(sum, _mm512_loadu_si512(p.correction + column));
        const __m512 scale = _mm512_mul_ps(_mm512_set1_ps(p.x_scale[row * p.x_scale_stride]), _mm512_loadu_ps(p.w_scale + column));
        return _mm512_mul_ps(_mm512_cvtepi32_ps(whole), scale);
    }
};

template <class Kind, int Rows>
void tile(const Product& p, int64_t panel, int64_t first_row) {
    const int64_t groups = num_groups(p.k, Kind::kElements);
    const char* w = static_cast<const char*>(p.panels) + panel * groups * kPanel * 4;
    const int64_t x_bytes = p.x_stride * Kind::kBytes;
    const char* x = static_cast<const char*>(p.x) + first_row * x_bytes;
    typename Kind::Sum sums[Rows][kVectors];
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) sums[r][v] = Kind::zero();
    for (int64_t group = 0; group < groups; ++group) {
        const char* here = w + group * kPanel * 4;
        // The first tile of a panel waits for memory: what comes is asked for early.
        _mm_prefetch(here + kAhead, _MM_HINT_T0);
        _mm_prefetch(here + kAhead + 64, _MM_HINT_T0);
        __m512i weights[kVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) weights[v] = _mm512_loadu_si512(here + v * 64);
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
            const __m512i pair = _mm512_set1_epi32(word_at(x + r * x_bytes + group * 4));
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v) sums[r][v] = Kind::add(sums[r][v], pair, weights[v]);
        }
    }
#pragma GCC unroll 16
    for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
            const int64_t column = panel * kPanel + v * 16;
            store(p, first_row + r, column, Kind::value(p, sums[r][v], first_row + r, column));
        }
}

template <class Kind>
void any_tile(const Product& p, int64_t panel, int64_t first_row, int num_rows) {
    using Tile = void (*)(const Product&, int64_t, int64_t);
    static constexpr Tile tiles[kRowTile] = {
        tile<Kind, 1>, tile<Kind, 2>, tile<Kind, 3>, tile<Kind, 4>,  tile<Kind, 5>,  tile<Kind, 6>,
        tile<Kind, 7>, tile<Kind, 8>, tile<Kind, 9>, tile<Kind, 10>, tile<Kind, 11>, tile<Kind, 12>};
    tiles[num_rows - 1](p, panel, first_row);
}

ALPAGE_INLINE __m512 widened(const uint16_t* x, __mmask16 mask) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_maskz_loadu_epi16(mask, x)), 16);
}

float quantize(const uint16_t* x, int64_t k, uint8_t* out) {
    __m512 most = _mm512_setzero_ps();
    for (int64_t i = 0; i < k; i += 16) most = _mm512_max_ps(most, _mm512_abs_ps(widened(x + i, lanes_left(k - i))));
    const float top = _mm512_reduce_max_ps(most);
    const __m512 factor = _mm512_set1_ps(top > 0 ? 127.0f / top : 0.0f);
    const int64_t width = num_groups(k, 4) * 4;
    for (int64_t i = 0; i < width; i += 16) {
        const __m512 value = _mm512_mul_ps(widened(x + i, lanes_left(k - i)), factor);
        const __m512i whole = _mm512_add_epi32(_mm512_cvtps_epi32(value), _mm512_set1_epi32(128));
        _mm512_mask_cvtusepi32_storeu_epi8(out + i, lanes_left(width - i), whole);
    }
    return top / 127.0f;
}

} // namespace

const LinearKernels linear_kernels = {any_tile<Bfloat16>, any_tile<Int8>, quantize};

} // namespace alpage
