// File: sightline/attention.h
// The main call: O = softmax(scale * Q K^T + mask) V for encoder self-, causal decoder self- and
// cross-attention (Vaswani et al. 2017, "Attention Is All You Need"), by the tiled online softmax
// (Milakov & Gimelshein 2018; Dao et al. 2022) that never stores more of the scores than a tile.
//
//   AttentionDesc desc;                    // 8 heads of 64, up to 512 queries over 512 keys
//   desc.num_heads = desc.num_kv_heads = 8;
//   desc.head_dim = 64;
//   desc.max_q_len = desc.max_kv_len = 512;
//   desc.precision = Precision::kI8;
//   Plan plan;
//   Status status = Plan::Create(desc, &plan);
//
//   AttentionArgs args;
//   args.q = ConstTensorView::Dense(q, DType::kF32, 1, 512, 8, 64);
//   args.k = ConstTensorView::Dense(k, DType::kF32, 1, 512, 8, 64);
//   args.v = ConstTensorView::Dense(v, DType::kF32, 1, 512, 8, 64);
//   args.out = TensorView::Dense(o, DType::kF32, 1, 512, 8, 64);
//   status = Run(plan, args);
//
// Order of operations, empty rows, errors and determinism: docs/contract.md.
#ifndef SIGHTLINE_ATTENTION_H_
#define SIGHTLINE_ATTENTION_H_

#include <stddef.h>
#include <stdint.h>

#include <memory>

#include "sightline/kv.h"
#include "sightline/parallel.h"
#include "sightline/status.h"
#include "sightline/tensor.h"
#include "sightline/tier.h"
#include "sightline/version.h"

namespace sightline {

enum class Mask : uint8_t {
  kNone = 0,
  // Query i sees keys 0 ... kv_len - q_len + i: aligned bottom-right, so that the last query sees
  // every key. (PyTorch's and oneDNN's is_causal is top-left: the same only when q_len == kv_len.)
  kCausal = 1,
};

// What is known before any data is: a plan made from it serves every shape up to the maxima.
struct AttentionDesc {
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;  // divides num_heads; query head h reads kv head h / (heads / kv_heads)
  int64_t head_dim = 0;      // of Q and K: 1 to 512
  int64_t v_head_dim = 0;    // of V and O: 1 to 512; 0 = head_dim

  int64_t max_batch = 1;
  int64_t max_q_len = 1;
  // Longest k and v given as tensors, which Run packs into the workspace. Memories and caches are
  // packed already and may be longer; plans that read nothing else leave 0.
  int64_t max_kv_len = 0;

  Mask mask = Mask::kNone;
  float scale = 0.0f;  // 0 = 1 / sqrt(head_dim); T5 passes 1
  Precision precision = Precision::kF32;
  bool rotate_k = false;  // kI8 with outlier channels in K; see KvFormat in sightline/kv.h

  int64_t max_workers = 1;     // most ParallelFor::num_workers a Run will bring
  const char* tier = nullptr;  // nullptr or "" = the active tier; see sightline/tier.h
  bool owns_workspace = true;  // false: each Run must bring its own
};

// Scratch memory lent to one Run. Contents are undefined afterwards.
struct Workspace {
  static constexpr size_t kAlignmentBytes = 64;
  void* data = nullptr;  // aligned to kAlignmentBytes
  size_t bytes = 0;      // at least Plan::workspace_bytes()
};

namespace internal {
struct PlanImpl;
}

// Everything decided before the data comes: tier, kernels, tile shapes, workspace. Immutable;
// copies share it, and any number of threads may Run it at once if each brings a workspace.
class Plan {
 public:
  // An empty plan, which Run refuses.
  Plan() = default;

  // On error *plan is unchanged: kInvalidArgument names the field; kUnsupported: precision, tier;
  // kOutOfMemory: the plan or its own workspace.
  static Status Create(const AttentionDesc& desc, Plan* plan);

  bool empty() const { return impl_ == nullptr; }
  const char* tier() const;        // name of the tier it runs; "" when empty
  size_t workspace_bytes() const;  // for shapes up to the maxima; 0 when empty

 private:
  friend struct PlanAccess;
  std::shared_ptr<const internal::PlanImpl> impl_;
};

// One call's tensors. K and V come from exactly one of: `k` and `v`; `memory`; `cache`.
struct AttentionArgs {
  ConstTensorView q;  // [batch, q_len, num_heads, head_dim]

  ConstTensorView k;  // [batch, kv_len, num_kv_heads, head_dim]
  ConstTensorView v;  // [batch, kv_len, num_kv_heads, v_head_dim]
  // Their batch may also divide q's: each sequence then serves q.batch / batch consecutive rows of
  // q's batch (beams), which share every load of K and V.
  const CrossMemory* memory = nullptr;
  const KvCache* cache = nullptr;

  TensorView out;  // [batch, q_len, num_heads, v_head_dim]; must not share memory with an input
};

// Computes attention. Const and re-entrant; allocates nothing. With no workspace the plan's own is
// used, by one Run at a time: a second gets kBusy. On error nothing is written.
Status Run(const Plan& plan, const AttentionArgs& args, const Workspace& workspace = {},
           const ParallelFor& parallel = {});

}  // namespace sightline

#endif  // SIGHTLINE_ATTENTION_H_
