// draw: tokens from logits: the likeliest, or by probability.
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

// Rows [first, end). Of equals the first one wins.
using DrawKernel = void (*)(const Draw&, int64_t first, int64_t end);

// By Dtype.
extern const DrawKernel draw_avx512_bf16[2], draw_avx512[2], draw_avx2[2], draw_portable[2];

} // namespace alpage
