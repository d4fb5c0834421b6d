#include "dispatch/plan.h"

#include <math.h>

#include <algorithm>
#include <new>

#include "dispatch/cpu_features.h"
#include "dispatch/memory.h"
#include "dispatch/merge.h"
#include "dispatch/relative_buckets.h"
#include "dispatch/tiers.h"
#include "dispatch/validate.h"

namespace sightline {

namespace internal {

PlanImpl::~PlanImpl() {
  FreeAligned(own_workspace);
  FreeAligned(reinterpret_cast<unsigned char*>(buckets));
}

size_t PlanImpl::BiasPlaces() const {
  if (desc.relative_buckets.num_buckets == 0) return 0;
  return 2 * (static_cast<size_t>(desc.relative_buckets.max_distance) + kBiasPadding) + 1;
}

const PrecisionKernels* PlanImpl::FindKernelsFor(const PackedKv& packed) const {
  const KvGeometry& geometry = packed.geometry();
  const PrecisionKernels& found = table->kernels[static_cast<size_t>(geometry.precision)];
  return LayoutOf(found, IsRotated(geometry.layout)) == geometry.layout ? &found : nullptr;
}

PackedHeads PlanImpl::PackedHeadsIn(unsigned char* workspace, int64_t kv_len) const {
  PackedHeads heads = {};
  heads.base = workspace;
  heads.shape = ShapeOf(layout, static_cast<size_t>(desc.head_dim),
                        static_cast<size_t>(desc.v_head_dim), static_cast<size_t>(kv_len));
  heads.offsets = OffsetsOf(heads.shape);
  heads.num_kv_heads = static_cast<size_t>(desc.num_kv_heads);
  return heads;
}

}  // namespace internal

using internal::PackedHeads;
using internal::PlanImpl;

namespace {

// The bucket of each distance from -max_distance to max_distance; null if there is no memory.
uint16_t* NewBuckets(const RelativeBuckets& relative) {
  const int64_t max = relative.max_distance;
  const size_t count = static_cast<size_t>(2 * max + 1);
  auto* buckets = reinterpret_cast<uint16_t*>(internal::AllocateAligned(count * sizeof(uint16_t)));
  for (int64_t d = -max; buckets != nullptr && d <= max; ++d) {
    buckets[d + max] = static_cast<uint16_t>(internal::BucketOf(relative, d));
  }
  return buckets;
}

}  // namespace

Status Plan::Create(const AttentionDesc& given, Plan* plan) {
  if (plan == nullptr) return Status::Error(StatusCode::kInvalidArgument, "plan is null");
  AttentionDesc desc = given;
  if (desc.v_head_dim == 0) desc.v_head_dim = desc.head_dim;
  Status status = internal::ValidateDesc(desc);
  const internal::KernelTable* table = nullptr;
  if (status.ok()) status = internal::FindKernels(desc.tier, &table);
  if (!status.ok()) return status;

  const std::shared_ptr<PlanImpl> impl = internal::ShareOrNull(new (std::nothrow) PlanImpl());
  if (impl == nullptr) return Status::Error(StatusCode::kOutOfMemory, "the plan");
  double scale = double{desc.scale};
  if (desc.scale == 0.0f) scale = 1.0 / sqrt(static_cast<double>(desc.head_dim));
  constexpr double kLog2E = 1.44269504088896340736;
  desc.scale = static_cast<float>(scale);
  impl->scale_log2e = static_cast<float>(scale * kLog2E);
  impl->fetch_ahead = internal::DecodeFetchAhead();
  impl->desc = desc;
  impl->desc.tier = table->tier;
  impl->table = table;
  impl->kernels = &table->kernels[static_cast<size_t>(desc.precision)];
  impl->layout = internal::LayoutOf(*impl->kernels, desc.rotate_k);

  impl->no_keys = impl->PackedHeadsIn(nullptr, 0);
  const PackedHeads heads = impl->PackedHeadsIn(nullptr, desc.max_kv_len);
  impl->scratch_bytes = impl->kernels->scratch_bytes(heads.shape);
  impl->partial_bytes = 0;
  if (desc.any_precision) {
    for (const internal::PrecisionKernels& kernels : table->kernels) {
      internal::PackedShape shape = heads.shape;
      shape.layout = kernels.layout;
      impl->scratch_bytes = std::max(impl->scratch_bytes, kernels.scratch_bytes(shape));
    }
    impl->partial_bytes = internal::PartialRows::Bytes(static_cast<size_t>(desc.v_head_dim));
    impl->scratch_bytes += impl->partial_bytes;
  }
  const size_t num_workers = static_cast<size_t>(desc.max_workers);
  size_t all_scratch_bytes = 0;
  size_t bias_bytes = 0;
  const size_t batch = desc.max_kv_len == 0 ? 0 : static_cast<size_t>(desc.max_batch);
  bool overflows =
      __builtin_mul_overflow(batch, heads.num_kv_heads, &impl->packed_bytes) ||
      __builtin_mul_overflow(impl->packed_bytes, heads.offsets.bytes, &impl->packed_bytes) ||
      __builtin_mul_overflow(static_cast<size_t>(desc.num_heads),
                             impl->BiasPlaces() * sizeof(float), &bias_bytes) ||
      __builtin_mul_overflow(num_workers, impl->scratch_bytes, &all_scratch_bytes) ||
      __builtin_add_overflow(impl->packed_bytes, all_scratch_bytes, &impl->workspace_bytes) ||
      __builtin_add_overflow(bias_bytes, internal::kPackedAlignBytes - 1, &bias_bytes);
  bias_bytes -= bias_bytes % internal::kPackedAlignBytes;
  overflows |= __builtin_add_overflow(impl->workspace_bytes, bias_bytes, &impl->workspace_bytes);
  if (overflows) {
    return Status::Error(
        StatusCode::kInvalidArgument,
        "max_batch %lld, num_kv_heads %lld and max_kv_len %lld overflow the address space",
        static_cast<long long>(desc.max_batch), static_cast<long long>(desc.num_kv_heads),
        static_cast<long long>(desc.max_kv_len));
  }
  impl->bias_bytes = bias_bytes;
  if (desc.relative_buckets.num_buckets > 0) {
    impl->buckets = NewBuckets(desc.relative_buckets);
    if (impl->buckets == nullptr) {
      return Status::Error(StatusCode::kOutOfMemory, "the plan's relative_buckets");
    }
  }
  if (desc.owns_workspace && impl->workspace_bytes > 0) {
    impl->own_workspace = internal::AllocateAligned(impl->workspace_bytes);
    if (impl->own_workspace == nullptr) {
      return Status::Error(StatusCode::kOutOfMemory, "%zu bytes of workspace",
                           impl->workspace_bytes);
    }
  }
  plan->impl_ = impl;
  return Status();
}

const char* Plan::tier() const { return empty() ? "" : impl_->table->tier; }
size_t Plan::workspace_bytes() const { return empty() ? 0 : impl_->workspace_bytes; }

}  // namespace sightline
