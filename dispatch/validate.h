// Every documented precondition of the public calls, checked once. What passes here, the kernels
// trust.
#ifndef SIGHTLINE_DISPATCH_VALIDATE_H_
#define SIGHTLINE_DISPATCH_VALIDATE_H_

#include <stddef.h>
#include <stdint.h>

#include "sightline/alignment.h"
#include "sightline/attention.h"
#include "sightline/kv.h"
#include "sightline/parallel.h"
#include "sightline/status.h"
#include "sightline/tensor.h"

namespace sightline {
namespace internal {

struct PlanImpl;

// Largest length, batch or number of heads: keys are counted in int32 lanes.
constexpr int64_t kMaxCount = 0x7fffff00;
constexpr int64_t kMaxPageTokens = 65536;

Status ValidateDesc(const AttentionDesc& desc);
// What a K/V memory, cache or pool is made with, and asked for. own: the pool of a cache without
// one.
Status ValidatePoolDesc(const KvPoolDesc& desc);
Status ValidateCacheDesc(const KvCacheDesc& desc, const KvPoolDesc& own);
Status ValidatePooledCacheDesc(const KvCacheDesc& desc, const KvFormat& of_pool);
Status ValidateMemoryDesc(const CrossMemoryDesc& desc, int64_t num_layers);
Status ValidateKvLens(const int32_t* kv_lens, int64_t batch, int64_t kv_len);
Status ValidatePlacement(const KvPlacement& placement, size_t needed_bytes);
Status ValidateParents(const int32_t* parents, int64_t batch, int64_t old_batch);
Status ValidateEviction(int64_t batch_entry, const int32_t* positions, int64_t count, int64_t batch,
                        int64_t length);
// Of a plan, whose fields have no prefix, or of a memory's or cache's format: "format.".
Status ValidatePrecision(const char* prefix, Precision precision, bool rotate_k);
Status ValidateParallel(const ParallelFor& parallel);

// k and v as they are given to CrossMemory::Create, KvCache::Append and Run.
Status ValidateKv(const ConstTensorView& k, const ConstTensorView& v);
// And that they fit what they are to be stored in. `what` describes it.
Status ValidateKvShape(const ConstTensorView& k, const ConstTensorView& v, int64_t num_kv_heads,
                       int64_t head_dim, int64_t v_head_dim, const char* what);

// Bytes of memory: [begin, end).
struct MemorySpan {
  uintptr_t begin = 0;
  uintptr_t end = 0;

  bool Overlaps(const MemorySpan& other) const {
    return begin < end && other.begin < other.end && begin < other.end && other.begin < end;
  }
};

// The memory that the arguments of a Run touch, by name.
class ArgMemory {
 public:
  void Add(const char* name, const MemorySpan& span) {
    if (span.begin < span.end) entries_[count_++] = {name, span};
  }
  // Name of the first that overlaps, or null.
  const char* Overlapping(const MemorySpan& span) const {
    for (size_t i = 0; i < count_; ++i) {
      if (entries_[i].span.Overlaps(span)) return entries_[i].name;
    }
    return nullptr;
  }

 private:
  struct Entry {
    const char* name;
    MemorySpan span;
  };
  // Each of these at most once: q, k, v, out and their scales, segment_indptr, kv_lens,
  // prefix_lens, mask, block_mask, q_indptr, kv_indptr, bias, relative_bias, alibi_slopes, sinks,
  // the heads and queries of weights, and the other outputs.
  static constexpr size_t kMaxEntries = 8 + 1 + 12 + 3;
  Entry entries_[kMaxEntries];
  size_t count_ = 0;
};

// Arguments of a Run. On success *memory is all that is read or written, but for memories and
// caches.
Status ValidateArgs(const PlanImpl& plan, const AttentionArgs& args, ArgMemory* memory);
Status ValidateWorkspace(const Workspace& workspace, size_t needed_bytes, const ArgMemory& memory,
                         const AttentionArgs& args);

// What AlignmentWorkspaceBytes asks for, and everything.
Status ValidateAlignmentShape(const AlignmentArgs& args);
Status ValidateAlignment(const AlignmentArgs& args, const Workspace& workspace,
                         size_t needed_bytes);

}  // namespace internal
}  // namespace sightline

#endif  // SIGHTLINE_DISPATCH_VALIDATE_H_
