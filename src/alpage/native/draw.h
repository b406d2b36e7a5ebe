// draw: tokens from logits: the likeliest, or by probability; and what makes logits logarithms of probabilities.
#pragma once

#include <cstdint>

namespace alpage {

// A row with a temperature above 0 draws by the largest sum of logit / temperature and Gumbel noise (ADR 0008).
struct Draw {
    const void* logits_RV;
    int64_t stride; // from row to row, in elements
    int64_t v;
    const float* temperature_R;
    const int64_t* key_R;
    int64_t* token_R;
};

struct LogSumExp {
    const void* logits_RV;
    int64_t stride;
    int64_t v;
    float* total_R;
};

struct DrawKernels {
    // Rows [first, end). Of equals the first one wins.
    void (*draw)(const Draw&, int64_t first, int64_t end);
    void (*log_sum_exp)(const LogSumExp&, int64_t first, int64_t end);
};

// By Dtype.
extern const DrawKernels draw_avx512_bf16[2], draw_avx512[2], draw_avx2[2], draw_portable[2];

} // namespace alpage
