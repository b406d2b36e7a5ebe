// kv_store: see kv_store.h. Compiled once for each instruction set: ALPAGE_ISA is its name.
#include "kv_store.h"

#include "vectors.h"

namespace alpage::ALPAGE_ISA {
namespace {

// Where number i of a token lies in its tile, by the token's place: `first`, and from pair to pair of numbers `step`.
struct Order {
    int64_t first, pair_step, step;
};

Order order_of_keys(int64_t place, bool is_pairs, int head_dim) {
    if (!is_pairs) return {place * head_dim, 2, 1};
    return {place / kPairTokens * kPairTokens * head_dim + place % kPairTokens * 2, 2 * kPairTokens, 1};
}

Order order_of_values(int64_t place, bool is_pairs, int head_dim) {
    if (!is_pairs) return {place * head_dim, 2, 1};
    return {place / 2 * 2 * head_dim + place % 2, 4, 2};
}

// Writes a token's key or value of one head into its tile. Head dims are even where tiles are in pairs.
template <class Number>
void put(const Number* from, Number* tile, const Order& order, bool is_pairs, int head_dim) {
    Number* to = tile + order.first;
    if (!is_pairs) {
        memcpy(to, from, head_dim * sizeof(Number));
    } else if (order.step == 1) {
        for (int i = 0; i < head_dim; i += 2, to += order.pair_step) memcpy(to, from + i, 2 * sizeof(Number));
    } else {
        for (int i = 0; i < head_dim; i += 2, to += order.pair_step) {
            to[0] = from[i];
            to[order.step] = from[i + 1];
        }
    }
}

ALPAGE_INLINE float widened(float x) { return x; }
ALPAGE_INLINE float widened(bfloat16 x) { return bit_cast<float>(uint32_t{x.bits} << 16); }

// Rounds to whole numbers of [-127, 127], ties to even, times a scale, which is returned. What is neither finite nor 0 gives a scale
// that says so, and so does what is too small for one.
template <class T>
float round_to_int8(const T* from, int8_t* to, int num) {
    float x[kMaxHeadDim];
    uint32_t greatest = 0; // bits of magnitudes are ordered as these are, a NaN above all
    for (int i = 0; i < num; ++i) {
        x[i] = widened(from[i]);
        greatest = greater(greatest, bit_cast<uint32_t>(x[i]) & 0x7fffffffu);
    }
    const float top = bit_cast<float>(greatest);
    const float scale = top / 127.0f, inverse = 1.0f / scale;
    if (!__builtin_isfinite(top) || !__builtin_isfinite(inverse)) {
        memset(to, 0, num);
        return scale;
    }
    for (int i = 0; i < num; ++i) to[i] = int8_t(int32_t(__builtin_rintf(x[i] * inverse)));
    return scale;
}

template <class T>
void store_as_int8(const T* from, char* tile, int64_t place, const Order& order, const KvStore& s) {
    int8_t numbers[kMaxHeadDim];
    const float scale = round_to_int8(from, numbers, s.head_dim);
    put(numbers, reinterpret_cast<int8_t*>(tile), order, s.form == TileForm::int8_pairs, s.head_dim);
    memcpy(tile + int64_t{s.page_size} * s.head_dim + place * kScaleBytes, &scale, kScaleBytes);
}

template <class T>
void store_tokens(const KvStore& s, int64_t first, int64_t end) {
    const bool is_8 = is_int8(s.form), is_pairs = s.form == TileForm::pairs || s.form == TileForm::int8_pairs;
    const int64_t element = is_8 ? 1 : sizeof(T);
    const int64_t tile_bytes = int64_t{s.page_size} * (s.head_dim * element + (is_8 ? kScaleBytes : 0));
    const auto store = [&](const T* from, char* tile, int64_t place, const Order& order) {
        if (is_8) store_as_int8(from, tile, place, order, s);
        else put(from, reinterpret_cast<T*>(tile), order, is_pairs, s.head_dim);
    };
    for (int64_t t = first; t < end; ++t) {
        const int64_t page = s.slot_T[t] / s.page_size, place = s.slot_T[t] % s.page_size;
        const Order keys = order_of_keys(place, is_pairs, s.head_dim);
        const Order values = order_of_values(place, is_pairs, s.head_dim);
        for (int64_t g = 0; g < s.num_kv_heads; ++g) {
            const int64_t tile = page * s.page_stride * element + g * tile_bytes;
            const T* k = static_cast<const T*>(s.k_TGK) + t * s.k_token_stride + g * s.k_head_stride;
            const T* v = static_cast<const T*>(s.v_TGK) + t * s.v_token_stride + g * s.v_head_stride;
            store(k, static_cast<char*>(s.k_PGSK) + tile, place, keys);
            store(v, static_cast<char*>(s.v_PGSK) + tile, place, values);
        }
    }
}

} // namespace
} // namespace alpage::ALPAGE_ISA

#define ALPAGE_JOIN_(a, b) a##b
#define ALPAGE_JOIN(a, b) ALPAGE_JOIN_(a, b)

void alpage::ALPAGE_JOIN(store_kv_, ALPAGE_ISA)(const KvStore& s, int64_t first, int64_t end) {
    if (s.dtype == Dtype::float32) alpage::ALPAGE_ISA::store_tokens<float>(s, first, end);
    else alpage::ALPAGE_ISA::store_tokens<alpage::ALPAGE_ISA::bfloat16>(s, first, end);
}
