// linear: packing, and which tiles of a product run where.
#include "linear.h"

#include <algorithm>
#include <cstring>
#include <numeric>

#include "threads.h"

namespace alpage {
namespace {

// A group is four bytes whatever its elements are.
template <class Element>
void pack(const Element* w_NK, int64_t row_stride, int64_t n, int64_t k, Element* panels, int num_threads) {
    constexpr int64_t kElements = 4 / sizeof(Element);
    const int64_t groups = num_groups(k, kElements), whole = k / kElements;
    for_each(num_panels(n), num_threads, [&](int64_t panel) {
        Element* out = panels + panel * groups * kPanel * kElements;
        std::memset(out, 0, groups * kPanel * 4);
        for (int64_t row = 0; row < std::min<int64_t>(kPanel, n - panel * kPanel); ++row) {
            const Element* w = w_NK + (panel * kPanel + row) * row_stride;
            Element* to = out + row * kElements;
            for (int64_t group = 0; group < whole; ++group)
                std::memcpy(to + group * kPanel * kElements, w + group * kElements, 4);
            std::copy(w + whole * kElements, w + k, to + whole * kPanel * kElements);
        }
    });
}

// Panels are shared out one by one; with many rows of x a thread takes some tiles of a panel, while that is in cache.
template <class Run>
void share_tiles(Team& team, const Product& p, Run run) {
    constexpr int64_t kTiles = 32;
    const int64_t tiles = (p.m + kRowTile - 1) / kRowTile;
    const int64_t blocks = (tiles + kTiles - 1) / kTiles;
    team.share(num_panels(p.n) * blocks, [&](int64_t i) {
        const int64_t panel = i / blocks, first = i % blocks * kTiles;
        for (int64_t tile = first; tile < std::min(first + kTiles, tiles); ++tile)
            run(p, panel, tile * kRowTile, int(std::min<int64_t>(kRowTile, p.m - tile * kRowTile)));
    });
}

} // namespace

void pack_bfloat16(const uint16_t* w_NK, int64_t row_stride, int64_t n, int64_t k, uint16_t* panels,
                   int num_threads) {
    pack(w_NK, row_stride, n, k, panels, num_threads);
}

void pack_int8(const int8_t* w_NK, int64_t row_stride, int64_t n, int64_t k, int8_t* panels, int32_t* correction,
               int num_threads) {
    pack(w_NK, row_stride, n, k, panels, num_threads);
    std::fill(correction, correction + num_panels(n) * kPanel, 0);
    for (int64_t row = 0; row < n; ++row)
        correction[row] = 128 * std::accumulate(w_NK + row * row_stride, w_NK + row * row_stride + k, 0);
}

#if defined(ALPAGE_HAS_LINEAR)
void multiply_bfloat16(Team& team, const Product& p) { share_tiles(team, p, linear_kernels.bfloat16); }

void multiply_int8(Team& team, const Product& p) { share_tiles(team, p, linear_kernels.int8); }

void quantize(const Quantization& q, int64_t first, int64_t end) {
    for (int64_t row = first; row < end; ++row)
        q.scale_M[row * q.scale_stride] = linear_kernels.quantize(
            static_cast<const uint16_t*>(q.x_MK) + row * q.x_stride, q.k, q.y_MK + row * q.y_stride);
}
#else // Nothing was packed, so nobody multiplies.
void multiply_bfloat16(Team&, const Product&) { __builtin_unreachable(); }
void multiply_int8(Team&, const Product&) { __builtin_unreachable(); }
void quantize(const Quantization&, int64_t, int64_t) { __builtin_unreachable(); }
#endif

} // namespace alpage
