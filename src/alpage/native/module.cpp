// module: the Python face, `alpage.native._kernels`. Pointers come in as integers, strides count elements.
#include <nanobind/nanobind.h>
#include <nanobind/stl/optional.h>
#include <nanobind/stl/pair.h>
#include <nanobind/stl/string.h>
#include <nanobind/stl/vector.h>

#include <algorithm>
#include <climits>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

#include "linear.h"
#include "memory.h"
#include "plan.h"
#include "program.h"
#include "threads.h"

namespace nb = nanobind;
using namespace nb::literals;

namespace alpage {
namespace {

// What was compiled and this machine has, best first.
std::vector<const Isa*> available() {
    std::vector<const Isa*> found;
#if defined(ALPAGE_HAS_AVX512_BF16)
    if (__builtin_cpu_supports("avx512bf16") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        found.push_back(&isa_avx512_bf16);
#endif
#if defined(ALPAGE_HAS_AVX512)
    if (__builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        found.push_back(&isa_avx512);
#endif
#if defined(ALPAGE_HAS_AVX2)
    if (__builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")) found.push_back(&isa_avx2);
#endif
    found.push_back(&isa_portable);
    return found;
}

std::vector<std::string> isas() {
    std::vector<std::string> names;
    for (const Isa* isa : available()) names.emplace_back(isa->name);
    return names;
}

const Isa& choose(const std::optional<std::string>& name) {
    static const std::vector<const Isa*> found = available();
    if (!name) return *found.front();
    for (const Isa* isa : found)
        if (*name == isa->name) return *isa;
    throw std::invalid_argument("isa=" + *name + " is not available here");
}

Dtype dtype_of(const std::string& name) {
    if (name == "float32") return Dtype::float32;
    if (name == "bfloat16") return Dtype::bfloat16;
    throw std::invalid_argument("dtype=" + name + " is neither float32 nor bfloat16");
}

void require(bool holds, const char* what) {
    if (!holds) throw std::invalid_argument(what);
}

void require_head_dim(int head_dim) {
    require(head_dim % 8 == 0 && kMinHeadDim <= head_dim && head_dim <= kMaxHeadDim,
            "the head dim is no multiple of 8 in [16, 256]");
}

template <class Element = void>
Element* at(uintptr_t address) {
    return reinterpret_cast<Element*>(address);
}

template <class Work>
void for_each_row(int64_t num_rows, int64_t width, int num_threads, const Work& work,
                  void (*run)(const Work&, int64_t, int64_t)) {
    const int64_t part = rows_at_a_time(width);
    for_each((num_rows + part - 1) / part, num_threads, [&](int64_t i) {
        run(work, i * part, std::min((i + 1) * part, num_rows));
    });
}

void py_store_kv(const std::string& dtype, bool is_int8, uintptr_t k_TGK, uintptr_t v_TGK, uintptr_t k_PGSK, uintptr_t v_PGSK,
                 uintptr_t slot_T, int64_t k_token_stride, int64_t k_head_stride, int64_t v_token_stride,
                 int64_t v_head_stride, int64_t page_stride, int64_t num_tokens, int64_t num_pages, int num_kv_heads,
                 int head_dim, int page_size, int num_threads,
                 const std::optional<std::string>& isa) {
    require(num_kv_heads > 0 && page_size > 0, "an empty page holds nothing");
    require_head_dim(head_dim);
    const KvStore store{dtype_of(dtype), at<>(k_TGK), at<>(v_TGK), at<>(k_PGSK), at<>(v_PGSK), at<int64_t>(slot_T),
                        k_token_stride, k_head_stride, v_token_stride, v_head_stride, page_stride, num_tokens,
                        num_pages, num_kv_heads, head_dim, page_size,
                        form_of(choose(isa), dtype_of(dtype), is_int8, page_size, head_dim)};
    check_slots(store);
    for_each_row(num_tokens, 2 * num_kv_heads * head_dim, num_threads, store, choose(isa).store_kv);
}

void py_paged_attention(const std::string& dtype, bool is_int8, uintptr_t q_THK, uintptr_t out_THK, uintptr_t k_PGSK,
                        uintptr_t v_PGSK, uintptr_t query_start_B1, uintptr_t context_B, uintptr_t table_BP,
                        int64_t q_token_stride, int64_t q_head_stride, int64_t out_token_stride,
                        int64_t out_head_stride, int64_t page_stride, int64_t table_stride, int64_t num_tokens,
                        int64_t num_pages, int64_t table_width, int num_sequences, int num_heads, int num_kv_heads,
                        int head_dim, int page_size, std::optional<int> window, float scale, int num_threads,
                        const std::optional<std::string>& isa) {
    require(num_kv_heads > 0 && num_heads % num_kv_heads == 0, "query heads do not divide among key/value heads");
    require_head_dim(head_dim);
    require(page_size > 0, "an empty page holds nothing");
    require(!window || *window > 0, "an empty window sees nothing");
    require(scale > 0.0f, "the scale is not positive");
    const Isa& chosen = choose(isa);
    const Attention attention{dtype_of(dtype), at<>(q_THK), at<>(out_THK), at<>(k_PGSK), at<>(v_PGSK),
                     at<int32_t>(query_start_B1), at<int32_t>(context_B), at<int32_t>(table_BP), q_token_stride,
                     q_head_stride, out_token_stride, out_head_stride, page_stride, table_stride, num_tokens,
                     num_pages, table_width, num_sequences, num_heads, num_kv_heads, head_dim, page_size,
                     window.value_or(INT_MAX), scale,
                     form_of(chosen, dtype_of(dtype), is_int8, page_size, head_dim)};
    AttentionPlan plan(attention);
    with_team(num_threads, 1, [&](Team& team) { plan.run(team, attention, chosen); });
}

int64_t py_num_splits(uintptr_t query_start_B1, uintptr_t context_B, uintptr_t table_BP, int64_t table_stride,
                      int64_t table_width, int64_t num_tokens, int64_t num_pages, int num_sequences, int num_heads,
                      int num_kv_heads, int page_size, std::optional<int> window) {
    require(num_kv_heads > 0 && num_heads % num_kv_heads == 0, "query heads do not divide among key/value heads");
    require(page_size > 0, "an empty page holds nothing");
    Attention attention{};
    attention.query_start_B1 = at<int32_t>(query_start_B1);
    attention.context_B = at<int32_t>(context_B);
    attention.table_BP = at<int32_t>(table_BP);
    attention.table_stride = table_stride;
    attention.table_width = table_width;
    attention.num_tokens = num_tokens;
    attention.num_pages = num_pages;
    attention.num_sequences = num_sequences;
    attention.num_heads = num_heads;
    attention.num_kv_heads = num_kv_heads;
    attention.head_dim = kMinHeadDim;
    attention.page_size = page_size;
    attention.window = window.value_or(INT_MAX);
    return AttentionPlan(attention).num_splits();
}

const RowKernels& rows_of(const std::string& dtype, const std::optional<std::string>& isa) {
    return choose(isa).rows[static_cast<int>(dtype_of(dtype))];
}

void py_rms_norm(const std::string& dtype, uintptr_t x, int64_t x_stride, uintptr_t weight, uintptr_t y,
                 int64_t y_stride, int64_t m, int64_t d, float eps, int num_threads,
                 const std::optional<std::string>& isa) {
    for_each_row(m, d, num_threads, RmsNorm{at<>(x), at<>(weight), at<>(y), x_stride, y_stride, m, d, eps},
                 rows_of(dtype, isa).rms_norm);
}

void py_silu_mul(const std::string& dtype, uintptr_t x, int64_t x_stride, uintptr_t y, int64_t y_stride, int64_t m,
                 int64_t f, int num_threads, const std::optional<std::string>& isa) {
    for_each_row(m, 2 * f, num_threads, SiluMul{at<>(x), at<>(y), x_stride, y_stride, m, f},
                 rows_of(dtype, isa).silu_mul);
}

void py_rotate(const std::string& dtype, uintptr_t x, int64_t x_token_stride, int64_t x_head_stride, uintptr_t turn,
               uintptr_t y, int64_t y_token_stride, int64_t y_head_stride, int64_t m, int num_heads, int head_dim,
               int num_threads, const std::optional<std::string>& isa) {
    require(head_dim % 2 == 0, "an odd head dim has no pairs");
    for_each_row(m, int64_t{num_heads} * head_dim, num_threads,
                 Rotation{at<>(x), at<float>(turn), at<>(y), x_token_stride, x_head_stride, y_token_stride,
                          y_head_stride, m, num_heads, head_dim},
                 rows_of(dtype, isa).rotate);
}

void py_draw(const std::string& dtype, uintptr_t logits, int64_t stride, int64_t r, int64_t v, uintptr_t temperature,
             uintptr_t key, uintptr_t token, int num_threads, const std::optional<std::string>& isa) {
    require(v > 0, "there is nothing to draw from");
    for_each_row(r, v, num_threads,
                 Draw{at<>(logits), stride, v, at<float>(temperature), at<int64_t>(key), at<int64_t>(token)},
                 choose(isa).draw[static_cast<int>(dtype_of(dtype))].draw);
}

void py_log_sum_exp(const std::string& dtype, uintptr_t logits, int64_t stride, int64_t r, int64_t v, uintptr_t total,
                    int num_threads, const std::optional<std::string>& isa) {
    require(v > 0, "there is nothing to sum");
    for_each_row(r, v, num_threads, LogSumExp{at<>(logits), stride, v, at<float>(total)},
                 choose(isa).draw[static_cast<int>(dtype_of(dtype))].log_sum_exp);
}

// The one set that needs more than its instruction set's name says.
const LinearKernels& linear_of(const Isa& isa) {
#if defined(ALPAGE_HAS_LINEAR)
    if (&isa == &isa_avx512_bf16 && __builtin_cpu_supports("avx512vnni")) return linear_avx512_vnni;
#endif
    return *isa.linear;
}

void py_pack(uintptr_t w, int64_t stride_bytes, int64_t n, int64_t row_bytes, uintptr_t panels, int num_threads) {
    pack(at<char>(w), stride_bytes, n, row_bytes, at<char>(panels), num_threads);
}

Weights weights_of(const std::string& name) {
    if (name == "bfloat16") return Weights::bfloat16;
    if (name == "int8") return Weights::int8;
    if (name == "int8_groups") return Weights::int8_groups;
    if (name == "int4") return Weights::int4;
    throw std::invalid_argument("weights=" + name + " is not bfloat16, int8, int8_groups or int4");
}

void py_multiply(const std::string& weights, uintptr_t x, int64_t x_stride, uintptr_t panels, uintptr_t scale,
                 uintptr_t bias, uintptr_t y, int64_t y_stride, int64_t m, int64_t n, int64_t k, uintptr_t groups,
                 int num_threads, const std::optional<std::string>& isa) {
    const LinearKernels& kernels = linear_of(choose(isa));
    Product product{weights_of(weights), at<>(x), at<>(panels), at<float>(scale), at<float>(bias), at<>(y), x_stride,
                    y_stride, m, n, k};
    require(kernels.multiply[static_cast<int>(product.weights)], "this processor has no products of such weights");
    if (product.weights != Weights::bfloat16) {
        product.x = at<>(groups);
        product.x_stride = divided_up(k, kGroup);
        const Quantization rounding{at<>(x), at<Group>(groups), x_stride, product.x_stride, k, kernels.quantize};
        for_each_row(m, k, num_threads, rounding, quantize);
    }
    with_team(num_threads, 1, [&](Team& team) { multiply(team, product, kernels); });
}

using PlaceArgument = std::pair<int, int64_t>; // buffer and bytes into each row
using HeadsArgument = std::pair<int, int>;     // heads and head dim

Place to_place(PlaceArgument p) { return {p.first, p.second}; }
Heads to_heads(HeadsArgument h) { return {h.first, h.second}; }

void add_program(nb::module_& m) {
    nb::class_<Program>(m, "Program")
        .def("__init__",
             [](Program* self, const std::vector<std::pair<std::optional<int64_t>, int64_t>>& buffers,
                const std::optional<std::string>& isa) {
                 std::vector<Buffer> made;
                 for (const auto& [start, row_bytes] : buffers) made.push_back({start, row_bytes});
                 const Isa& chosen = choose(isa);
                 new (self) Program(std::move(made), chosen, linear_of(chosen));
             })
        .def("rms_norm",
             [](Program& self, PlaceArgument x, PlaceArgument y, uintptr_t weight_D, int64_t d, float eps) {
                 self.rms_norm(to_place(x), to_place(y), at<>(weight_D), d, eps);
             })
        .def("silu_mul", [](Program& self, PlaceArgument both, PlaceArgument y,
                            int64_t f) { self.silu_mul(to_place(both), to_place(y), f); })
        .def("add", [](Program& self, PlaceArgument one, PlaceArgument other, PlaceArgument y,
                       int64_t d) { self.add(to_place(one), to_place(other), to_place(y), d); })
        .def("rotate", [](Program& self, PlaceArgument x, PlaceArgument turn, PlaceArgument y,
                          HeadsArgument heads) { self.rotate(to_place(x), to_place(turn), to_place(y), to_heads(heads)); })
        .def("quantize", [](Program& self, PlaceArgument x, PlaceArgument y,
                            int64_t k) { self.quantize(to_place(x), to_place(y), k); })
        .def(
            "multiply",
            [](Program& self, PlaceArgument x, PlaceArgument y, const std::string& weights, uintptr_t panels,
               uintptr_t scale, uintptr_t bias, int64_t n, int64_t k) {
                self.multiply(to_place(x), to_place(y),
                              {weights_of(weights), at<>(panels), at<float>(scale), at<float>(bias), n, k});
            },
            "x"_a, "y"_a, "weights"_a, "panels"_a, "scale"_a, "bias"_a, "n"_a, "k"_a)
        .def("store_kv", [](Program& self, PlaceArgument k, PlaceArgument v, int layer,
                            HeadsArgument heads) { self.store_kv(to_place(k), to_place(v), layer, to_heads(heads)); })
        .def("keep", &Program::keep)
        .def(
            "attend",
            [](Program& self, PlaceArgument q, PlaceArgument y, int layer, HeadsArgument heads, int num_kv_heads,
               std::optional<int> window, float scale) {
                require(num_kv_heads > 0 && heads.first % num_kv_heads == 0,
                        "query heads do not divide among key/value heads");
                self.attend(to_place(q), to_place(y), layer, to_heads(heads), num_kv_heads, window, scale);
            },
            "q"_a, "y"_a, "layer"_a, "heads"_a, "num_kv_heads"_a, "window"_a.none(),
            "scale"_a)
        .def(
            "run",
            [](const Program& self, int64_t num_tokens, const std::vector<uintptr_t>& outside, uintptr_t arena,
               uintptr_t kv_L2PGSK, bool is_int8, int64_t layer_stride, int64_t value_stride, int64_t page_stride, int64_t num_pages,
               int page_size, uintptr_t slot_T, uintptr_t query_start_B1, uintptr_t kept_B1, uintptr_t context_B,
               uintptr_t table_BP, int64_t table_stride, int64_t table_width, int num_sequences, int num_threads) {
                StepData data{num_tokens, {}, at<char>(arena), at<char>(kv_L2PGSK), is_int8, layer_stride, value_stride,
                              page_stride, num_pages, page_size, at<int64_t>(slot_T), at<int32_t>(query_start_B1),
                              at<int32_t>(kept_B1), at<int32_t>(context_B), at<int32_t>(table_BP), table_stride, table_width,
                              num_sequences};
                for (uintptr_t address : outside) data.outside.push_back(at<char>(address));
                self.run(data, num_threads);
            },
            nb::call_guard<nb::gil_scoped_release>(), nb::kw_only(), "num_tokens"_a, "outside"_a, "arena"_a,
            "kv_L2PGSK"_a, "is_int8"_a, "layer_stride"_a, "value_stride"_a, "page_stride"_a, "num_pages"_a, "page_size"_a,
            "slot_T"_a, "query_start_B1"_a, "kept_B1"_a, "context_B"_a, "table_BP"_a, "table_stride"_a, "table_width"_a,
            "num_sequences"_a, "num_threads"_a);
}

} // namespace
} // namespace alpage

NB_MODULE(_kernels, m) {
    // A process may end while models are in memory.
    nb::set_leak_warnings(false);
    const auto free_gil = nb::call_guard<nb::gil_scoped_release>();
    m.def("use_openmp", [](uintptr_t entry) { alpage::run_on_team = reinterpret_cast<alpage::RunOnTeam>(entry); });
    m.def("isa", [] { return alpage::isas().front(); });
    m.def("isas", alpage::isas);
    m.def("store_kv", alpage::py_store_kv, free_gil, nb::kw_only(), "dtype"_a, "is_int8"_a, "k_TGK"_a, "v_TGK"_a, "k_PGSK"_a,
          "v_PGSK"_a, "slot_T"_a, "k_token_stride"_a, "k_head_stride"_a, "v_token_stride"_a, "v_head_stride"_a,
          "page_stride"_a, "num_tokens"_a, "num_pages"_a, "num_kv_heads"_a, "head_dim"_a, "page_size"_a,
          "num_threads"_a, "isa"_a.none() = nb::none());
    m.def("has_pairs", [](const std::string& isa, const std::string& dtype, int page_size, int head_dim) {
        return alpage::form_of(alpage::choose(isa), alpage::dtype_of(dtype), false, page_size, head_dim) ==
               alpage::TileForm::pairs;
    });
    m.def("populate", alpage::populate, free_gil, "begin"_a, "stride"_a, "num_regions"_a, "num_bytes"_a, "num_threads"_a);
    m.def("paged_attention", alpage::py_paged_attention, free_gil, nb::kw_only(), "dtype"_a, "is_int8"_a, "q_THK"_a, "out_THK"_a,
          "k_PGSK"_a, "v_PGSK"_a, "query_start_B1"_a, "context_B"_a, "table_BP"_a, "q_token_stride"_a,
          "q_head_stride"_a, "out_token_stride"_a, "out_head_stride"_a, "page_stride"_a, "table_stride"_a,
          "num_tokens"_a, "num_pages"_a, "table_width"_a, "num_sequences"_a, "num_heads"_a, "num_kv_heads"_a,
          "head_dim"_a, "page_size"_a, "window"_a.none(), "scale"_a, "num_threads"_a, "isa"_a.none() = nb::none());
    m.def("num_splits", alpage::py_num_splits, nb::kw_only(), "query_start_B1"_a, "context_B"_a, "table_BP"_a,
          "table_stride"_a, "table_width"_a, "num_tokens"_a, "num_pages"_a, "num_sequences"_a, "num_heads"_a,
          "num_kv_heads"_a, "page_size"_a, "window"_a.none());
    m.def("rms_norm", alpage::py_rms_norm, free_gil);
    m.def("silu_mul", alpage::py_silu_mul, free_gil);
    m.def("rotate", alpage::py_rotate, free_gil);
    m.def("draw", alpage::py_draw, free_gil);
    m.def("log_sum_exp", alpage::py_log_sum_exp, free_gil);
    m.attr("scale_bytes") = alpage::kScaleBytes;
    m.attr("panel") = alpage::kPanel;
    m.def("has_linear", [](const std::string& weights, const std::optional<std::string>& isa) {
        return alpage::linear_of(alpage::choose(isa)).multiply[static_cast<int>(alpage::weights_of(weights))] != nullptr;
    });
    m.attr("group") = alpage::kGroup;
    m.attr("group_bytes") = sizeof(alpage::Group);
    m.def("pack", alpage::py_pack, free_gil);
    m.def("multiply", alpage::py_multiply, free_gil);
    alpage::add_program(m);
}
