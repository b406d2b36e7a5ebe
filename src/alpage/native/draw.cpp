// draw: see draw.h. Compiled once for each instruction set: ALPAGE_ISA is its name.
#include "draw.h"

#include "vectors.h"

namespace alpage::ALPAGE_ISA {
namespace {

constexpr float kLog2E = 1.44269504f;

template <class T>
ALPAGE_INLINE float at(const T* p) {
    if constexpr (sizeof(T) == 4) return *p;
    else return bit_cast<float>(uint32_t{p->bits} << 16);
}

template <class Word>
ALPAGE_INLINE Word mixed(Word x) {
    x = (x ^ (x >> 16)) * 0x85ebca6bu;
    x = (x ^ (x >> 13)) * 0xc2b2ae35u;
    return x ^ (x >> 16);
}

// Noise that depends on nothing but a row's key and a token's id, as `ops.sampling.gumbel` has it.
struct Noise {
    uint32_t factor, offset;

    explicit Noise(int64_t key) : factor(uint32_t(key) | 1), offset(uint32_t(uint64_t(key) >> 32)) {}

    template <class Word>
    Word bits(Word id) const {
        return mixed(mixed(id + 1) * factor + offset) >> 9;
    }

    float operator()(uint32_t id) const {
        const float uniform = (float(bits(id)) + 0.5f) * 0x1p-23f;
        return -__builtin_logf(-__builtin_logf(uniform));
    }
};

struct Best {
    float score;
    int64_t token;

    void meet(float other, int64_t id) {
        if (other > score || (other == score && id < token)) *this = {other, id};
    }
};

template <class T>
int64_t likeliest(const T* row, int64_t v) {
    Vec greatest = splat(-__builtin_inff());
    IntVec block{};
    const int64_t whole = v / kLanes * kLanes;
    for (int64_t i = 0; i < whole; i += kLanes) {
        const Vec x = load(row + i);
        const IntVec is_greater = x > greatest;
        greatest = is_greater ? x : greatest;
        block = is_greater ? IntVec{} + int32_t(i / kLanes) : block;
    }
    Best best{-__builtin_inff(), 0};
    for (int lane = 0; lane < kLanes && whole; ++lane)
        best.meet(greatest[lane], int64_t{block[lane]} * kLanes + lane);
    for (int64_t i = whole; i < v; ++i) best.meet(at(row + i), i);
    return best.token;
}

// Noise is -log(-log(u)), which is at most -log(1 - u), and log2(1 - u) is at least what the bits of the number say of
// it: so few tokens remain that could win, and only their noise is worked out.
template <class T>
int64_t drawn(const T* row, int64_t v, float temperature, Noise noise) {
    const int64_t first = likeliest(row, v);
    Best best{at(row + first) / temperature + noise(uint32_t(first)), first};
    const WordVec lanes = bit_cast<WordVec>(lane_numbers(Lanes{}));
    int64_t i = 0;
    for (; i + kLanes <= v; i += kLanes) {
        const Vec logit = load(row + i) / temperature;
        const IntVec bits = bit_cast<IntVec>(noise.bits(lanes + uint32_t(i)));
        const Vec left = (8388607.5f - __builtin_convertvector(bits, Vec)) * 0x1p-23f; // 1 - u, exactly
        const Vec log2_left = __builtin_convertvector(bit_cast<IntVec>(left), Vec) * 0x1p-23f - 127.0f;
        // A little more than rounding can take away.
        const IntVec could_win = log2_left <= (logit - best.score) * kLog2E + 1e-3f;
        uint64_t any[sizeof could_win / 8];
        memcpy(any, &could_win, sizeof any);
        uint64_t some = 0;
        for (uint64_t word : any) some |= word;
        if (!some) continue;
        for (int lane = 0; lane < kLanes; ++lane)
            if (could_win[lane]) best.meet(logit[lane] + noise(uint32_t(i + lane)), i + lane);
    }
    for (; i < v; ++i) best.meet(at(row + i) / temperature + noise(uint32_t(i)), i);
    return best.token;
}

template <class T>
void draw(const Draw& d, int64_t first, int64_t end) {
    for (int64_t r = first; r < end; ++r) {
        const T* row = static_cast<const T*>(d.logits_RV) + r * d.stride;
        const float temperature = d.temperature_R[r];
        d.token_R[r] = temperature > 0.0f ? drawn(row, d.v, temperature, Noise(d.key_R[r])) : likeliest(row, d.v);
    }
}

template <class T>
void log_sum_exp(const LogSumExp& l, int64_t first, int64_t end) {
    constexpr int kSums = 4; // that do not wait for each other
    for (int64_t r = first; r < end; ++r) {
        const T* row = static_cast<const T*>(l.logits_RV) + r * l.stride;
        const float top = at(row + likeliest(row, l.v));
        const float base = top == -__builtin_inff() ? 0.0f : top;
        Vec sums[kSums] = {};
        int64_t i = 0;
        for (; i + kSums * kLanes <= l.v; i += kSums * kLanes)
            for (int j = 0; j < kSums; ++j) sums[j] += exp2((load(row + i + j * kLanes) - base) * kLog2E);
        float total = sum_lanes((sums[0] + sums[1]) + (sums[2] + sums[3]))[0];
        for (; i < l.v; ++i) total += exp2(splat((at(row + i) - base) * kLog2E))[0];
        l.total_R[r] = base + __builtin_logf(total);
    }
}

template <class T>
constexpr DrawKernels kDraw{draw<T>, log_sum_exp<T>};

} // namespace
} // namespace alpage::ALPAGE_ISA

#define ALPAGE_JOIN_(a, b) a##b
#define ALPAGE_JOIN(a, b) ALPAGE_JOIN_(a, b)

const alpage::DrawKernels alpage::ALPAGE_JOIN(draw_, ALPAGE_ISA)[2] = {
    alpage::ALPAGE_ISA::kDraw<float>, alpage::ALPAGE_ISA::kDraw<alpage::ALPAGE_ISA::bfloat16>};
