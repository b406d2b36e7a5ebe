// linear_avx512: tiles of products by `vdpbf16ps` and `vpdpbusd`, 16 outputs a vector.
#include <immintrin.h>

#include "linear.h"

namespace alpage {
namespace {

#define ALPAGE_INLINE static inline __attribute__((always_inline))

constexpr int kVectors = kPanel / 16;
constexpr int kPieceBytes = kPanel * 4;
constexpr int kScalesBytes = kPanel * 2; // of float16
constexpr int kAhead = 2048;             // bytes

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

// The first tile of a panel waits for memory: what comes is asked for early. With one row it is read once, and need not
// sweep from the caches what the steps between products live on.
template <int Rows>
ALPAGE_INLINE void ask_for(const char* weights) {
    constexpr auto hint = Rows == 1 ? _MM_HINT_NTA : _MM_HINT_T0;
    _mm_prefetch(weights + kAhead, hint);
    _mm_prefetch(weights + kAhead + 64, hint);
}

// What a whole tile fetches of the panel that its thread is likely to take next: each tile of a panel an equal part, so
// that memory is read while others are multiplied with what is in cache. Behind the last panel it is for nobody.
class Ahead {
  public:
    Ahead(const Product& p, const char* panel, int64_t panel_bytes, int64_t first_row)
        : lines_(divided_up(panel_bytes / 64, divided_up(p.m, kRowTile))),
          from_(panel + p.panels_ahead * panel_bytes + first_row / kRowTile * lines_ * 64) {}

    void ask_for(int64_t piece) const { _mm_prefetch(from_ + (piece < lines_ ? piece : lines_) * 64, _MM_HINT_T1); }

  private:
    int64_t lines_;
    const char* from_;
};

ALPAGE_INLINE __m512i repeated(const void* piece) {
    int32_t word;
    __builtin_memcpy(&word, piece, sizeof word);
    return _mm512_set1_epi32(word);
}

// By hand: GCC 12 stores every sum to the stack after each step of the intrinsic.
ALPAGE_INLINE void add_products(__m512i& sum, __m512i weights, __m512i x) {
    asm("vpdpbusd %2, %1, %0" : "+v"(sum) : "v"(weights), "v"(x));
}

template <int Rows>
struct Bfloat16 {
    static void tile(const Product& p, int64_t panel, int64_t first_row) {
        const int64_t pieces = divided_up(p.k, 2);
        const char* w = static_cast<const char*>(p.panels) + panel * pieces * kPieceBytes;
        const uint16_t* x = static_cast<const uint16_t*>(p.x) + first_row * p.x_stride;
        __m512 sums[Rows][kVectors] = {};
        const Ahead ahead(p, w, pieces * kPieceBytes, first_row);
        for (int64_t piece = 0; piece < pieces; ++piece, w += kPieceBytes) {
            ask_for<Rows>(w);
            if constexpr (Rows == kRowTile) ahead.ask_for(piece);
            __m512i weights[kVectors];
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v) weights[v] = _mm512_loadu_si512(w + v * 64);
#pragma GCC unroll 16
            for (int r = 0; r < Rows; ++r) {
                const __m512i pair = repeated(x + r * p.x_stride + piece * 2);
#pragma GCC unroll 2
                for (int v = 0; v < kVectors; ++v)
                    sums[r][v] = _mm512_dpbf16_ps(sums[r][v], (__m512bh)pair, (__m512bh)weights[v]);
            }
        }
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v)
                store(p, first_row + r, panel * kPanel + v * 16, sums[r][v]);
    }
};

ALPAGE_INLINE __m512 widened_half(const char* from) {
    return _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(from)));
}

// With a scale for each output, or for each group of each output.
template <int Rows, bool HasGroupScales>
struct Int8Tile {
    static void tile(const Product& p, int64_t panel, int64_t first_row) {
        constexpr int kGroupPieces = kGroup / 4;
        const int64_t groups = divided_up(p.k, kGroup);
        const int64_t pieces = HasGroupScales ? groups * kGroupPieces : divided_up(p.k, 4);
        const int64_t panel_bytes = pieces * kPieceBytes + (HasGroupScales ? groups * kScalesBytes : 0);
        const char* w = static_cast<const char*>(p.panels) + panel * panel_bytes;
        const Group* x = static_cast<const Group*>(p.x) + first_row * p.x_stride;
        __m512 totals[Rows][kVectors] = {};
        const Ahead ahead(p, w, panel_bytes, first_row);
        for (int64_t left = pieces; left > 0; left -= kGroupPieces, ++x) {
            __m512i sums[Rows][kVectors];
#pragma GCC unroll 16
            for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
                for (int v = 0; v < kVectors; ++v) sums[r][v] = _mm512_set1_epi32(x[r * p.x_stride].start);
            const int64_t end = HasGroupScales || left >= kGroupPieces ? kGroupPieces : left;
            for (int64_t piece = 0; piece < end; ++piece, w += kPieceBytes) {
                ask_for<Rows>(w);
                if constexpr (Rows == kRowTile) ahead.ask_for(pieces - left + piece);
                __m512i weights[kVectors];
#pragma GCC unroll 2
                for (int v = 0; v < kVectors; ++v) weights[v] = _mm512_loadu_si512(w + v * 64);
#pragma GCC unroll 16
                for (int r = 0; r < Rows; ++r) {
                    const __m512i four = repeated(x[r * p.x_stride].numbers + piece * 4);
#pragma GCC unroll 2
                    for (int v = 0; v < kVectors; ++v) add_products(sums[r][v], weights[v], four);
                }
            }
#pragma GCC unroll 16
            for (int r = 0; r < Rows; ++r) {
                const __m512 scale = _mm512_set1_ps(x[r * p.x_stride].scale);
#pragma GCC unroll 2
                for (int v = 0; v < kVectors; ++v) {
                    const __m512 sum = _mm512_cvtepi32_ps(sums[r][v]);
                    if constexpr (HasGroupScales)
                        totals[r][v] = _mm512_fmadd_ps(_mm512_mul_ps(sum, scale), widened_half(w + v * 32), totals[r][v]);
                    else totals[r][v] = _mm512_fmadd_ps(sum, scale, totals[r][v]);
                }
            }
            if constexpr (HasGroupScales) w += kScalesBytes;
        }
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v) {
                const int64_t column = panel * kPanel + v * 16;
                if constexpr (!HasGroupScales)
                    totals[r][v] = _mm512_mul_ps(totals[r][v], _mm512_loadu_ps(p.scale + column));
                store(p, first_row + r, column, totals[r][v]);
            }
    }
};

template <int Rows>
using Int8 = Int8Tile<Rows, false>;
template <int Rows>
using Int8Groups = Int8Tile<Rows, true>;

template <int Rows>
struct Int4 {
    static void tile(const Product& p, int64_t panel, int64_t first_row) {
        constexpr int kPairs = kBlock / 8, kHalves = kGroup / kBlock;
        constexpr int kBlockBytes = kPairs * kPieceBytes + 2 * kScalesBytes;
        const int64_t blocks = divided_up(p.k, kBlock);
        const char* w = static_cast<const char*>(p.panels) + panel * blocks * kBlockBytes;
        const Group* x = static_cast<const Group*>(p.x) + first_row * p.x_stride;
        __m512 totals[Rows][kVectors] = {};
        for (int64_t block = 0; block < blocks; ++block) {
            const int64_t group = block / kHalves, half = block % kHalves;
            __m512i sums[Rows][kVectors] = {};
#pragma GCC unroll 4
            for (int pair = 0; pair < kPairs; ++pair, w += kPieceBytes)
                add_pair(sums, w, x + group, half * kBlock + pair * 8, p.x_stride);
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v) {
                const __m512 scale = widened_half(w + v * 32), minimum = widened_half(w + kScalesBytes + v * 32);
#pragma GCC unroll 16
                for (int r = 0; r < Rows; ++r) {
                    const Group& of_row = x[r * p.x_stride + group];
                    const __m512 whole = _mm512_mul_ps(_mm512_cvtepi32_ps(sums[r][v]), scale);
                    totals[r][v] = _mm512_fmadd_ps(whole, _mm512_set1_ps(of_row.scale), totals[r][v]);
                    totals[r][v] = _mm512_fmadd_ps(minimum, _mm512_set1_ps(of_row.totals[half]), totals[r][v]);
                }
            }
            w += 2 * kScalesBytes;
        }
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r)
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v) store(p, first_row + r, panel * kPanel + v * 16, totals[r][v]);
    }

    // A pair of pieces is in one: of each byte, the low bits and the high ones.
    ALPAGE_INLINE void add_pair(__m512i (&sums)[Rows][kVectors], const char* w, const Group* x, int64_t first,
                                int64_t x_stride) {
        ask_for<Rows>(w);
        const __m512i low_bits = _mm512_set1_epi8(15);
        __m512i even[kVectors], odd[kVectors];
#pragma GCC unroll 2
        for (int v = 0; v < kVectors; ++v) {
            const __m512i both = _mm512_loadu_si512(w + v * 64);
            even[v] = _mm512_and_si512(both, low_bits);
            odd[v] = _mm512_and_si512(_mm512_srli_epi16(both, 4), low_bits);
        }
#pragma GCC unroll 16
        for (int r = 0; r < Rows; ++r) {
            const int8_t* eight = x[r * x_stride].numbers + first;
            const __m512i one = repeated(eight), other = repeated(eight + 4);
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v) add_products(sums[r][v], even[v], one);
#pragma GCC unroll 2
            for (int v = 0; v < kVectors; ++v) add_products(sums[r][v], odd[v], other);
        }
    }
};

template <template <int> class Kind>
void any_tile(const Product& p, int64_t panel, int64_t first_row, int num_rows) {
    using Tile = void (*)(const Product&, int64_t, int64_t);
    static constexpr Tile tiles[kRowTile] = {
        Kind<1>::tile, Kind<2>::tile, Kind<3>::tile, Kind<4>::tile,  Kind<5>::tile,  Kind<6>::tile,
        Kind<7>::tile, Kind<8>::tile, Kind<9>::tile, Kind<10>::tile, Kind<11>::tile, Kind<12>::tile};
    tiles[num_rows - 1](p, panel, first_row);
}

ALPAGE_INLINE __m512 widened(__m256i x) {
    return (__m512)_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16);
}

// The greatest magnitude, as the bits of a bfloat16: those of a NaN are greater than any number's, so it is not lost.
ALPAGE_INLINE uint32_t greatest(const __m512i* x, int count) {
    __m512i of_32 = _mm512_setzero_si512();
    for (int i = 0; i < count; ++i) of_32 = _mm512_max_epu16(of_32, _mm512_and_si512(x[i], _mm512_set1_epi16(0x7fff)));
    const __m256i of_16 = _mm256_max_epu16(_mm512_castsi512_si256(of_32), _mm512_extracti64x4_epi64(of_32, 1));
    const __m128i of_8 = _mm_max_epu16(_mm256_castsi256_si128(of_16), _mm256_extracti128_si256(of_16, 1));
    return 0xffff & ~_mm_cvtsi128_si32(_mm_minpos_epu16(_mm_xor_si128(of_8, _mm_set1_epi16(-1))));
}

ALPAGE_INLINE __m512i rounded(__m256i x, __m512 factor) {
    return _mm512_cvtps_epi32(_mm512_mul_ps(widened(x), factor));
}

// 32 numbers in 8 bits, in their order.
ALPAGE_INLINE __m256i narrowed(__m512i x, __m512 factor) {
    const __m512i halves = _mm512_packs_epi32(rounded(_mm512_castsi512_si256(x), factor),
                                              rounded(_mm512_extracti64x4_epi64(x, 1), factor));
    const __m512i order = _mm512_setr_epi64(0, 2, 4, 6, 1, 3, 5, 7);
    return _mm512_cvtepi16_epi8(_mm512_permutexvar_epi64(order, halves));
}

ALPAGE_INLINE int32_t sum(__m256i numbers) {
    __m256i fours = _mm256_setzero_si256();
    asm("vpdpbusd %2, %1, %0" : "+v"(fours) : "v"(_mm256_set1_epi8(1)), "v"(numbers));
    const __m128i pairs = _mm_add_epi32(_mm256_castsi256_si128(fours), _mm256_extracti128_si256(fours, 1));
    const __m128i one = _mm_hadd_epi32(pairs, pairs);
    return _mm_cvtsi128_si32(one) + _mm_extract_epi32(one, 1);
}

void quantize(const uint16_t* x, int64_t k, Group* out) {
    constexpr int kParts = kGroup / kBlock;
    for (int64_t left = k; left > 0; left -= kGroup, x += kGroup, ++out) {
        __m512i parts[kParts];
#pragma GCC unroll 4
        for (int i = 0; i < kParts; ++i) {
            const int64_t here = left - i * kBlock;
            const __mmask32 mask = here >= kBlock ? ~0u : here <= 0 ? 0u : (1u << here) - 1;
            parts[i] = _mm512_maskz_loadu_epi16(mask, x + i * kBlock);
        }
        const float top = __builtin_bit_cast(float, greatest(parts, kParts) << 16);
        const __m512 factor = _mm512_set1_ps(top > 0 ? 127.0f / top : 0.0f);
        out->scale = top * (1.0f / 127.0f);
        int32_t total = 0;
#pragma GCC unroll 4
        for (int i = 0; i < kParts; ++i) {
            const __m256i numbers = narrowed(parts[i], factor);
            _mm256_storeu_si256(reinterpret_cast<__m256i*>(out->numbers + i * kBlock), numbers);
            const int32_t of_block = sum(numbers);
            out->totals[i] = float(of_block) * out->scale;
            total += of_block;
        }
        out->start = -128 * total;
    }
}

} // namespace

const LinearKernels linear_avx512_vnni = {
    {any_tile<Bfloat16>, any_tile<Int8>, any_tile<Int8Groups>, any_tile<Int4>}, quantize};

} // namespace alpage
