// linear: products of activations with weights that were packed once, y[M, N] = x[M, K] · w[N, K]ᵀ.
//
// A panel holds kPanel outputs. Along K it is cut into pieces of as many elements as one lane multiplies at a time (2 of
// bfloat16, 4 of int8): [panel][piece][output][element], so that one vector holds a piece of 16 outputs and a piece of
// one row of x is multiplied with all of them. What K or N lacks is zero.
//
// int8 weights are stored as 128 more than they are, since `vpdpbusd` takes one side as unsigned.
//
// int8 has a scale for each output; int8_groups one of float16 for each group of kGroup along K, behind the group's
// pieces: [panel][group]{pieces, scale: [output]}. K is rounded up to a group.
//
// int4 weights are scale * number + minimum, both of float16, with numbers in [0, 15]:
// [panel][block]{[pair of pieces][output][element], scale: [output], minimum: [output]}. A byte has an element of the
// even piece in its low bits and of the odd one in its high bits.
//
// Every output adds up its products in the order of K, whatever M is and whichever thread computes it: neither the
// batch nor the number of threads can change a bit.
#pragma once

#include <cstdint>

namespace alpage {

class Team;

constexpr int kPanel = 32;   // outputs
constexpr int kRowTile = 12; // rows of x at a time: 24 of 32 registers add up
constexpr int kGroup = 96;   // numbers of x that share a scale
constexpr int kBlock = 32;   // weights of an output in 4 bits that share a scale and a minimum

constexpr int64_t divided_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Part of a row of x in 8 bits, with what its products are made of besides. What K lacks is zero.
struct Group {
    int8_t numbers[kGroup];
    float scale;
    int32_t start;                 // of a sum with int8: takes back the 128 that each weight is too large
    float totals[kGroup / kBlock]; // of the numbers of each block, scaled
};

enum class Weights { bfloat16, int8, int8_groups, int4 };

struct Product {
    Weights weights;
    const void* x;       // bfloat16, or groups
    const void* panels;  // packed
    const float* scale;  // of each output, if of int8
    const float* bias;   // of each output, or null
    void* y;             // bfloat16
    int64_t x_stride, y_stride; // from row to row, in elements or groups
    int64_t m, n, k;
    int64_t panels_ahead = 1; // from a panel to the one that its thread is likely to take next
};

// Rows [first_row, first_row + num_rows) of x, at most kRowTile, with one panel.
using ProductKernel = void (*)(const Product&, int64_t panel, int64_t first_row, int num_rows);
// A row of bfloat16 as groups.
using QuantizeKernel = void (*)(const uint16_t* x, int64_t k, Group* out);

// What an instruction set has; null where it has none.
struct LinearKernels {
    ProductKernel multiply[4]; // by Weights
    QuantizeKernel quantize;
};

extern const LinearKernels linear_avx512_bf16, linear_avx512, linear_avx2, linear_portable; // linear_plain.cpp
extern const LinearKernels linear_avx512_vnni;                                              // linear_avx512.cpp

// Rows of bfloat16 or of int8, by their bytes.
void pack(const char* w, int64_t stride_bytes, int64_t n, int64_t row_bytes, char* panels, int num_threads);

// Every thread of a team calls it.
void multiply(Team&, Product, const LinearKernels&);

// Rows [first, end) of x in bfloat16 as groups.
struct Quantization {
    const void* x_MK;
    Group* y;
    int64_t x_stride, y_stride, k;
    QuantizeKernel kernel;
};
void quantize(const Quantization&, int64_t first, int64_t end);

} // namespace alpage
