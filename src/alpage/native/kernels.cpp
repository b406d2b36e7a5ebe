// kernels: attention of one tile of rows over pages, by blocks of keys with a running softmax.
//
// The online softmax is that of Milakov & Gimelshein (2018), arXiv:1805.02867; going through keys in blocks while the
// scores stay in cache is FlashAttention, Dao et al. (2022), arXiv:2205.14135, section 3.1; splits over keys that are
// joined at the end are Flash-Decoding. Compiled once for each instruction set: ALPAGE_ISA is its name.
#include "int8_pages.h"

namespace alpage::ALPAGE_ISA {
namespace {

constexpr float kLog2E = 1.44269504f;

ALPAGE_INLINE int first_seen(const Attention& a, int position) { return greater(0, position - a.window + 1); }

template <class T, class Pages>
class TileKernel {
  public:
    TileKernel(const Attention& a, const Tile& tile, Scratch& s)
        : a_(a), tile_(tile), s_(s), pages_(a, tile, s), units_(a.head_dim / Dot<T>::kElements),
          split_(softmax_at(s.split_memory, tile.total_rows(), a.head_dim)),
          whole_(softmax_at(s.whole_memory, tile.total_rows(), a.head_dim)) {}

    Softmax attend() {
        clear(whole_);
        for_each_split([&](int) { join(whole_, split_); });
        return whole_;
    }

    void attend_splits(float* const* partials) {
        const int64_t rows = tile_.num_kv_heads * tile_.rows_each, width = column_width(a_.head_dim);
        for_each_split([&](int number) {
            for (int i = 0; i < tile_.total_rows() / rows; ++i) {
                const Softmax to = softmax_at(partials[i] + number * softmax_floats(rows, a_.head_dim), rows, a_.head_dim);
                memcpy(to.values, split_.values + i * rows * width, rows * width * sizeof(float));
                memcpy(to.top, split_.top + i * rows, rows * sizeof(float));
                memcpy(to.sum, split_.sum + i * rows, rows * sizeof(float));
            }
        });
    }

    void clear(Softmax& softmax) {
        for (int64_t i = 0; i < tile_.total_rows() * column_width(a_.head_dim); ++i) softmax.values[i] = 0.0f;
        for (int r = 0; r < tile_.total_rows(); ++r) {
            softmax.top[r] = -__builtin_inff();
            softmax.sum[r] = 0.0f;
        }
    }

    // A row that has seen no key has sum 0; a NaN is not 0 and goes through.
    __attribute__((noinline)) void join(Softmax& into, const Softmax& from) {
        const int64_t width = column_width(a_.head_dim);
        for (int r = 0; r < tile_.total_rows(); ++r) {
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
        for (int r = 0; r < tile_.total_rows(); ++r) {
            const int row = tile_.row_of(r);
            T* out = static_cast<T*>(a_.out_THK) +
                     (a_.query_start_B1[tile_.sequence_of(r)] + row / group) * a_.out_token_stride +
                     (tile_.kv_head_of(r) * group + row % group) * a_.out_head_stride;
            const Vec scale = splat(1.0f / softmax.sum[r]);
            for (int c = 0; c < num_columns(a_); ++c)
                store(out + column(a_, c), load(softmax.values + r * width + c * kLanes) * scale);
        }
    }

  private:
    // Calls f(0), f(1) and so on with the softmax over each split in split_.
    template <class F>
    void for_each_split(F f) {
        load_queries();
        const int oldest = first_seen(a_, s_.position[0]);
        const int end = smaller(s_.position[tile_.num_rows - 1] + 1, tile_.end_split * kSplitKeys);
        for (int split = tile_.first_split; split < tile_.end_split; ++split) {
            const int begin = split * kSplitKeys;
            attend_to(begin, {greater(oldest - begin, 0), smaller(end - begin, kSplitKeys)}, end);
            f(split - tile_.first_split);
        }
    }

    void load_queries() {
        const int group = a_.num_heads / a_.num_kv_heads;
        for (int r = 0; r < tile_.total_rows(); ++r) {
            const int sequence = tile_.sequence_of(r), row = tile_.row_of(r);
            const int start = a_.query_start_B1[sequence];
            const int past = a_.context_B[sequence] - (a_.query_start_B1[sequence + 1] - start);
            const int token = row / group, head = tile_.kv_head_of(r) * group + row % group;
            s_.position[r] = past + token;
            const T* q = static_cast<const T*>(a_.q_THK) + (start + token) * a_.q_token_stride +
                         head * a_.q_head_stride;
            for (int u = 0; u < units_; ++u) s_.query[r * units_ + u] = Dot<T>::unit(q + u * Dot<T>::kElements);
        }
    }

    // Leaves in split_ the softmax over keys [begin + keys.begin, begin + keys.end); those of the tile end at `end`. Heads
    // go through a block one after the other: what pages hold of them lies side by side, and is read as it lies.
    void attend_to(int begin, Span keys, int end) {
        clear(split_);
        pages_.find(begin, keys, end);
        for (int block = keys.begin / kBlockKeys * kBlockKeys; block < keys.end; block += kBlockKeys) {
            const Span seen{greater(keys.begin - block, 0), smaller(keys.end - block, kBlockKeys)};
            for (int head = 0; head < tile_.num_kv_heads; ++head) {
                const int first = head * tile_.num_rows;
                pages_.enter(block, head, seen);
                score(first, seen);
                weigh(first, begin + block);
                add_values(first, seen);
            }
        }
    }

    // Scores of the head's rows, which begin at `first` of the tile; `r` counts from there.
    __attribute__((noinline)) void score(int first, Span seen) {
        for (int r = 0; r < tile_.num_rows; r += kRegisterRows)
            with_count(smaller(tile_.num_rows - r, kRegisterRows), [&](auto rows) {
                score_rows<rows.value>(first, r, seen);
            });
    }

    template <int Rows>
    __attribute__((always_inline)) inline void score_rows(int first, int r, Span seen) {
        constexpr int kKeys = kRegisterVectors * kLanes;
        for (int k = seen.begin / kKeys * kKeys; k < seen.end; k += kKeys) {
            if (r == 0) score_keys<Rows, Pages::kFetchesUnits>(first, r, k);
            else score_keys<Rows, false>(first, r, k);
        }
    }

    // Scores as many keys as registers hold, and fetches what `next_units` gives as it goes.
    template <int Rows, bool IsFetching>
    __attribute__((always_inline)) inline void score_keys(int first, int r, int k) {
        const int units = units_;
        const float* q = s_.query + (first + r) * units;
        const float* key[kRegisterVectors];
        const float* next[kRegisterVectors];
        for (int j = 0; j < kRegisterVectors; ++j) {
            key[j] = pages_.units(k / kLanes + j);
            if constexpr (IsFetching) next[j] = pages_.next_units(k / kLanes + j);
        }
        Vec sum[Rows][kRegisterVectors] = {};
        for (int u = 0; u < units; ++u)
            for (int j = 0; j < kRegisterVectors; ++j) {
                const Vec unit = load(key[j] + u * Pages::kUnitStride);
                if constexpr (IsFetching) __builtin_prefetch(next[j] + u * Pages::kUnitStride);
                for (int i = 0; i < Rows; ++i) sum[i][j] = Dot<T>::add(sum[i][j], q[i * units + u], unit);
            }
        for (int i = 0; i < Rows; ++i)
            for (int j = 0; j < kRegisterVectors; ++j)
                store(s_.score + (r + i) * kBlockKeys + k + j * kLanes, sum[i][j]);
    }

    __attribute__((noinline)) void weigh(int first, int block) {
        for (int r = 0; r < tile_.num_rows; r += kRegisterRows)
            with_count(smaller(tile_.num_rows - r, kRegisterRows), [&](auto rows) {
                weigh_rows<rows.value>(first + r, s_.score + r * kBlockKeys, block);
            });
    }

    // Turns scores of the tile's rows from `row` on into weights relative to their greatest scores so far. Rows go side
    // by side, since each waits for itself most of the time.
    template <int Rows>
    __attribute__((always_inline)) inline void weigh_rows(int row, float* score, int block) {
        const float scale = a_.scale * kLog2E;
        Vec greatest[Rows];
        for (int i = 0; i < Rows; ++i) {
            const int position = s_.position[row + i];
            const int oldest = first_seen(a_, position) - block, newest = position - block;
            greatest[i] = splat(-__builtin_inff());
            for (int k = 0; k < kBlockKeys; k += kLanes) {
                float* at = score + i * kBlockKeys + k;
                const IntVec key = lane_numbers(Lanes{}) + k;
                const Vec scaled = pages_.scaled_score(load(at), k) * scale;
                const Vec x = (key >= oldest) & (key <= newest) ? scaled : splat(-__builtin_inff());
                store(at, x);
                greatest[i] = greater(greatest[i], x);
            }
        }
        Vec sum[Rows] = {}, base[Rows], rescale[Rows];
        for (int i = 0; i < Rows; ++i) {
            const Vec before = splat(split_.top[row + i]);
            const Vec top = greater(before, greatest_lane(greatest[i]));
            base[i] = top == -__builtin_inff() ? Vec{} : top;
            rescale[i] = exp2(before - base[i]);
            split_.top[row + i] = top[0];
        }
        for (int k = 0; k < kBlockKeys; k += kLanes)
            for (int i = 0; i < Rows; ++i) {
                float* at = score + i * kBlockKeys + k;
                const Vec weight = Pages::rounded(exp2(load(at) - base[i]));
                store(at, pages_.scaled_weight(weight, k));
                sum[i] += weight;
            }
        for (int i = 0; i < Rows; ++i) {
            s_.rescale[row + i] = rescale[i][0];
            split_.sum[row + i] = split_.sum[row + i] * rescale[i][0] + sum_lanes(sum[i])[0];
        }
    }

    __attribute__((noinline)) void add_values(int first, Span seen) {
        const int num = num_columns(a_);
        for (int c = 0; c < num; c += kRegisterVectors)
            with_count(smaller(num - c, kRegisterVectors), [&](auto columns) {
                for (int r = 0; r < tile_.num_rows; r += kRegisterRows)
                    with_count(smaller(tile_.num_rows - r, kRegisterRows), [&](auto rows) {
                        add_to_columns<rows.value, columns.value>(first, r, c, seen);
                    });
            });
    }

    template <int Rows, int Columns>
    __attribute__((always_inline)) inline void add_to_columns(int first, int r, int c, Span seen) {
        const int64_t width = column_width(a_.head_dim);
        float* values = split_.values + (first + r) * width + c * kLanes;
        Vec sum[Rows][Columns];
        for (int i = 0; i < Rows; ++i)
            for (int j = 0; j < Columns; ++j)
                sum[i][j] = load(values + i * width + j * kLanes) * s_.rescale[first + r + i];
        const float* weight = s_.score + r * kBlockKeys;
        if (r == 0) pages_.template add_values<Rows, Columns, true>(sum, weight, c, seen);
        else pages_.template add_values<Rows, Columns, false>(sum, weight, c, seen);
        for (int i = 0; i < Rows; ++i)
            for (int j = 0; j < Columns; ++j) store(values + i * width + j * kLanes, sum[i][j]);
    }

    const Attention& a_;
    const Tile& tile_;
    Scratch& s_;
    Pages pages_;
    const int units_;
    Softmax split_, whole_;
};

template <class T, class Pages>
void attend(const Attention& a, const Tile& tile) {
    Scratch scratch;
    TileKernel<T, Pages> kernel(a, tile, scratch);
    kernel.write(kernel.attend());
}

template <class T, class Pages>
void attend_splits(const Attention& a, const Tile& tile, float* const* partials) {
    Scratch scratch;
    TileKernel<T, Pages>(a, tile, scratch).attend_splits(partials);
}

template <class T, class Pages>
void join_splits(const Attention& a, const Tile& tile, float* partials) {
    Scratch scratch;
    TileKernel<T, Pages> kernel(a, tile, scratch);
    Softmax whole = softmax_at(scratch.whole_memory, tile.total_rows(), a.head_dim);
    kernel.clear(whole);
    for (int split = tile.first_split; split < tile.end_split; ++split) {
        kernel.join(whole, softmax_at(partials, tile.total_rows(), a.head_dim));
        partials += softmax_floats(tile.total_rows(), a.head_dim);
    }
    kernel.write(whole);
}

template <class T, class Pages = RowPages<T>>
constexpr Kernels kKernels{attend<T, Pages>, attend_splits<T, Pages>, join_splits<T, Pages>};

template <class T>
constexpr Kernels kInt8Kernels = kKernels<T, Int8Pages<RowPages<Wide<T>>, Wide<T>, 1>>;

#if defined(__AVX512BF16__)
constexpr Kernels kPairKernels = kKernels<bfloat16, PairPages>;
constexpr Kernels kInt8PairKernels = kKernels<bfloat16, Int8Pages<PairPages, bfloat16, kPairTokens>>;
constexpr const Kernels* kPairs = &kPairKernels;
constexpr const Kernels* kInt8Pairs = &kInt8PairKernels;
#else
constexpr const Kernels* kPairs = nullptr;
constexpr const Kernels* kInt8Pairs = nullptr;
#endif

} // namespace
} // namespace alpage::ALPAGE_ISA

#define ALPAGE_JOIN_(a, b) a##b
#define ALPAGE_JOIN(a, b) ALPAGE_JOIN_(a, b)
#define ALPAGE_TEXT_(a) #a
#define ALPAGE_TEXT(a) ALPAGE_TEXT_(a)

const alpage::Isa alpage::ALPAGE_JOIN(isa_, ALPAGE_ISA){
    ALPAGE_TEXT(ALPAGE_ISA),
    {alpage::ALPAGE_ISA::kKernels<float>, alpage::ALPAGE_ISA::kKernels<alpage::ALPAGE_ISA::bfloat16>},
    alpage::ALPAGE_ISA::kPairs,
    {alpage::ALPAGE_ISA::kInt8Kernels<float>, alpage::ALPAGE_ISA::kInt8Kernels<alpage::ALPAGE_ISA::bfloat16>},
    alpage::ALPAGE_ISA::kInt8Pairs,
    alpage::ALPAGE_JOIN(rows_, ALPAGE_ISA),
    alpage::ALPAGE_JOIN(draw_, ALPAGE_ISA),
    alpage::ALPAGE_JOIN(store_kv_, ALPAGE_ISA),
    &alpage::ALPAGE_JOIN(linear_, ALPAGE_ISA),
};
