// kv_store: how keys and values lie in pages, and how a step's get there. Shape letters as in attention.h.
#pragma once

#include <cstdint>

namespace alpage {

constexpr int kMaxHeadDim = 256;

enum class Dtype { float32, bfloat16 };

// How a head's tile of a page [S, K] lies in memory, for keys and for values.
//   rows: token after token.
//   pairs: as `vdpbf16ps` takes it, which multiplies pairs of bfloat16. Keys [S / 16, K / 2, 16, 2]: 16 tokens side by
//     side, two features each. Values [S / 2, K, 2]: a feature of two tokens side by side.
//   int8_rows, int8_pairs: the same orders with numbers of 8 bits, and behind them a float for each token, which they
//     are to be multiplied with.
enum class TileForm { rows, pairs, int8_rows, int8_pairs };

constexpr int kPairTokens = 16; // side by side in the keys of the form `pairs`
constexpr int kScaleBytes = sizeof(float);

constexpr bool is_int8(TileForm form) { return form == TileForm::int8_rows || form == TileForm::int8_pairs; }

struct KvStore {
    Dtype dtype; // of the keys and values that come in
    const void* k_TGK;
    const void* v_TGK;
    void* k_PGSK;
    void* v_PGSK;
    const int64_t* slot_T; // page * page_size + place
    int64_t k_token_stride, k_head_stride, v_token_stride, v_head_stride;
    int64_t page_stride;
    int64_t num_tokens, num_pages;
    int num_kv_heads, head_dim, page_size;
    TileForm form;
};

// Writes keys and values of tokens [first, end) into their slots.
using StoreKv = void(const KvStore&, int64_t first, int64_t end);
extern StoreKv store_kv_avx512_bf16, store_kv_avx512, store_kv_avx2, store_kv_portable;

} // namespace alpage
