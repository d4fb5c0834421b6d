// Every documented precondition of the public calls, checked once. What passes here, the kernels
// trust.
#ifndef SIGHTLINE_DISPATCH_VALIDATE_H_
#define SIGHTLINE_DISPATCH_VALIDATE_H_

#include <stdint.h>

#include "kv/packed_kv.h"
#include "sightline/attention.h"
#include "sightline/kv.h"
#include "sightline/parallel.h"
#include "sightline/status.h"
#include "sightline/tensor.h"

namespace sightline {
namespace internal {

// Largest length, batch or number of heads: keys are counted in int32 lanes.
constexpr int64_t kMaxCount = 0x7fffff00;

Status ValidateDesc(const AttentionDesc& desc);
Status ValidateCacheDesc(const KvCacheDesc& desc);
// Of a plan, whose fields have no prefix, or of a memory's or cache's format: "format.".
Status ValidatePrecision(const char* prefix, Precision precision, bool rotate_k);
Status ValidateParallel(const ParallelFor& parallel);

// k and v as they are given to CrossMemory::Create, KvCache::Append and Run.
Status ValidateKv(const ConstTensorView& k, const ConstTensorView& v);
// And that they fit what they are to be stored in. `what` describes it.
Status ValidateKvShape(const ConstTensorView& k, const ConstTensorView& v, int64_t num_kv_heads,
                       int64_t head_dim, int64_t v_head_dim, const char* what);

// Tensors of a Run. On success *packed is the memory's or cache's storage, null for k and v.
Status ValidateArgs(const AttentionDesc& desc, LayoutId layout, const AttentionArgs& args,
                    const PackedKv** packed);
Status ValidateWorkspace(const Workspace& workspace, size_t needed_bytes,
                         const AttentionArgs& args);

}  // namespace internal
}  // namespace sightline

#endif  // SIGHTLINE_DISPATCH_VALIDATE_H_
