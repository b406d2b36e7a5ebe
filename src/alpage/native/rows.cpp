// rows: see rows.h. Compiled once for each instruction set: ALPAGE_ISA is its name.
#include "rows.h"

#include "vectors.h"

namespace alpage::ALPAGE_ISA {
namespace {

template <class T>
ALPAGE_INLINE float widened(T x) {
    if constexpr (sizeof(T) == 4) return x;
    else return bit_cast<float>(uint32_t{x.bits} << 16);
}

// The last vector of a row, padded with zeros, goes through memory of its own.
template <class T>
ALPAGE_INLINE Vec load_part(const T* p, int64_t left) {
    if (left >= kLanes) return load(p);
    T part[kLanes] = {};
    for (int64_t i = 0; i < left; ++i) part[i] = p[i];
    return load(part);
}

template <class T>
ALPAGE_INLINE void store_part(T* p, Vec x, int64_t left) {
    if (left >= kLanes) return store(p, x);
    T part[kLanes];
    store(part, x);
    for (int64_t i = 0; i < left; ++i) p[i] = part[i];
}

template <class T>
void rms_norm(const RmsNorm& n, int64_t first, int64_t end) {
    const T* weight = static_cast<const T*>(n.weight_D);
    for (int64_t row = first; row < end; ++row) {
        const T* x = static_cast<const T*>(n.x_MD) + row * n.x_stride;
        T* y = static_cast<T*>(n.y_MD) + row * n.y_stride;
        Vec squares{};
        for (int64_t i = 0; i < n.d; i += kLanes) {
            const Vec part = load_part(x + i, n.d - i);
            squares += part * part;
        }
        const float scale = 1.0f / __builtin_sqrtf(sum_lanes(squares)[0] / float(n.d) + n.eps);
        for (int64_t i = 0; i < n.d; i += kLanes)
            store_part(y + i, load_part(x + i, n.d - i) * scale * load_part(weight + i, n.d - i), n.d - i);
    }
}

ALPAGE_INLINE Vec sigmoid(Vec x) {
    const Vec magnitude = x < 0.0f ? -x : x;
    const Vec e = exp2(magnitude * -1.44269504f);
    return (x < 0.0f ? e : splat(1.0f)) / (1.0f + e);
}

// Several vectors go side by side, since each waits for itself most of the time.
template <class T>
ALPAGE_INLINE void silu_mul_abreast(const T* gate, const T* up, T* y) {
    Vec x[kRegisterVectors], weight[kRegisterVectors];
    for (int j = 0; j < kRegisterVectors; ++j) x[j] = load(gate + j * kLanes);
    for (int j = 0; j < kRegisterVectors; ++j) weight[j] = sigmoid(x[j]);
    for (int j = 0; j < kRegisterVectors; ++j) store(y + j * kLanes, x[j] * weight[j] * load(up + j * kLanes));
}

template <class T>
void silu_mul(const SiluMul& s, int64_t first, int64_t end) {
    constexpr int64_t kAbreast = kRegisterVectors * kLanes;
    const int64_t f = s.f;
    for (int64_t row = first; row < end; ++row) {
        const T* gate = static_cast<const T*>(s.x_M2F) + row * s.x_stride;
        const T* up = gate + f;
        T* y = static_cast<T*>(s.y_MF) + row * s.y_stride;
        int64_t i = 0;
        for (; i + kAbreast <= f; i += kAbreast) silu_mul_abreast(gate + i, up + i, y + i);
        for (; i < f; i += kLanes) {
            const Vec x = load_part(gate + i, f - i);
            store_part(y + i, x * sigmoid(x) * load_part(up + i, f - i), f - i);
        }
    }
}

template <class T>
void rotate(const Rotation& r, int64_t first, int64_t end) {
    const int64_t half = r.head_dim / 2;
    for (int64_t token = first; token < end; ++token) {
        const float* cosine = r.turn_MK + token * r.head_dim;
        const float* sine = cosine + half;
        for (int64_t head = 0; head < r.num_heads; ++head) {
            const T* x = static_cast<const T*>(r.x_MHK) + token * r.x_token_stride + head * r.x_head_stride;
            T* y = static_cast<T*>(r.y_MHK) + token * r.y_token_stride + head * r.y_head_stride;
            for (int64_t i = 0; i < half; i += kLanes) {
                const int64_t left = half - i;
                const Vec one = load_part(x + i, left), other = load_part(x + half + i, left);
                const Vec c = load_part(cosine + i, left), s = load_part(sine + i, left);
                store_part(y + i, one * c - other * s, left);
                store_part(y + half + i, other * c + one * s, left);
            }
        }
    }
}

template <class T>
void add(const Sum& s, int64_t first, int64_t end) {
    for (int64_t row = first; row < end; ++row) {
        const T* one = static_cast<const T*>(s.one_MD) + row * s.one_stride;
        const T* other = static_cast<const T*>(s.other_MD) + row * s.other_stride;
        T* y = static_cast<T*>(s.y_MD) + row * s.y_stride;
        for (int64_t i = 0; i < s.d; i += kLanes) {
            const int64_t left = s.d - i;
            store_part(y + i, load_part(one + i, left) + load_part(other + i, left), left);
        }
    }
}

template <class T>
constexpr RowKernels kRows{rms_norm<T>, silu_mul<T>, rotate<T>, add<T>};

} // namespace
} // namespace alpage::ALPAGE_ISA

#define ALPAGE_JOIN_(a, b) a##b
#define ALPAGE_JOIN(a, b) ALPAGE_JOIN_(a, b)

const alpage::RowKernels alpage::ALPAGE_JOIN(rows_, ALPAGE_ISA)[2] = {
    alpage::ALPAGE_ISA::kRows<float>, alpage::ALPAGE_ISA::kRows<alpage::ALPAGE_ISA::bfloat16>};
