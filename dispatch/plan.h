// What a plan decides: the kernels of its tier and precision, and how the workspace is divided.
#ifndef SIGHTLINE_DISPATCH_PLAN_H_
#define SIGHTLINE_DISPATCH_PLAN_H_

#include <stddef.h>

#include <atomic>

#include "dispatch/kernel_table.h"
#include "kv/packed_kv.h"
#include "sightline/attention.h"

namespace sightline {
namespace internal {

struct PlanImpl {
  AttentionDesc desc;  // defaults resolved: v_head_dim, scale
  float scale_log2e;   // softmax scale * log2(e)
  size_t fetch_ahead;  // AttendTask has the same
  const KernelTable* table;
  const PrecisionKernels* kernels;
  LayoutId layout;
  PackedHeads no_keys;          // of a sequence without any
  uint16_t* buckets = nullptr;  // of distances; see DistanceBias. Null without relative_buckets

  // The workspace: packed heads of k and v, biases by distance of all heads, then each worker's
  // scratch.
  size_t packed_bytes;
  size_t bias_bytes;
  size_t scratch_bytes;  // per worker, of which
  size_t partial_bytes;  // the first are for merging precisions (dispatch/merge.h)
  size_t workspace_bytes;

  unsigned char* own_workspace = nullptr;
  // A flag; not a bool, of which GCC 12 makes a call into libatomic on RISC-V.
  mutable std::atomic<int> own_workspace_busy{0};

  PlanImpl() = default;
  PlanImpl(const PlanImpl&) = delete;
  PlanImpl& operator=(const PlanImpl&) = delete;
  ~PlanImpl();

  // Biases by distance of one head; see DistanceBias::octaves. 0 without relative_buckets.
  size_t BiasPlaces() const;

  // The kernels that read a memory or cache of the plan's precision, or of any if the plan has
  // that; null if its tier has none.
  const PrecisionKernels* FindKernelsFor(const PackedKv& packed) const;
  const PrecisionKernels& KernelsFor(const PackedKv& packed) const {
    return *FindKernelsFor(packed);
  }

  // Packed form of k and v tensors of this length inside a workspace.
  PackedHeads PackedHeadsIn(unsigned char* workspace, int64_t kv_len) const;
};

}  // namespace internal

struct PlanAccess {
  static const internal::PlanImpl* Get(const Plan& plan) { return plan.impl_.get(); }
};

}  // namespace sightline

#endif  // SIGHTLINE_DISPATCH_PLAN_H_
