// XNNPACK's operator for scaled dot-product attention, in f32 and f16.
//
// A run has three parts: K is packed for its GEMM, then V, then each thread takes a few queries (as
// many as the GEMM has rows) through Q times K, mask, softmax and times V, with whole rows of
// scores. The operator has no way to keep packed K and V, so that packing is part of every run, of
// a decoding step too: 2 * kv_len * head_dim elements read, written, and read again.
//
// It always adds a mask, here of zeros where there is nothing to hide, and computes hidden scores
// like the others.
//
// Of grouped heads it knows only one K/V head for all. Folding the K/V heads into the batch turns
// grouped heads and beams into that; where there are fewer queries than the GEMM has rows, rows
// that share K and V become neighbouring queries instead.
#include <math.h>
#include <pthreadpool.h>
#include <stdlib.h>
#include <xnnpack.h>

#include <algorithm>
#include <utility>

#include "bench/peers/layout.h"
#include "bench/peers/peers.h"
#include "quant/elements.h"

namespace sightline {
namespace bench {
namespace {

// No GEMM of XNNPACK's has more rows than that; from there on, separate heads fill it as well as
// folded ones.
constexpr int64_t kMaxGemmRows = 16;

// The operator's functions for an element type, and the type's numbers.
struct F32 {
  using Element = float;
  static constexpr float kHidden = -1e30f;  // finite: the softmax subtracts it from itself
  static Element From(float x) { return x; }
  static float To(Element x) { return x; }
  static constexpr auto kCreate = &xnn_create_scaled_dot_product_attention_nhtc_f32;
  static constexpr auto kReshape = &xnn_reshape_scaled_dot_product_attention_nhtc_f32;
  static constexpr auto kSetup = &xnn_setup_scaled_dot_product_attention_nhtc_f32;
};

struct F16 {
  using Element = uint16_t;
  static constexpr float kHidden = -6e4f;
  static Element From(float x) { return internal::F16FromF32(x); }
  static float To(Element x) { return internal::F32FromF16(x); }
  static constexpr auto kCreate = &xnn_create_scaled_dot_product_attention_nhtc_f16;
  static constexpr auto kReshape = &xnn_reshape_scaled_dot_product_attention_nhtc_f16;
  static constexpr auto kSetup = &xnn_setup_scaled_dot_product_attention_nhtc_f16;
};

// Rows of Q that share K and V: neighbouring queries where there are few, heads where there are
// many.
bool FoldsHeads(const Case& c) { return c.q_len < kMaxGemmRows; }
double MaskBytes(const Case& c, const std::string& precision) {
  const int64_t rows = c.q_len * (FoldsHeads(c) ? Sharers(c) : 1);
  const double element_bytes = precision == "f32" ? 4 : 2;
  return element_bytes * static_cast<double>(rows) * static_cast<double>(c.kv_len);
}

template <class T>
class XnnpackEntry : public Entry {
 public:
  using Element = typename T::Element;

  XnnpackEntry(const Problem& problem, int threads)
      : c_(problem.c),
        pool_(threads > 1 ? pthreadpool_create(static_cast<size_t>(threads)) : nullptr),
        q_(Convert(GroupQ(c_, problem.q))),
        k_(Convert(ByHead(c_, problem.k, c_.head_dim))),
        v_(Convert(ByHead(c_, problem.v, c_.v_head_dim))),
        scale_(Convert(std::vector<float>(static_cast<size_t>(c_.head_dim), problem.scale()))) {
    int64_t heads = Sharers(c_);
    int64_t rows = c_.q_len;
    if (FoldsHeads(c_)) rows *= std::exchange(heads, 1);

    mask_.resize(static_cast<size_t>(rows * c_.kv_len) + kExtra, T::From(0.0f));
    if (c_.causal()) {
      for (int64_t r = 0; r < rows; ++r) {
        const int64_t visible = c_.kv_len - c_.q_len + r % c_.q_len + 1;
        std::fill(mask_.begin() + r * c_.kv_len + visible, mask_.begin() + (r + 1) * c_.kv_len,
                  T::From(T::kHidden));
      }
    }
    o_.resize(static_cast<size_t>(Groups(c_) * Sharers(c_) * c_.q_len * c_.v_head_dim) + kExtra);

    size_t bytes = 0;
    size_t alignment = 0;
    const auto size = [](int64_t n) { return static_cast<size_t>(n); };
    Note(T::kCreate(xnn_attention_logits_cap_type_none, nullptr, 0, &operator_));
    if (!ok()) return;
    Note(T::kReshape(operator_, size(Groups(c_)), size(heads), size(rows), 1, size(c_.kv_len),
                     size(c_.head_dim), size(c_.v_head_dim), &bytes, &alignment, pool_));
    if (!ok()) return;
    workspace_ = aligned_alloc(alignment, (bytes + alignment - 1) / alignment * alignment);
    if (workspace_ == nullptr) {
      Note(xnn_status_out_of_memory);
      return;
    }
    Note(T::kSetup(operator_, workspace_, q_.data(), k_.data(), v_.data(), scale_.data(),
                   mask_.data(), o_.data()));
  }

  ~XnnpackEntry() override {
    xnn_delete_operator(operator_);
    free(workspace_);
    pthreadpool_destroy(pool_);
  }

  XnnpackEntry(const XnnpackEntry&) = delete;
  XnnpackEntry& operator=(const XnnpackEntry&) = delete;

  bool ok() const { return status_ == xnn_status_success; }
  xnn_status status() const { return status_; }

  void Run() override { Note(xnn_run_operator(operator_, pool_)); }

  std::vector<float> Output() override {
    if (!ok()) return std::vector<float>(o_.size() - kExtra, NAN);
    std::vector<float> o(o_.size() - kExtra);
    for (size_t i = 0; i < o.size(); ++i) o[i] = T::To(o_[i]);
    return UngroupO(c_, o);
  }

  double kv_bytes() const override {
    return static_cast<double>(c_.KvElements()) * sizeof(Element);
  }

 private:
  static constexpr size_t kExtra = XNN_EXTRA_BYTES;  // it may read so far behind a tensor

  static std::vector<Element> Convert(const std::vector<float>& x) {
    std::vector<Element> result(x.size() + kExtra);
    for (size_t i = 0; i < x.size(); ++i) result[i] = T::From(x[i]);
    return result;
  }

  void Note(xnn_status status) {
    if (ok()) status_ = status;
  }

  Case c_;
  pthreadpool_t pool_;
  std::vector<Element> q_, k_, v_, scale_, mask_, o_;
  xnn_operator_t operator_ = nullptr;
  void* workspace_ = nullptr;
  xnn_status status_ = xnn_status_success;
};

class Xnnpack : public Contender {
 public:
  std::string name() const override { return "xnnpack"; }
  std::string version() const override { return SIGHTLINE_XNNPACK_VERSION; }
  const std::vector<Offer>& offers() const override { return offers_; }

  std::unique_ptr<Entry> Enter(const Problem& problem, const std::string& precision, int threads,
                               std::string* why_not) override {
    static const xnn_status initialized = xnn_initialize(nullptr);
    if (initialized != xnn_status_success) {
      *why_not = "XNNPACK does not support this CPU";
    } else if (IsStore(problem.c.op)) {
      *why_not = "its operator cannot keep packed K and V: it packs them in every run";
    } else if (problem.c.kv_len < problem.c.q_len && problem.c.causal()) {
      *why_not = "its softmax has no rows without a visible key";
    } else if (MaskBytes(problem.c, precision) > kMaxExtraBytes) {
      *why_not = "its mask would take more than 2 GiB";
    } else if (precision == "f32") {
      return Make<F32>(problem, threads, why_not);
    } else if (precision == "f16") {
      return Make<F16>(problem, threads, why_not);
    } else {
      *why_not = "its attention has f32 and f16 only";
    }
    return nullptr;
  }

 private:
  template <class T>
  static std::unique_ptr<Entry> Make(const Problem& problem, int threads, std::string* why_not) {
    auto entry = std::make_unique<XnnpackEntry<T>>(problem, threads);
    if (entry->ok()) return entry;
    *why_not = "the operator's status is " + std::to_string(entry->status());
    if (entry->status() == xnn_status_unsupported_hardware) {
      *why_not = "not supported by XNNPACK on this CPU";
    }
    return nullptr;
  }

  // clang-format off
  const std::vector<Offer> offers_ = {
      {"f32",
       "Q, K, V and O in f32, one head after another, [head][token][channel]. Packs K and V in every "
       "run. A causal mask is an added tensor: hidden scores are computed too.",
       "Bringing the tensors into that order; creating, reshaping and setting up the operator.",
       1e-5},
      {"f16",
       "Q, K, V, O and scores in f16, one head after another, [head][token][channel]. Packs K and V in "
       "every run. A causal mask is an added tensor: hidden scores are computed too.",
       "Converting the tensors and bringing them into that order; creating, reshaping and setting up "
       "the operator.",
       2e-2},
  };
  // clang-format on
};

}  // namespace

std::unique_ptr<Contender> MakeXnnpack() { return std::make_unique<Xnnpack>(); }

}  // namespace bench
}  // namespace sightline
