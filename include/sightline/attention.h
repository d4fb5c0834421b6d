// File: sightline/attention.h
// The main call: O = softmax(softcap(scale * Q K^T) + biases, masked) V for encoder self-, causal
// decoder self- and cross-attention (Vaswani et al. 2017, "Attention Is All You Need"), by the
// tiled online softmax (Milakov & Gimelshein 2018; Dao et al. 2022) that never stores more of the
// scores than a tile.
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

// T5's relative-position bias: key j gives query i the bias table[bucket(j - i)] of its head, where
// i and j are positions (see AttentionDesc::causal). Distances below half of a side's buckets have
// one each, larger ones share buckets of logarithmic width up to max_distance, and all beyond it
// the last. Raffel et al. 2020, "Exploring the Limits of Transfer Learning"; formula:
// docs/score_modifications.md.
struct RelativeBuckets {
  int64_t num_buckets = 0;     // 0 = no such bias; else 2 to 4096, of both sides together
  int64_t max_distance = 128;  // more than half of a side's buckets, up to 65536
  bool bidirectional = true;   // encoders: num_buckets is even, 4 and more; false for decoders,
                               // whose keys ahead are in bucket 0
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

  // What a query sees by its position. Keys have positions 0, 1, 2 … and queries those from q_start
  // on, by default so that the last query of a sequence stands at its last key (bottom-right;
  // PyTorch's and oneDNN's is_causal is top-left: AttentionArgs::q_start = 0). All of these, and
  // the masks of AttentionArgs, are combined: a key is seen if every one of them shows it. Formulas
  // and how other libraries' masks translate: docs/masks.md.
  bool causal = false;        // no key behind the query's own position
  int64_t window_left = -1;   // most keys before the query's own position; -1 = all
  int64_t window_right = -1;  // and behind it

  // Scores are s = softcap(scale * q·k) + biases: docs/score_modifications.md.
  float scale = 0.0f;    // 0 = 1 / sqrt(head_dim); T5 passes 1
  float softcap = 0.0f;  // x becomes softcap * tanh(x / softcap); 0 = off (Gemma 2: 50)
  RelativeBuckets relative_buckets;

  Precision precision = Precision::kF32;
  bool rotate_k = false;  // kI8 with outlier channels in K; see KvFormat in sightline/kv.h
  // Memories and caches of any precision may be read, and mixed in a call; `precision` and rotate_k
  // are then for tensors alone. Takes more workspace.
  bool any_precision = false;

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

// Sparse attention: a query sees keys of the blocks whose element is true.
struct BlockMask {
  // [batch, ceil(q_len / q_block), num_heads, ceil(kv_len / kv_block)]. Ragged batches have an
  // entry per sequence, whose blocks count from its own first query and key; q_len and kv_len are
  // those of the longest.
  MaskView blocks;
  int64_t q_block = 0;   // queries and
  int64_t kv_block = 0;  // keys of a block, at least 1; multiples of 64 are fastest
};

// Attention weights as an output, of all heads and queries or of some, with no larger buffer than
// what is asked for. They take AttentionArgs::lse and, unless they are f32 and as docs/outputs.md
// says, a second pass over K.
struct WeightsOutput {
  // f32, f16 or bf16 [batch, queries, heads, kv_len]; keys that a query does not see, and those
  // from its sequence's end on, get 0. dim may be larger than kv_len.
  TensorView out;
  const int32_t* heads = nullptr;  // [num_heads]: which, in the order of `out`; null = all
  int64_t num_heads = 0;
  const int32_t* queries = nullptr;  // [num_queries]: which along the length of q, ascending, also
  int64_t num_queries = 0;           // where that is ragged; null = all
  bool average_heads = false;        // the mean of these heads, as the one head of `out`; f32
};

// One call's tensors. K and V come from exactly one of: `k` and `v`; `memory`; `cache`; `segments`.
// What is left null or at its default is off. Arrays are read by the call only; f32 unless said
// otherwise.
struct AttentionArgs {
  ConstTensorView q;  // [batch, q_len, num_heads, head_dim]

  ConstTensorView k;  // [batch, kv_len, num_kv_heads, head_dim]
  ConstTensorView v;  // [batch, kv_len, num_kv_heads, v_head_dim]
  // Their batch may also divide q's: each sequence then serves q.batch / batch consecutive rows of
  // q's batch (beams), which share every load of K and V.
  const CrossMemory* memory = nullptr;
  const KvCache* cache = nullptr;

  // Several memories and caches, each prepared on its own: every sequence sees the keys of its
  // segments one after the other, as if they had been packed together, and without a copy. Keys and
  // their positions count through all of them: positions, windows, masks and biases take no notice
  // of where one ends. An example: [instructions | passage 1 | passage 2 | the answer so far].
  //
  // Without lists every sequence sees all segments, whose batch is the K/V batch, or 1 for those
  // that all sequences share. With num_segment_lists > 0, which then is the K/V batch, sequence s
  // sees segments segment_indptr[s] … segment_indptr[s + 1] - 1, each of batch 1: a passage or a
  // prefix may be in several lists, and caches of different lengths decode in one call (continuous
  // batching).
  const KvSegment* segments = nullptr;
  int64_t num_segments = 0;
  int64_t num_segment_lists = 0;
  const int32_t* segment_indptr = nullptr;  // [num_segment_lists + 1]; begins with 0, never falls

  TensorView out;  // [batch, q_len, num_heads, v_head_dim]; must not share memory with an input

  // Masks. `kv batch` is the batch of K and V, or the number of ragged sequences.
  static constexpr int64_t kBottomRight = INT64_MIN;
  // Position of query 0; by default kv_len - q_len, of the keys in use. Where queries are padded at
  // their end as keys are, it is 0.
  int64_t q_start = kBottomRight;
  const int32_t* kv_lens = nullptr;  // [kv batch]: keys in use, 0 to kv_len; the rest is padding.
                                     // Segments have KvSegment::kv_len instead
  const int32_t* prefix_lens = nullptr;  // [kv batch]: so many first keys are seen by every query,
                                         // whatever causal and the windows say (prefix LM; with a
                                         // window: attention sinks of StreamingLLM)
  MaskView mask;                         // [batch, q_len, num_heads, kv_len]: true = seen.
  BlockMask block_mask;                  // Broadcast axes of both have stride 0.

  // Ragged batches: num_sequences > 0 sequences, one after the other along the length of q and out,
  // whose batch is 1: sequence s has queries q_indptr[s] … q_indptr[s + 1] - 1, and keys
  // kv_indptr[s] … kv_indptr[s + 1] - 1 of k and v, or, without kv_indptr, all of batch entry s of
  // k and v, the memory or the cache. Both begin with 0 and never fall. The plan's max_batch bounds
  // num_sequences, its max_q_len and max_kv_len those of each. Mask, bias and lse have q's length,
  // and keys count from 0 in each sequence.
  int64_t num_sequences = 0;
  const int32_t* q_indptr = nullptr;   // [num_sequences + 1]
  const int32_t* kv_indptr = nullptr;  // [num_sequences + 1]

  // Score modifications. Biases are added in the order in which they stand here; -inf gives a key
  // weight 0 (but does not hide a NaN in it), +inf makes the row NaN.
  ConstTensorView
      bias;  // f32, f16 or bf16 [batch, q_len, num_heads, kv_len]; broadcast by stride 0
  const float* relative_bias = nullptr;  // [num_buckets, num_heads] of the plan's relative_buckets
  const float* alibi_slopes = nullptr;   // [num_heads]: adds -slope * |query's - key's position|
  const float* sinks = nullptr;          // [num_heads]: a logit that takes weight and has no value

  // f32 [batch, q_len, num_heads, 1], optional: natural log of the softmax denominator, the sink
  // included; -inf for a row that sees nothing.
  TensorView lse;

  // Both need lse.
  WeightsOutput weights;
  // f32, optional: the sum of weights over queries, for each key: what a cache forgets last.
  // [batch, 1, num_heads, kv_len]. Over the heads of a group as well if mass.heads is num_kv_heads,
  // and over beams if mass.batch is that of K and V; ragged batches have an entry per sequence.
  TensorView mass;
};

// Computes attention. Const and re-entrant; allocates nothing. With no workspace the plan's own is
// used, by one Run at a time: a second gets kBusy. On error nothing is written.
Status Run(const Plan& plan, const AttentionArgs& args, const Workspace& workspace = {},
           const ParallelFor& parallel = {});

}  // namespace sightline

#endif  // SIGHTLINE_ATTENTION_H_
