#include "dispatch/tiers.h"
#include "dispatch/validate.h"
#include "kv/packed_kv.h"
#include "kv/prepare.h"
#include "sightline/kv.h"

namespace sightline {

using internal::PackedHeader;
using internal::PackedKv;
using internal::PrecisionKernels;

Status CrossMemory::Create(const ConstTensorView& k, const ConstTensorView& v,
                           const KvFormat& format, CrossMemory* memory,
                           const ParallelFor& parallel) {
  if (memory == nullptr) return Status::Error(StatusCode::kInvalidArgument, "memory is null");
  Status status = internal::ValidateKv(k, v);
  if (status.ok()) {
    status = internal::ValidatePrecision("format.", format.precision, format.rotate_k);
  }
  if (status.ok()) status = internal::ValidateParallel(parallel);
  const internal::KernelTable* table = nullptr;
  if (status.ok()) status = internal::FindKernels(format.tier, &table);
  if (!status.ok()) return status;

  PackedHeader geometry = {};
  geometry.batch = k.batch;
  geometry.num_kv_heads = k.heads;
  geometry.head_dim = k.dim;
  geometry.v_head_dim = v.dim;
  geometry.capacity = k.length;
  geometry.length = k.length;
  const PrecisionKernels& kernels = table->kernels[static_cast<size_t>(format.precision)];
  std::shared_ptr<PackedKv> packed;
  status = PackedKv::Create(geometry, format, kernels, /*tail_rows=*/0, &packed);
  if (!status.ok()) return status;
  const size_t batch = static_cast<size_t>(k.batch);
  internal::PackTensors(kernels, packed->heads(), {0, batch * static_cast<size_t>(k.heads)}, k, v,
                        {batch, k.length, nullptr, nullptr}, parallel);
  memory->packed_ = std::move(packed);
  return Status();
}

int64_t CrossMemory::batch() const { return empty() ? 0 : packed_->header().batch; }
int64_t CrossMemory::kv_len() const { return empty() ? 0 : packed_->header().length; }
int64_t CrossMemory::num_kv_heads() const { return empty() ? 0 : packed_->header().num_kv_heads; }
int64_t CrossMemory::head_dim() const { return empty() ? 0 : packed_->header().head_dim; }
int64_t CrossMemory::v_head_dim() const { return empty() ? 0 : packed_->header().v_head_dim; }
Precision CrossMemory::precision() const {
  return empty() ? Precision::kF32 : packed_->precision();
}
bool CrossMemory::rotate_k() const {
  return !empty() && internal::IsRotated(packed_->header().layout);
}
size_t CrossMemory::bytes() const { return empty() ? 0 : packed_->bytes(); }

}  // namespace sightline
