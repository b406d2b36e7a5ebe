// attention: the data that the planner, the kernels and the Python module pass to each other.
//
// Shape letters, as in the Python code:
//   T new tokens   B sequences   H query heads   G key/value heads   K head dim   P pages   S tokens in a page
//   R = H / G query heads that read one key/value head
//
// A "row" is one (token, query head) pair of one key/value head: row = token * R + head.
// Rows are gathered in tiles, so that one read of the keys serves every row of the tile.
//
// A row's result depends on that row and its keys alone. Key blocks and splits begin at fixed absolute positions,
// every row sees the same operations in the same order whatever shares its tile, and splits are joined in order:
// neither the batch, nor the chunking of a prompt, nor the number of threads can change a bit.
#pragma once

#include <cstdint>

#include "draw.h"
#include "kv_store.h"
#include "linear.h"
#include "rows.h"

namespace alpage {

constexpr int kMinHeadDim = 16; // the widest vector of floats
constexpr int kTileRows = 32;
constexpr int kBlockKeys = 64;    // keys scored at once
constexpr int kSplitKeys = 128;   // keys under one partial softmax
constexpr int kItemSplits = 4;    // splits that a thread takes at a time, where those of a tile are shared out
constexpr int kMinItems = 8;     // as many at least keep threads busy when each has all heads
constexpr int kMaxSplitTiles = 4; // sequences with more row tiles than this have parallel work enough without splits

struct Attention {
    Dtype dtype;
    const void* q_THK;
    void* out_THK;
    const void* k_PGSK;
    const void* v_PGSK;
    const int32_t* query_start_B1;
    const int32_t* context_B;
    const int32_t* table_BP;
    int64_t q_token_stride, q_head_stride; // strides in elements
    int64_t out_token_stride, out_head_stride;
    int64_t page_stride; // from page to page; inside a page [G, S, K] is dense, its tiles of the form below; with int8
                         // the K of a tile has the bytes of a token's scale besides
    int64_t table_stride;
    int64_t num_tokens, num_pages, table_width;
    int num_sequences, num_heads, num_kv_heads, head_dim, page_size;
    int window; // keys that a query sees, itself included
    float scale;
    TileForm form;
};

// Rows of key/value heads from first_kv_head on over splits [first_split, end_split), num_rows of each head: of each
// sequence those from first_row on, as many of each. Several sequences are in one tile where their pages of the splits
// are the same, and all of these are seen; such a tile has one head. Rows of a head lie side by side.
struct Tile {
    const int* sequences;
    int first_kv_head, num_kv_heads;
    int first_row, rows_each, num_rows;
    int first_split, end_split;

    int total_rows() const { return num_kv_heads * num_rows; }
    int kv_head_of(int row) const { return first_kv_head + row / num_rows; }
    int sequence_of(int row) const { return sequences[row % num_rows / rows_each]; }
    int row_of(int row) const { return first_row + row % rows_each; }
};

// Softmaxes of a tile's rows so far: weighted values, the greatest score (base 2), the sum of weights.
// `values` has `column_width(head_dim)` floats a row.
struct Softmax {
    float* values;
    float* top;
    float* sum;
};

constexpr int64_t column_width(int head_dim) { return (head_dim + 15) / 16 * 16; }

constexpr Softmax softmax_at(float* memory, int num_rows, int head_dim) {
    float* top = memory + num_rows * column_width(head_dim);
    return {memory, top, top + num_rows};
}

constexpr int64_t softmax_floats(int num_rows, int head_dim) { return num_rows * (column_width(head_dim) + 2); }

struct Kernels {
    // Writes the tile's rows of the output.
    void (*attend)(const Attention&, const Tile&);
    // Leaves the softmaxes of each split instead: `partials` has a place for each sequence, with one split after the
    // other.
    void (*attend_splits)(const Attention&, const Tile&, float* const* partials);
    // Writes the rows of a tile of one sequence from the softmaxes of its splits.
    void (*join_splits)(const Attention&, const Tile&, float* partials);
};

struct Isa {
    const char* name;
    Kernels kernels[2]; // by Dtype, for tiles of rows
    const Kernels* pairs; // for tiles of pairs, which are of bfloat16; or null
    Kernels int8_rows[2]; // likewise, of int8, with queries of the dtype
    const Kernels* int8_pairs;
    const RowKernels* rows; // by Dtype
    const DrawKernels* draw; // by Dtype
    StoreKv* store_kv;
    const LinearKernels* linear;
};

// The form of a pool's tiles: nobody but the kernels looks into them. The dtype is that of the queries.
inline TileForm form_of(const Isa& isa, Dtype dtype, bool is_int8, int page_size, int head_dim) {
    const bool fits = page_size % kPairTokens == 0 && head_dim % 16 == 0;
    const bool is_pairs = isa.pairs && dtype == Dtype::bfloat16 && fits;
    if (is_int8) return is_pairs ? TileForm::int8_pairs : TileForm::int8_rows;
    return is_pairs ? TileForm::pairs : TileForm::rows;
}

inline const Kernels& kernels_of(const Isa& isa, const Attention& a) {
    const int dtype = static_cast<int>(a.dtype);
    switch (a.form) {
    case TileForm::pairs: return *isa.pairs;
    case TileForm::int8_pairs: return *isa.int8_pairs;
    case TileForm::int8_rows: return isa.int8_rows[dtype];
    default: return isa.kernels[dtype];
    }
}

extern const Isa isa_avx512_bf16, isa_avx512, isa_avx2, isa_portable;

} // namespace alpage
