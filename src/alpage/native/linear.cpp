// linear: packing, and which tiles of a product run where.
#include "linear.h"

#include <algorithm>
#include <cstring>

#include "threads.h"

namespace alpage {

// A piece is four bytes whatever its elements are.
void pack(const char* w, int64_t stride_bytes, int64_t n, int64_t row_bytes, char* panels, int num_threads) {
    const int64_t whole = row_bytes / 4, pieces = divided_up(row_bytes, 4);
    for_each(divided_up(n, kPanel), num_threads, [&](int64_t panel) {
        char* out = panels + panel * pieces * kPanel * 4;
        std::memset(out, 0, pieces * kPanel * 4);
        for (int64_t row = 0; row < std::min<int64_t>(kPanel, n - panel * kPanel); ++row) {
            const char* from = w + (panel * kPanel + row) * stride_bytes;
            char* to = out + row * 4;
            for (int64_t piece = 0; piece < whole; ++piece) std::memcpy(to + piece * kPanel * 4, from + piece * 4, 4);
            std::copy(from + whole * 4, from + row_bytes, to + whole * kPanel * 4);
        }
    });
}

// With many rows of x a thread takes some tiles of a panel, while that is in cache. With few it takes some panels, one
// after the other: what a kernel asks for early lies behind its panel, and had better be its own next one.
void multiply(Team& team, Product p, const LinearKernels& kernels) {
    constexpr int64_t kTiles = 32;
    const ProductKernel kernel = kernels.multiply[static_cast<int>(p.weights)];
    const int64_t tiles = divided_up(p.m, kRowTile), blocks = divided_up(tiles, kTiles);
    const int64_t panels = divided_up(p.n, kPanel);
    if (tiles == 1) {
        const int64_t run = std::clamp<int64_t>(panels / 8, 1, 8);
        return team.share(divided_up(panels, run), [&](int64_t i) {
            for (int64_t panel = i * run; panel < std::min((i + 1) * run, panels); ++panel)
                kernel(p, panel, 0, int(p.m));
        });
    }
    p.panels_ahead = team.num_threads();
    team.share(panels * blocks, [&](int64_t i) {
        const int64_t panel = i / blocks, first = i % blocks * kTiles;
        for (int64_t tile = first; tile < std::min(first + kTiles, tiles); ++tile)
            kernel(p, panel, tile * kRowTile, int(std::min<int64_t>(kRowTile, p.m - tile * kRowTile)));
    });
}

void quantize(const Quantization& q, int64_t first, int64_t end) {
    for (int64_t row = first; row < end; ++row)
        q.kernel(static_cast<const uint16_t*>(q.x_MK) + row * q.x_stride, q.k, q.y + row * q.y_stride);
}
} // namespace alpage
