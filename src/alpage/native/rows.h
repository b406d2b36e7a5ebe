// rows: what happens to every token by itself, in one pass over memory: norms, gates, rotary turns.
//
// Arithmetic is of float32 and rounded once. Strides count elements; the last dim of everything is dense.
#pragma once

#include <cstdint>

namespace alpage {

// Rows that are worth waking a thread for, by the numbers in one.
constexpr int64_t rows_at_a_time(int64_t width) { return width > 1 << 14 ? 1 : (1 << 15) / (width ? width : 1); }

struct RmsNorm {
    const void* x_MD;
    const void* weight_D;
    void* y_MD;
    int64_t x_stride, y_stride;
    int64_t m, d;
    float eps;
};

// y = silu(gate) * up, where a row of x is gate and up one after the other.
struct SiluMul {
    const void* x_M2F;
    void* y_MF;
    int64_t x_stride, y_stride;
    int64_t m, f;
};

// Pairs (i, i + K / 2) of every head turned by the angles of the token: cosines, then sines.
struct Rotation {
    const void* x_MHK;
    const float* turn_MK;
    void* y_MHK;
    int64_t x_token_stride, x_head_stride, y_token_stride, y_head_stride;
    int64_t m;
    int num_heads, head_dim;
};

struct Sum {
    const void* one_MD;
    const void* other_MD;
    void* y_MD;
    int64_t one_stride, other_stride, y_stride;
    int64_t m, d;
};

struct RowKernels {
    void (*rms_norm)(const RmsNorm&, int64_t first, int64_t end);
    void (*silu_mul)(const SiluMul&, int64_t first, int64_t end);
    void (*rotate)(const Rotation&, int64_t first, int64_t end);
    void (*add)(const Sum&, int64_t first, int64_t end);
};

// By Dtype.
extern const RowKernels rows_avx512_bf16[2], rows_avx512[2], rows_avx2[2], rows_portable[2];

} // namespace alpage
