// linear: products of activations with weights that were packed once, y[M, N] = x[M, K] · w[N, K]ᵀ.
//
// A panel holds kPanel outputs. Along K it is cut into groups of as many elements as one lane multiplies at a time
// (2 of bfloat16, 4 of int8): [panel][group][output][element], so that one vector holds a group of 16 outputs and a
// group of one row of x is multiplied with all of them. What K or N lacks is zero.
//
// Every output adds up its products in the order of K, whatever M is and whichever thread computes it: neither the
// batch nor the number of threads can change a bit.
#pragma once

#include <cstdint>

namespace alpage {

class Team;

constexpr int kPanel = 32;    // outputs
constexpr int kRowTile = 12;  // rows of x at a time: 24 of 32 registers add up

constexpr int64_t num_panels(int64_t n) { return (n + kPanel - 1) / kPanel; }
constexpr int64_t num_groups(int64_t k, int elements) { return (k + elements - 1) / elements; }

struct Product {
    const void* x;       // bfloat16, or uint8 that stands for 128 less
    const void* panels;  // packed
    const float* bias;   // of each output, or null
    void* y;             // bfloat16
    int64_t x_stride, y_stride;  // from row to row, in elements
    int64_t m, n, k;
    // Of int8: of each row of x, of each output, and 128 times the sum of each output's weights.
    const float* x_scale;
    int64_t x_scale_stride;
    const float* w_scale;
    const int32_t* correction;
};

// Rows [first_row, first_row + num_rows) of x, at most kRowTile, with one panel.
using ProductKernel = void (*)(const Product&, int64_t panel, int64_t first_row, int num_rows);
// A row of x as uint8, K rounded up to a group; returns its scale.
using QuantizeKernel = float (*)(const uint16_t* x, int64_t k, uint8_t* out);

struct LinearKernels {
    ProductKernel bfloat16, int8;
    QuantizeKernel quantize;
};

#if defined(ALPAGE_HAS_LINEAR)
extern const LinearKernels linear_kernels;
#endif

void pack_bfloat16(const uint16_t* w_NK, int64_t row_stride, int64_t n, int64_t k, uint16_t* panels, int num_threads);
void pack_int8(const int8_t* w_NK, int64_t row_stride, int64_t n, int64_t k, int8_t* panels, int32_t* correction,
               int num_threads);

// Every thread of a team calls these. Rows of int8 have been quantized.
void multiply_bfloat16(Team&, const Product&);
void multiply_int8(Team&, const Product&);

// Rows [first, end) of x in bfloat16 as uint8, each K rounded up to 4 wide, and their scales.
struct Quantization {
    const void* x_MK;
    uint8_t* y_MK;
    float* scale_M;
    int64_t x_stride, y_stride, k;
    int64_t scale_stride;
};
void quantize(const Quantization&, int64_t first, int64_t end);

} // namespace alpage
