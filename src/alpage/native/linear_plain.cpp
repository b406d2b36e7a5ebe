// linear_plain: products of packed bfloat16 in float32, for every instruction set.
//
// A bfloat16 is the upper half of a float, so a vector of pairs gives two of floats by a shift and a mask; these serve
// all rows of x in registers. Compiled once for each instruction set, as kernels.cpp is.
#include "linear.h"
#include "vectors.h"

namespace alpage::ALPAGE_ISA {
namespace {

constexpr int kPieceWords = kPanel; // a pair of bfloat16 for each output
constexpr int kAhead = 512;         // words
// What is added up, what one piece of x and one of the weights give: all in registers, of which there are 16 or 32.
constexpr int kRows = kRegisterVectors == 2 ? 2 : 4;
constexpr int kVectors = kPanel / kLanes < 4 ? kPanel / kLanes : 4;

ALPAGE_INLINE Vec even(WordVec pairs) { return bit_cast<Vec>(pairs << 16); }
ALPAGE_INLINE Vec odd(WordVec pairs) { return bit_cast<Vec>(pairs & 0xffff0000u); }

ALPAGE_INLINE WordVec repeated(const uint16_t* pair) {
    uint32_t word;
    memcpy(&word, pair, sizeof word);
    return word - WordVec{};
}

// Writes the columns of y that there are.
ALPAGE_INLINE void store_columns(const Product& p, int64_t row, int64_t column, Vec value) {
    const int64_t num = smaller<int64_t>(kLanes, p.n - column);
    if (num <= 0) return;
    float bias[kLanes] = {};
    if (p.bias) memcpy(bias, p.bias + column, num * sizeof(float));
    bfloat16 out[kLanes];
    store(out, value + load(bias));
    memcpy(static_cast<bfloat16*>(p.y) + row * p.y_stride + column, out, num * sizeof(bfloat16));
}

// Rows of x with kVectors vectors of outputs, from `output` on in the panel.
template <int Rows>
__attribute__((noinline)) void multiply_rows(const Product& p, int64_t panel, int output, int64_t first_row) {
    const int64_t pieces = divided_up(p.k, 2);
    const uint32_t* w = static_cast<const uint32_t*>(p.panels) + panel * pieces * kPieceWords + output;
    const uint16_t* x = static_cast<const uint16_t*>(p.x) + first_row * p.x_stride;
    Vec sum[Rows][kVectors] = {};
    for (int64_t piece = 0; piece < pieces; ++piece, w += kPieceWords) {
        Vec x_even[Rows], x_odd[Rows];
        for (int r = 0; r < Rows; ++r) {
            const WordVec pair = repeated(x + r * p.x_stride + piece * 2);
            x_even[r] = even(pair);
            x_odd[r] = odd(pair);
        }
        for (int v = 0; v < kVectors; ++v) {
            WordVec weights;
            memcpy(&weights, w + v * kLanes, sizeof weights);
            __builtin_prefetch(w + v * kLanes + kAhead);
            for (int r = 0; r < Rows; ++r) {
                sum[r][v] += x_even[r] * even(weights);
                sum[r][v] += x_odd[r] * odd(weights);
            }
        }
    }
    for (int r = 0; r < Rows; ++r)
        for (int v = 0; v < kVectors; ++v)
            store_columns(p, first_row + r, panel * kPanel + output + v * kLanes, sum[r][v]);
}

void multiply(const Product& p, int64_t panel, int64_t first_row, int num_rows) {
    using Multiply = void (*)(const Product&, int64_t, int, int64_t);
    static constexpr Multiply of[] = {multiply_rows<1>, multiply_rows<2>, multiply_rows<3>, multiply_rows<4>};
    for (int row = 0; row < num_rows; row += kRows)
        for (int output = 0; output < kPanel; output += kVectors * kLanes)
            of[smaller(num_rows - row, kRows) - 1](p, panel, output, first_row + row);
}

constexpr LinearKernels kKernels = {{multiply, nullptr, nullptr, nullptr}, nullptr};

} // namespace
} // namespace alpage::ALPAGE_ISA

#define ALPAGE_JOIN_(a, b) a##b
#define ALPAGE_JOIN(a, b) ALPAGE_JOIN_(a, b)

const alpage::LinearKernels alpage::ALPAGE_JOIN(linear_, ALPAGE_ISA) = alpage::ALPAGE_ISA::kKernels;
