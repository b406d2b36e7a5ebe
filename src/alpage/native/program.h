// program: what a model does with a step's tokens, recorded once and run in one go.
//
// A program has buffers, each with a row for every token of a step, and operations on them in order. One team of
// threads runs all of it: operations on single tokens follow each other without waiting, the others share their work
// out. So a step costs one call, whatever the number of layers.
//
// Once the keys and values of the last layer are stored, a token matters to no other: a program may `keep` there those
// tokens of a step whose result is read, and goes on with them alone.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <utility>
#include <vector>

#include "linear.h"
#include "plan.h"

namespace alpage {

// Part of each row of a buffer.
struct Place {
    int buffer;
    int64_t offset; // bytes
};

struct Buffer {
    std::optional<int64_t> start; // bytes into the arena for each token of the step; none: it comes from outside
    int64_t row_bytes;
};

// A matrix as linear.h packs it.
struct Matrix {
    Weights weights;
    const void* panels;
    const float* scale; // of int8, or null
    const float* bias;  // or null
    int64_t n, k;
};

struct Heads {
    int num_heads, head_dim;
};

// What is of one step. Strides count elements.
struct StepData {
    int64_t num_tokens;
    std::vector<char*> outside; // buffers from outside, in their order
    char* arena;
    char* kv_L2PGSK;
    bool is_int8; // or bfloat16
    int64_t layer_stride, value_stride, page_stride, num_pages;
    int page_size;
    const int64_t* slot_T;
    const int32_t* query_start_B1;
    const int32_t* kept_B1; // likewise, of each sequence's last tokens that are kept; null: all are
    const int32_t* context_B;
    const int32_t* table_BP;
    int64_t table_stride, table_width;
    int num_sequences;
};

class Program {
 public:
    Program(std::vector<Buffer> buffers, const Isa& isa, const LinearKernels& linear)
        : buffers_(std::move(buffers)), isa_(isa), linear_(linear) {}

    void rms_norm(Place x, Place y, const void* weight_D, int64_t d, float eps);
    void silu_mul(Place both, Place y, int64_t f);
    void add(Place one, Place other, Place y, int64_t d);
    void rotate(Place x, Place turn, Place y, Heads heads);
    void quantize(Place x, Place y, int64_t k);
    void multiply(Place x, Place y, const Matrix& matrix);
    void store_kv(Place k, Place v, int layer, Heads heads);
    // Goes on with the tokens that the step keeps. Of what was written before, only these buffers are read from here on.
    void keep(std::vector<int> buffers);
    void attend(Place q, Place y, int layer, Heads heads, int num_kv_heads, std::optional<int> window, float scale);

    // Throws on a page, slot or token out of range, before anything is written.
    void run(const StepData& data, int num_threads) const;

 private:
    struct Frame;
    using OfRows = std::function<void(const Frame&, int64_t first, int64_t end)>;
    using OfTeam = std::function<void(Team&, const Frame&)>;
    // Either a chain of operations on rows, or one operation: work that is shared out once.
    struct Stage {
        std::vector<OfRows> chain;
        int64_t width = 0; // numbers in a row of the chain
        OfTeam whole;
        bool is_keeping = false; // what comes behind it runs on the tokens that are kept
    };

    void add_rows(int64_t width, OfRows run);
    void add_whole(OfTeam run);
    int64_t row_bytes(Place place) const { return buffers_[place.buffer].row_bytes; }

    std::vector<Buffer> buffers_;
    const Isa& isa_;
    const LinearKernels& linear_;
    std::vector<Stage> stages_;
    std::map<int, std::pair<Heads, int>> plans_; // by window: query heads, key/value heads
};

} // namespace alpage
