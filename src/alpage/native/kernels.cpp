// kernels: attention of one tile of rows over pages, by blocks of keys with a running softmax.
//
// The online softmax is that of Milakov & Gimelshein (2018), arXiv:1805.02867; going through keys in blocks while the
// scores stay in cache is FlashAttention, Dao et al. (2022), arXiv:2205.14135, section 3.1; splits over keys that are
// joined at the end are Flash-Decoding. Compiled once for each instruction set: ALPAGE_ISA is its name.
//
// A block of keys is transposed, so that a vector holds one element (or one pair of bfloat16) of many keys: scores
// then need no sum across lanes, and the work of transposing is shared by all rows of the tile.
#include "attention.h"
#include "vectors.h"

namespace alpage::ALPAGE_ISA {
namespace {

constexpr float kLog2E = 1.44269504f;

alignas(64) const float kZeroRow[kMaxHeadDim] = {};

// What the dot product of queries and keys runs on. A `Unit` is the part of a key that one lane holds.
template <class T>
struct Dot {
    static constexpr int kElements = 1; // of T in a unit
    ALPAGE_INLINE Vec load_units(const T* p) { return load(p); }
    ALPAGE_INLINE float unit(const T* p) {
        if constexpr (sizeof(T) == 4) return *p;
        else return bit_cast<float>(uint32_t{p->bits} << 16);
    }
    ALPAGE_INLINE Vec add(Vec sum, float q, Vec k) { return sum + q * k; }
};

#if defined(__AVX512BF16__)
template <>
struct Dot<bfloat16> {
    static constexpr int kElements = 2;
    ALPAGE_INLINE Vec load_units(const bfloat16* p) { return load(reinterpret_cast<const float*>(p)); }
    ALPAGE_INLINE float unit(const bfloat16* p) {
        float pair;
        memcpy(&pair, p, sizeof pair);
        return pair;
    }
    ALPAGE_INLINE Vec add(Vec sum, float q, Vec k) {
        return bit_cast<Vec>(_mm512_dpbf16_ps(
            bit_cast<__m512>(sum), bit_cast<__m512bh>(k), bit_cast<__m512bh>(splat(q))));
    }
};
#endif

struct Scratch {
    alignas(64) float query[kTileRows * kMaxHeadDim];         // [row][unit]
    alignas(64) float key[kMaxHeadDim * kBlockKeys];          // [unit][key]
    alignas(64) float score[kTileRows * kBlockKeys];          // [row][key], later the weights
    alignas(64) float split_memory[kTileRows * (kMaxHeadDim + 2)];
    alignas(64) float whole_memory[kTileRows * (kMaxHeadDim + 2)];
    alignas(64) float rescale[kTileRows];
    int64_t place[kSplitKeys + kBlockKeys];                   // offset of a key in the pool, by position in the split
    int position[kTileRows];
};

// Keys [begin, end) of a block; the others are not read.
struct Span {
    int begin, end;
};

template <int N>
struct Count {
    static constexpr int value = N;
};

// Calls f with `n`, at most 4, as a constant: loops of that length then stay in registers.
template <class F>
ALPAGE_INLINE void with_count(int n, F f) {
    switch (n) {
    case 1: return f(Count<1>{});
    case 2: return f(Count<2>{});
    case 3: return f(Count<3>{});
    default: return f(Count<4>{});
    }
}

ALPAGE_INLINE int first_seen(const Attention& a, int position) { return greater(0, position - a.window + 1); }

template <class T>
class TileKernel {
  public:
    TileKernel(const Attention& a, const Tile& tile, Scratch& s)
        : a_(a), tile_(tile), s_(s), units_(a.head_dim / Dot<T>::kElements),
          split_(softmax_at(s.split_memory, tile.num_rows, a.head_dim)),
          whole_(softmax_at(s.whole_memory, tile.num_rows, a.head_dim)) {}

    Softmax attend() {
        load_queries();
        clear(whole_);
        const int oldest = first_seen(a_, s_.position[0]);
        const int newest = s_.position[tile_.num_rows - 1];
        for (int split = tile_.first_split; split < tile_.end_split; ++split) {
            const int begin = split * kSplitKeys;
            attend_to(begin, {greater(oldest - begin, 0), smaller(newest + 1 - begin, kSplitKeys)});
            join(whole_, split_);
        }
        return whole_;
    }

    void clear(Softmax& softmax) {
        for (int64_t i = 0; i < tile_.num_rows * column_width(a_.head_dim); ++i) softmax.values[i] = 0.0f;
        for (int r = 0; r < tile_.num_rows; ++r) {
            softmax.top[r] = -__builtin_inff();
            softmax.sum[r] = 0.0f;
        }
    }

    // A row that has seen no key has sum 0; a NaN is not 0 and goes through.
    __attribute__((noinline)) void join(Softmax& into, const Softmax& from) {
        const int64_t width = column_width(a_.head_dim);
        for (int r = 0; r < tile_.num_rows; ++r) {
            if (from.sum[r] == 0.0f) continue;
            const float top = greater(into.top[r], from.top[r]);
            const Vec keep = into.sum[r] == 0.0f ? Vec{} : exp2(splat(into.top[r] - top));
            const Vec add = exp2(splat(from.top[r] - top));
            for (int64_t i = r * width; i < (r + 1) * width; i += kLanes)
                store(into.values + i, load(into.values + i) * keep + load(from.values + i) * add);
            into.sum[r] = into.sum[r] * keep[0] + from.sum[r] * add[0];
            into.top[r] = top;
        }
    }

    void write(const Softmax& softmax) {
        const int group = a_.num_heads / a_.num_kv_heads;
        const int64_t width = column_width(a_.head_dim);
        for (int r = 0; r < tile_.num_rows; ++r) {
            const int row = tile_.first_row + r;
            T* out = static_cast<T*>(a_.out_THK) +
                     (a_.query_start_B1[tile_.sequence] + row / group) * a_.out_token_stride +
                     (tile_.kv_head * group + row % group) * a_.out_head_stride;
            const Vec scale = splat(1.0f / softmax.sum[r]);
            for (int c = 0; c < num_columns(); ++c)
                store(out + column(c), load(softmax.values + r * width + c * kLanes) * scale);
        }
    }

  private:
    // Columns are the vectors of a row of values. The last one begins early where the head dim is no multiple of the
    // lanes, and its first elements are then computed twice.
    int num_columns() const { return (a_.head_dim + kLanes - 1) / kLanes; }
    int column(int c) const { return smaller(c * kLanes, a_.head_dim - kLanes); }

    void load_queries() {
        const int group = a_.num_heads / a_.num_kv_heads;
        const int start = a_.query_start_B1[tile_.sequence];
        const int past = a_.context_B[tile_.sequence] - (a_.query_start_B1[tile_.sequence + 1] - start);
        for (int r = 0; r < tile_.num_rows; ++r) {
            const int token = (tile_.first_row + r) / group;
            const int head = tile_.kv_head * group + (tile_.first_row + r) % group;
            s_.position[r] = past + token;
            const T* q = static_cast<const T*>(a_.q_THK) + (start + token) * a_.q_token_stride +
                         head * a_.q_head_stride;
            for (int u = 0; u < units_; ++u) s_.query[r * units_ + u] = Dot<T>::unit(q + u * Dot<T>::kElements);
        }
    }

    // Leaves in split_ the softmax over keys [begin + keys.begin, begin + keys.end).
    void attend_to(int begin, Span keys) {
        clear(split_);
        find(begin, keys);
        for (int block = keys.begin / kBlockKeys * kBlockKeys; block < keys.end; block += kBlockKeys) {
            const Span seen{greater(keys.begin - block, 0), smaller(keys.end - block, kBlockKeys)};
            transpose_keys(s_.place + block, seen);
            score(seen);
            for (int r = 0; r < tile_.num_rows; ++r) weigh(r, begin + block);
            add_values(s_.place + block, seen);
        }
    }

    void find(int begin, Span keys) {
        const int32_t* table = a_.table_BP + tile_.sequence * a_.table_stride;
        const int64_t head = int64_t{tile_.kv_head} * a_.page_size * a_.head_dim;
        for (int i = keys.begin; i < keys.end;) {
            const int page = (begin + i) / a_.page_size;
            const int end = smaller((page + 1) * a_.page_size - begin, keys.end);
            int64_t place = table[page] * a_.page_stride + head + (begin + i) % a_.page_size * a_.head_dim;
            for (; i < end; ++i, place += a_.head_dim) s_.place[i] = place;
        }
        // What is fetched ahead of the last block is the last key again.
        for (int i = keys.end; i < keys.end + kBlockKeys; ++i) s_.place[i] = s_.place[keys.end - 1];
    }

    ALPAGE_INLINE void fetch(const T* row, int head_dim) {
        for (int i = 0; i < head_dim; i += 64 / int(sizeof(T))) __builtin_prefetch(row + i);
    }

    __attribute__((noinline)) void transpose_keys(const int64_t* place, Span seen) {
        const T* pool = static_cast<const T*>(a_.k_PGSK);
        const int units = units_, head_dim = a_.head_dim;
        float* key = s_.key;
        for (int k = 0; k < seen.end; k += kLanes) {
            const T* row[kLanes];
            for (int i = 0; i < kLanes; ++i) {
                const bool is_seen = seen.begin <= k + i && k + i < seen.end;
                row[i] = is_seen ? pool + place[k + i] : reinterpret_cast<const T*>(kZeroRow);
                if (is_seen) fetch(pool + place[k + i + kBlockKeys], head_dim);
            }
            for (int u = 0; u < units; u += kLanes) {
                const int first = units < kLanes ? 0 : smaller(u, units - kLanes);
                Vec block[kLanes];
                if (units < kLanes) {
                    for (int i = 0; i < kLanes; ++i) block[i] = load_few_units(row[i], head_dim);
                } else {
#pragma GCC unroll 16
                    for (int i = 0; i < kLanes; ++i)
                        block[i] = Dot<T>::load_units(row[i] + first * Dot<T>::kElements);
                }
                transpose(block);
                float* to = key + first * kBlockKeys + k;
#pragma GCC unroll 16
                for (int i = 0; i < kLanes; ++i) store(to + i * kBlockKeys, block[i]);
            }
        }
    }

    __attribute__((noinline)) static Vec load_few_units(const T* p, int head_dim) {
        T padded[kLanes * Dot<T>::kElements] = {};
        for (int i = 0; i < head_dim; ++i) padded[i] = p[i];
        return Dot<T>::load_units(padded);
    }

    __attribute__((noinline)) void score(Span seen) {
        for (int r = 0; r < tile_.num_rows; r += kRegisterRows)
            with_count(smaller(tile_.num_rows - r, kRegisterRows), [&](auto rows) { score_rows<rows.value>(r, seen); });
    }

    template <int Rows>
    __attribute__((always_inline)) inline void score_rows(int r, Span seen) {
        constexpr int kKeys = kRegisterVectors * kLanes;
        const int units = units_;
        const float* q = s_.query + r * units;
        for (int k = seen.begin / kKeys * kKeys; k < seen.end; k += kKeys) {
            Vec sum[Rows][kRegisterVectors] = {};
            for (int u = 0; u < units; ++u)
                for (int j = 0; j < kRegisterVectors; ++j) {
                    const Vec key = load(s_.key + u * kBlockKeys + k + j * kLanes);
                    for (int i = 0; i < Rows; ++i) sum[i][j] = Dot<T>::add(sum[i][j], q[i * units + u], key);
                }
            for (int i = 0; i < Rows; ++i)
                for (int j = 0; j < kRegisterVectors; ++j)
                    store(s_.score + (r + i) * kBlockKeys + k + j * kLanes, sum[i][j]);
        }
    }

    // Turns a row's scores into weights relative to its greatest score so far.
    __attribute__((noinline)) void weigh(int r, int block) {
        float* row = s_.score + r * kBlockKeys;
        const int position = s_.position[r];
        const int oldest = first_seen(a_, position) - block, newest = position - block;
        const float scale = a_.scale * kLog2E;
        Vec greatest = splat(-__builtin_inff());
        for (int k = 0; k < kBlockKeys; k += kLanes) {
            const IntVec key = lane_numbers(Lanes{}) + k;
            const Vec x = (key >= oldest) & (key <= newest) ? load(row + k) * scale : splat(-__builtin_inff());
            store(row + k, x);
            greatest = greater(greatest, x);
        }
        const float top = greater(split_.top[r], greatest_lane(greatest)[0]);
        const float base = top == -__builtin_inff() ? 0.0f : top;
        Vec sum{};
        for (int k = 0; k < kBlockKeys; k += kLanes) {
            const Vec weight = exp2(load(row + k) - base);
            store(row + k, weight);
            sum += weight;
        }
        const float rescale = exp2(splat(split_.top[r] - base))[0];
        split_.sum[r] = split_.sum[r] * rescale + sum_lanes(sum)[0];
        split_.top[r] = top;
        s_.rescale[r] = rescale;
    }

    __attribute__((noinline)) void add_values(const int64_t* place, Span seen) {
        for (int c = 0; c < num_columns(); c += kRegisterVectors)
            with_count(smaller(num_columns() - c, kRegisterVectors), [&](auto columns) {
                for (int r = 0; r < tile_.num_rows; r += kRegisterRows)
                    with_count(smaller(tile_.num_rows - r, kRegisterRows), [&](auto rows) {
                        add_to_columns<rows.value, columns.value>(r, c, place, seen);
                    });
            });
    }

    template <int Rows, int Columns>
    __attribute__((always_inline)) inline void add_to_columns(int r, int c, const int64_t* place, Span seen) {
        const T* pool = static_cast<const T*>(a_.v_PGSK);
        const int64_t width = column_width(a_.head_dim);
        float* values = split_.values + r * width + c * kLanes;
        const float* weight = s_.score + r * kBlockKeys;
        int first[Columns];
        Vec sum[Rows][Columns];
        for (int j = 0; j < Columns; ++j) first[j] = column(c + j);
        for (int i = 0; i < Rows; ++i)
            for (int j = 0; j < Columns; ++j)
                sum[i][j] = load(values + i * width + j * kLanes) * s_.rescale[r + i];
        for (int k = seen.begin; k < seen.end; ++k) {
            const T* row = pool + place[k];
            if (r == 0) fetch(pool + place[k + kBlockKeys] + first[0], Columns * kLanes);
            for (int j = 0; j < Columns; ++j) {
                const Vec value = load(row + first[j]);
                for (int i = 0; i < Rows; ++i) sum[i][j] += weight[i * kBlockKeys + k] * value;
            }
        }
        for (int i = 0; i < Rows; ++i)
            for (int j = 0; j < Columns; ++j) store(values + i * width + j * kLanes, sum[i][j]);
    }

    const Attention& a_;
    const Tile& tile_;
    Scratch& s_;
    const int units_;
    Softmax split_, whole_;
};

template <class T>
void attend(const Attention& a, const Tile& tile) {
    Scratch scratch;
    TileKernel<T> kernel(a, tile, scratch);
    kernel.write(kernel.attend());
}

template <class T>
void attend_split(const Attention& a, const Tile& tile, float* partial) {
    Scratch scratch;
    const Softmax softmax = TileKernel<T>(a, tile, scratch).attend();
    memcpy(partial, softmax.values, softmax_floats(tile.num_rows, a.head_dim) * sizeof(float));
}

template <class T>
void join_splits(const Attention& a, const Tile& tile, float* partials) {
    Scratch scratch;
    TileKernel<T> kernel(a, tile, scratch);
    Softmax whole = softmax_at(scratch.whole_memory, tile.num_rows, a.head_dim);
    kernel.clear(whole);
    for (int split = tile.first_split; split < tile.end_split; ++split) {
        kernel.join(whole, softmax_at(partials, tile.num_rows, a.head_dim));
        partials += softmax_floats(tile.num_rows, a.head_dim);
    }
    kernel.write(whole);
}

template <class T>
constexpr Kernels kKernels{attend<T>, attend_split<T>, join_splits<T>};

} // namespace
} // namespace alpage::ALPAGE_ISA

#define ALPAGE_JOIN_(a, b) a##b
#define ALPAGE_JOIN(a, b) ALPAGE_JOIN_(a, b)
#define ALPAGE_TEXT_(a) #a
#define ALPAGE_TEXT(a) ALPAGE_TEXT_(a)

const alpage::Isa alpage::ALPAGE_JOIN(isa_, ALPAGE_ISA){
    ALPAGE_TEXT(ALPAGE_ISA),
    {alpage::ALPAGE_ISA::kKernels<float>, alpage::ALPAGE_ISA::kKernels<alpage::ALPAGE_ISA::bfloat16>},
    alpage::ALPAGE_JOIN(rows_, ALPAGE_ISA),
    alpage::ALPAGE_JOIN(draw_, ALPAGE_ISA),
};
