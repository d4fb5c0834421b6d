// ggml's flash attention, ggml_flash_attn_ext, on its CPU backend.
//
// Only the public headers of an installed ggml are used, and its CPU backend only through the
// registry of backends: a distribution's ggml loads the variant for this CPU at run time, others
// are linked to it. The graph has one node. It is planned once: a Run allocates nothing and starts
// no thread.
//
// K and V are f16 as llama.cpp keeps them, q8_0 or f32. From 64 rows of Q on, newer versions
// compute f16 and f32 in blocks, everything else one row at a time; so all that shares K and V and
// has no mask becomes rows of one head.
//
// Seen to work: 0.9.5 (built without OpenMP), 0.21.0, 0.27.0. A build for this very CPU was almost
// twice as fast as a distribution's; a figure is worth as much as the build.
#include <ggml-alloc.h>
#include <ggml-backend.h>
#include <ggml.h>
#include <math.h>
#include <string.h>

#include <algorithm>
#include <type_traits>
#include <utility>

#include "bench/peers/layout.h"
#include "bench/peers/peers.h"

namespace sightline {
namespace bench {
namespace {

constexpr const char* kNotTimed =
    "Converting or quantising the tensors and bringing them into that order; making the mask and "
    "planning the graph.";

// One row at a time, O is summed in f16: some 3 % of error after 32768 keys.
constexpr double kMaxErrorF16 = 0.1;

struct Free {
  void operator()(ggml_context* context) const { ggml_free(context); }
  void operator()(ggml_backend* backend) const { ggml_backend_free(backend); }
  void operator()(ggml_backend_buffer* buffer) const { ggml_backend_buffer_free(buffer); }
};

// The functions of the CPU backend that no header declares for a backend that was loaded at run
// time.
struct CpuFunctions {
  ggml_backend_set_n_threads_t set_threads = nullptr;
  ggml_threadpool* (*new_pool)(ggml_threadpool_params*) = nullptr;
  void (*free_pool)(ggml_threadpool*) = nullptr;
  void (*set_pool)(ggml_backend*, ggml_threadpool*) = nullptr;

  explicit CpuFunctions(ggml_backend_dev_t device) {
    ggml_backend_reg_t registry = ggml_backend_dev_backend_reg(device);
    const auto find = [&](const char* name, auto* function) {
      *function = reinterpret_cast<std::remove_reference_t<decltype(*function)>>(
          ggml_backend_reg_get_proc_address(registry, name));
    };
    find("ggml_backend_set_n_threads", &set_threads);
    find("ggml_threadpool_new", &new_pool);
    find("ggml_threadpool_free", &free_pool);
    find("ggml_backend_cpu_set_threadpool", &set_pool);
  }
  bool complete() const { return set_threads && new_pool && free_pool && set_pool; }
};

ggml_backend_dev_t CpuDevice() {
  static const ggml_backend_dev_t device = [] {
    ggml_log_set([](ggml_log_level, const char*, void*) {}, nullptr);
    ggml_backend_dev_t linked = ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
    if (linked != nullptr) return linked;
    ggml_backend_load_all();
    return ggml_backend_dev_by_type(GGML_BACKEND_DEVICE_TYPE_CPU);
  }();
  return device;
}

class GgmlEntry : public Entry {
 public:
  // Without ok() afterwards, *why_not says what is wrong.
  GgmlEntry(const Problem& p, ggml_type kv_type, int threads, std::string* why_not)
      : c_(p.c), functions_(CpuDevice()) {
    if (!functions_.complete()) {
      *why_not = "this ggml's CPU backend does not name its thread pool functions";
      return;
    }
    backend_.reset(ggml_backend_dev_init(CpuDevice(), nullptr));
    if (!backend_) {
      *why_not = "the CPU backend does not start";
      return;
    }
    functions_.set_threads(backend_.get(), threads);
    ggml_threadpool_params params = ggml_threadpool_params_default(threads);
    pool_ = functions_.new_pool(&params);
    functions_.set_pool(backend_.get(), pool_);

    // Rows of Q that share K and V lie side by side (bench/peers/layout.h). To ggml they are one
    // head with many rows or, where a mask tells them apart, a group of heads.
    const bool causal = c_.causal();
    const int64_t rows = causal ? c_.q_len : Sharers(c_) * c_.q_len;
    const int64_t heads = causal ? Sharers(c_) * c_.kv_heads : c_.kv_heads;

    const size_t room = 16 * ggml_tensor_overhead() + ggml_graph_overhead();
    context_.reset(ggml_init({room, nullptr, /*no_alloc=*/true}));
    ggml_context* context = context_.get();
    ggml_tensor* q = ggml_new_tensor_4d(context, GGML_TYPE_F32, c_.head_dim, rows, heads, c_.batch);
    k_ = ggml_new_tensor_4d(context, kv_type, c_.head_dim, c_.kv_len, c_.kv_heads, c_.batch);
    v_ = ggml_new_tensor_4d(context, kv_type, c_.v_head_dim, c_.kv_len, c_.kv_heads, c_.batch);
    ggml_tensor* mask = nullptr;
    if (causal) {
      int64_t mask_rows = rows;
#ifdef GGML_KQ_MASK_PAD  // older versions demand rows that no query has
      mask_rows = GGML_PAD(rows, GGML_KQ_MASK_PAD);
#endif
      mask = ggml_new_tensor_2d(context, GGML_TYPE_F16, c_.kv_len, mask_rows);
    }
    out_ = ggml_flash_attn_ext(context, q, k_, v_, mask, p.scale(), /*max_bias=*/0.0f,
                               /*logit_softcap=*/0.0f);
    if (!ggml_backend_dev_supports_op(CpuDevice(), out_)) {
      *why_not = "the CPU backend says that it does not support this";
      return;
    }
    buffer_.reset(ggml_backend_alloc_ctx_tensors(context, backend_.get()));
    if (!buffer_) {
      *why_not = "out of memory";
      return;
    }

    Fill(q, GroupQ(c_, p.q));
    Fill(k_, ByHead(c_, p.k, c_.head_dim));
    Fill(v_, ByHead(c_, p.v, c_.v_head_dim));
    if (mask != nullptr) FillCausal(mask);

    ggml_cgraph* graph = ggml_new_graph(context);
    ggml_build_forward_expand(graph, out_);
    plan_ = ggml_backend_graph_plan_create(backend_.get(), graph);
    if (plan_ == nullptr) *why_not = "the graph cannot be planned";
  }

  ~GgmlEntry() override {
    if (plan_ != nullptr) ggml_backend_graph_plan_free(backend_.get(), plan_);
    backend_.reset();
    if (pool_ != nullptr) functions_.free_pool(pool_);
  }
  GgmlEntry(const GgmlEntry&) = delete;
  GgmlEntry& operator=(const GgmlEntry&) = delete;

  bool ok() const { return plan_ != nullptr; }

  void Run() override {
    if (ggml_backend_graph_plan_compute(backend_.get(), plan_) != GGML_STATUS_SUCCESS) {
      failed_ = true;
    }
  }
  std::string error() const override { return failed_ ? "ggml could not compute the graph" : ""; }

  std::vector<float> Output() override {
    std::vector<float> by_query(static_cast<size_t>(ggml_nelements(out_)));
    ggml_backend_tensor_get(out_, by_query.data(), 0, ggml_nbytes(out_));
    // ggml swaps rows and heads: [batch][rows][heads][v_head_dim].
    const int64_t heads = out_->ne[1];
    const int64_t rows = out_->ne[2];
    std::vector<float> out(by_query.size());
    ForEachRow(c_, [&](int64_t to, int64_t grouped) {
      const int64_t b = grouped / (heads * rows);
      const int64_t h = grouped / rows % heads;
      const int64_t from = (b * rows + grouped % rows) * heads + h;
      std::copy_n(by_query.data() + from * c_.v_head_dim, c_.v_head_dim,
                  out.data() + to * c_.v_head_dim);
    });
    return out;
  }

  double kv_bytes() const override {
    return static_cast<double>(ggml_nbytes(k_) + ggml_nbytes(v_));
  }

 private:
  static void Fill(ggml_tensor* tensor, const std::vector<float>& x) {
    std::vector<char> converted(ggml_nbytes(tensor));
    if (tensor->type == GGML_TYPE_F32) {
      memcpy(converted.data(), x.data(), converted.size());
    } else {
      ggml_quantize_chunk(tensor->type, x.data(), converted.data(), 0, ggml_nrows(tensor),
                          tensor->ne[0], nullptr);
    }
    ggml_backend_tensor_set(tensor, converted.data(), 0, converted.size());
  }

  void FillCausal(ggml_tensor* mask) const {
    const ggml_fp16_t seen = ggml_fp32_to_fp16(0.0f);
    std::vector<ggml_fp16_t> row(static_cast<size_t>(c_.kv_len), ggml_fp32_to_fp16(-INFINITY));
    const size_t row_bytes = row.size() * sizeof(row[0]);
    int64_t keys = 0;
    for (int64_t i = 0; i < mask->ne[1]; ++i) {  // each sees more than the one before
      const int64_t seen_keys = std::clamp<int64_t>(c_.kv_len - c_.q_len + i + 1, 0, c_.kv_len);
      std::fill(row.begin() + keys, row.begin() + seen_keys, seen);
      keys = seen_keys;
      ggml_backend_tensor_set(mask, row.data(), static_cast<size_t>(i) * row_bytes, row_bytes);
    }
  }

  Case c_;
  CpuFunctions functions_;
  std::unique_ptr<ggml_backend, Free> backend_;
  ggml_threadpool* pool_ = nullptr;
  std::unique_ptr<ggml_context, Free> context_;
  std::unique_ptr<ggml_backend_buffer, Free> buffer_;
  ggml_tensor* k_ = nullptr;
  ggml_tensor* v_ = nullptr;
  ggml_tensor* out_ = nullptr;
  ggml_backend_graph_plan_t plan_ = nullptr;
  bool failed_ = false;
};

class Ggml : public Contender {
 public:
  std::string name() const override { return "ggml"; }
  std::string version() const override { return ggml_version(); }
  const std::vector<Offer>& offers() const override { return offers_; }

  std::unique_ptr<Entry> Enter(const Problem& problem, const std::string& precision, int threads,
                               std::string* why_not) override {
    const Case& c = problem.c;
    const auto kv_type = std::find_if(types_.begin(), types_.end(),
                                      [&](const auto& t) { return precision == t.first; });
    if (kv_type == types_.end()) {
      *why_not = "no such precision";
    } else if (IsStore(c.op)) {
      *why_not = "only attention is measured";
    } else if (const int64_t block = ggml_blck_size(kv_type->second);
               c.head_dim % block != 0 || c.v_head_dim % block != 0) {
      *why_not = "head dimensions must be multiples of " + std::to_string(block);
    } else if (CpuDevice() == nullptr) {
      *why_not = "ggml finds no CPU backend of its own";
    } else {
      auto entry = std::make_unique<GgmlEntry>(problem, kv_type->second, threads, why_not);
      if (entry->ok()) return entry;
    }
    return nullptr;
  }

 private:
  const std::vector<std::pair<std::string, ggml_type>> types_ = {
      {"f32", GGML_TYPE_F32}, {"f16", GGML_TYPE_F16}, {"q8_0", GGML_TYPE_Q8_0}};
  const std::vector<Offer> offers_ = {
      {"f32",
       "Q, K, V and O in f32, head-major: [head][token][channel]. A causal mask is an f16 tensor; "
       "what it hides entirely is skipped.",
       kNotTimed, 1e-5},
      {"f16",
       "K and V in f16, Q and O in f32, head-major: [head][token][channel]. A causal mask is an "
       "f16 tensor; what it hides entirely is skipped.",
       kNotTimed, kMaxErrorF16},
      {"q8_0",
       "K and V in q8_0, blocks of 32 channels with an f16 scale, Q and O in f32, head-major: "
       "[head][token][channel]. A causal mask is an f16 tensor; what it hides is skipped.",
       kNotTimed, 0.5}};
};

}  // namespace

std::unique_ptr<Contender> MakeGgml() { return std::make_unique<Ggml>(); }

}  // namespace bench
}  // namespace sightline
