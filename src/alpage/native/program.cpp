// program: see program.h.
#include "program.h"

#include <algorithm>
#include <climits>
#include <cstring>
#include <stdexcept>
#include <string>
#include <utility>

namespace alpage {
namespace {

constexpr int64_t kElement = 2; // bytes of a bfloat16

// A step of the tokens that this one keeps. Their keys and values are stored already.
StepData kept(const StepData& data) {
    if (data.kept_B1[0] != 0) throw std::out_of_range("the first token that is kept is not number 0");
    for (int i = 0; i < data.num_sequences; ++i) {
        const int num = data.kept_B1[i + 1] - data.kept_B1[i];
        const int limit = data.query_start_B1[i + 1] - data.query_start_B1[i];
        if (num < 0 || num > limit)
            throw std::out_of_range("a sequence keeps " + std::to_string(num) + " of its " + std::to_string(limit) +
                                    " tokens");
    }
    StepData of_kept = data;
    of_kept.num_tokens = data.kept_B1[data.num_sequences];
    of_kept.query_start_B1 = data.kept_B1;
    return of_kept;
}

} // namespace

// A step's buffers and pages.
struct Program::Frame {
    const StepData data;
    const Isa& isa;
    const std::vector<char*> rows; // the first of each buffer
    std::map<int, std::unique_ptr<AttentionPlan>> plans; // by window

    // Throws on a page, slot or token out of range.
    Frame(const Program& program, const StepData& data, std::vector<char*> rows)
        : data(data), isa(program.isa_), rows(std::move(rows)) {
        for (const auto& [window, heads] : program.plans_) {
            plans.emplace(window, std::make_unique<AttentionPlan>(attention(heads.first, heads.second, window)));
            check_slots(store(0, {heads.second, heads.first.head_dim}));
        }
    }

    char* at(Place place) const { return rows[place.buffer] + place.offset; }
    int64_t kv_element() const { return data.is_int8 ? 1 : kElement; }
    char* keys(int layer) const { return data.kv_L2PGSK + layer * data.layer_stride * kv_element(); }
    char* values(int layer) const { return keys(layer) + data.value_stride * kv_element(); }

    Attention attention(Heads heads, int num_kv_heads, int window) const {
        Attention a{};
        a.dtype = Dtype::bfloat16;
        a.query_start_B1 = data.query_start_B1;
        a.context_B = data.context_B;
        a.table_BP = data.table_BP;
        a.q_head_stride = a.out_head_stride = heads.head_dim;
        a.page_stride = data.page_stride;
        a.table_stride = data.table_stride;
        a.num_tokens = data.num_tokens;
        a.num_pages = data.num_pages;
        a.table_width = data.table_width;
        a.num_sequences = data.num_sequences;
        a.num_heads = heads.num_heads;
        a.num_kv_heads = num_kv_heads;
        a.head_dim = heads.head_dim;
        a.page_size = data.page_size;
        a.window = window;
        a.form = form_of(isa, Dtype::bfloat16, data.is_int8, data.page_size, heads.head_dim);
        return a;
    }

    KvStore store(int layer, Heads heads) const {
        KvStore s{};
        s.dtype = Dtype::bfloat16;
        s.k_PGSK = keys(layer);
        s.v_PGSK = values(layer);
        s.slot_T = data.slot_T;
        s.k_head_stride = s.v_head_stride = heads.head_dim;
        s.page_stride = data.page_stride;
        s.num_tokens = data.num_tokens;
        s.num_pages = data.num_pages;
        s.num_kv_heads = heads.num_heads;
        s.head_dim = heads.head_dim;
        s.page_size = data.page_size;
        s.form = form_of(isa, Dtype::bfloat16, data.is_int8, data.page_size, heads.head_dim);
        return s;
    }
};

void Program::add_rows(int64_t width, OfRows run) {
    if (stages_.empty() || stages_.back().whole) stages_.emplace_back();
    stages_.back().chain.push_back(std::move(run));
    stages_.back().width += width;
}

void Program::add_whole(OfTeam run) {
    stages_.emplace_back();
    stages_.back().whole = std::move(run);
}

void Program::rms_norm(Place x, Place y, const void* weight_D, int64_t d, float eps) {
    const int64_t x_stride = row_bytes(x) / kElement, y_stride = row_bytes(y) / kElement;
    add_rows(d, [=, kernel = isa_.rows[1].rms_norm](const Frame& f, int64_t first, int64_t end) {
        kernel({f.at(x), weight_D, f.at(y), x_stride, y_stride, end, d, eps}, first, end);
    });
}

void Program::silu_mul(Place both, Place y, int64_t width) {
    const int64_t x_stride = row_bytes(both) / kElement, y_stride = row_bytes(y) / kElement;
    add_rows(2 * width, [=, kernel = isa_.rows[1].silu_mul](const Frame& f, int64_t first, int64_t end) {
        kernel({f.at(both), f.at(y), x_stride, y_stride, end, width}, first, end);
    });
}

void Program::add(Place one, Place other, Place y, int64_t d) {
    const int64_t one_stride = row_bytes(one) / kElement, other_stride = row_bytes(other) / kElement;
    const int64_t y_stride = row_bytes(y) / kElement;
    add_rows(d, [=, kernel = isa_.rows[1].add](const Frame& f, int64_t first, int64_t end) {
        kernel({f.at(one), f.at(other), f.at(y), one_stride, other_stride, y_stride, end, d}, first, end);
    });
}

void Program::rotate(Place x, Place turn, Place y, Heads heads) {
    const int64_t x_stride = row_bytes(x) / kElement, y_stride = row_bytes(y) / kElement;
    const int64_t width = int64_t{heads.num_heads} * heads.head_dim;
    add_rows(width, [=, kernel = isa_.rows[1].rotate](const Frame& f, int64_t first, int64_t end) {
        const auto* turn_MK = reinterpret_cast<const float*>(f.at(turn));
        kernel({f.at(x), turn_MK, f.at(y), x_stride, heads.head_dim, y_stride, heads.head_dim, end, heads.num_heads,
                heads.head_dim},
               first, end);
    });
}

void Program::quantize(Place x, Place y, int64_t k) {
    const int64_t x_stride = row_bytes(x) / kElement, y_stride = row_bytes(y) / int64_t(sizeof(Group));
    add_rows(k, [=, kernel = linear_.quantize](const Frame& f, int64_t first, int64_t end) {
        const Quantization rounding{f.at(x), reinterpret_cast<Group*>(f.at(y)), x_stride, y_stride, k, kernel};
        alpage::quantize(rounding, first, end);
    });
}

void Program::multiply(Place x, Place y, const Matrix& w) {
    if (!linear_.multiply[static_cast<int>(w.weights)])
        throw std::invalid_argument("this processor has no products of such weights");
    const int64_t element = w.weights == Weights::bfloat16 ? kElement : int64_t(sizeof(Group));
    const int64_t x_stride = row_bytes(x) / element, y_stride = row_bytes(y) / kElement;
    add_whole([=, &kernels = linear_](Team& team, const Frame& f) {
        const Product product{w.weights, f.at(x), w.panels, w.scale, w.bias, f.at(y), x_stride, y_stride,
                              f.data.num_tokens, w.n, w.k};
        alpage::multiply(team, product, kernels);
    });
}

void Program::store_kv(Place k, Place v, int layer, Heads heads) {
    const int64_t k_stride = row_bytes(k) / kElement, v_stride = row_bytes(v) / kElement;
    const int64_t width = int64_t{2} * heads.num_heads * heads.head_dim;
    add_rows(width, [=](const Frame& f, int64_t first, int64_t end) {
        KvStore store = f.store(layer, heads);
        store.k_TGK = f.at(k);
        store.v_TGK = f.at(v);
        store.k_token_stride = k_stride;
        store.v_token_stride = v_stride;
        f.isa.store_kv(store, first, end);
    });
}

void Program::attend(Place q, Place y, int layer, Heads heads, int num_kv_heads, std::optional<int> window,
                     float scale) {
    const int64_t q_stride = row_bytes(q) / kElement, y_stride = row_bytes(y) / kElement;
    const int seen = window.value_or(INT_MAX);
    plans_.emplace(seen, std::pair(heads, num_kv_heads));
    add_whole([=](Team& team, const Frame& f) {
        Attention attention = f.attention(heads, num_kv_heads, seen);
        attention.q_THK = f.at(q);
        attention.out_THK = f.at(y);
        attention.k_PGSK = f.keys(layer);
        attention.v_PGSK = f.values(layer);
        attention.scale = scale;
        attention.q_token_stride = q_stride;
        attention.out_token_stride = y_stride;
        f.plans.at(seen)->run(team, attention, isa_);
    });
}

void Program::keep(std::vector<int> buffers) {
    add_whole([=, this](Team& team, const Frame& f) {
        if (!f.data.kept_B1) return;
        team.share(buffers.size(), [&](int64_t i) {
            const int64_t row = buffers_[buffers[i]].row_bytes;
            char* rows = f.rows[buffers[i]];
            // Rows move forward, sequence by sequence, so none is lost.
            for (int sequence = 0; sequence < f.data.num_sequences; ++sequence) {
                const int64_t to = f.data.kept_B1[sequence], num = f.data.kept_B1[sequence + 1] - to;
                std::memmove(rows + to * row, rows + (f.data.query_start_B1[sequence + 1] - num) * row, num * row);
            }
        });
    });
    stages_.back().is_keeping = true;
}

void Program::run(const StepData& data, int num_threads) const {
    std::vector<char*> rows;
    auto outside = data.outside.begin();
    for (const Buffer& buffer : buffers_)
        rows.push_back(buffer.start ? data.arena + *buffer.start * data.num_tokens : *outside++);
    const Frame of_all(*this, data, rows);
    std::optional<Frame> of_kept;
    if (data.kept_B1) of_kept.emplace(*this, kept(data), rows);
    with_team(num_threads, stages_.size(), [&](Team& team) {
        const Frame* frame = &of_all;
        for (const Stage& stage : stages_) {
            if (stage.whole) {
                stage.whole(team, *frame);
                if (stage.is_keeping && of_kept) frame = &*of_kept;
                continue;
            }
            const int64_t part = rows_at_a_time(stage.width), num = frame->data.num_tokens;
            team.share((num + part - 1) / part, [&](int64_t i) {
                for (const OfRows& run : stage.chain) run(*frame, i * part, std::min((i + 1) * part, num));
            });
        }
    });
}

} // namespace alpage
