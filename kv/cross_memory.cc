#include <mutex>
#include <new>

#include "dispatch/memory.h"
#include "dispatch/tiers.h"
#include "dispatch/validate.h"
#include "kv/packed_block.h"
#include "kv/paged_kv.h"
#include "kv/prepare.h"
#include "sightline/kv.h"

namespace sightline {
namespace internal {

// Layers of one size; each is packed before its memory can be had.
struct MemorySetImpl {
  CrossMemoryDesc desc;
  const PrecisionKernels* kernels = nullptr;
  size_t layer_bytes = 0;
  size_t num_layers = 0;
  std::shared_ptr<unsigned char> block;
  std::mutex mutex;  // for what follows
  struct Layer {
    bool is_taken = false;  // by a Fill, which may not be done yet
    std::shared_ptr<const PackedKv> packed;
  };
  std::unique_ptr<Layer[]> layers;
};

namespace {

// Packs validated tensors into a block of the caller's or of its own.
Status PackInto(const CrossMemoryDesc& desc, const PrecisionKernels& kernels,
                const ConstTensorView& k, const ConstTensorView& v, const int32_t* kv_lens,
                unsigned char* block, std::shared_ptr<const void> owner,
                const ParallelFor& parallel, std::shared_ptr<const PackedKv>* packed) {
  std::shared_ptr<PackedBlock> created;
  Status status = PackedBlock::Create(desc, kv_lens, kernels, block, std::move(owner), &created);
  if (!status.ok()) return status;
  const size_t batch = static_cast<size_t>(k.batch);
  const HeadRange all = {0, batch * static_cast<size_t>(k.heads)};
  const SequenceSpans sequences = {batch, k.length, nullptr, kv_lens};
  FindCenters(kernels, created->heads(), all, k, v, sequences, parallel);
  PackTensors(kernels, created->heads(), all, k, v, sequences, parallel);
  *packed = std::move(created);
  return status;
}

Status ValidateTensors(const ConstTensorView& k, const ConstTensorView& v, const int32_t* kv_lens,
                       const ParallelFor& parallel) {
  Status status = ValidateKv(k, v);
  if (status.ok()) status = ValidateKvLens(kv_lens, k.batch, k.length);
  if (status.ok()) status = ValidateParallel(parallel);
  return status;
}

}  // namespace
}  // namespace internal

using internal::MemorySetImpl;
using internal::PackedBlock;
using internal::PrecisionKernels;

Status CrossMemory::Create(const ConstTensorView& k, const ConstTensorView& v,
                           const KvFormat& format, CrossMemory* memory, const ParallelFor& parallel,
                           const CrossMemoryOptions& options) {
  if (memory == nullptr) return Status::Error(StatusCode::kInvalidArgument, "memory is null");
  Status status = internal::ValidateTensors(k, v, options.kv_lens, parallel);
  if (!status.ok()) return status;
  CrossMemoryDesc desc;
  desc.batch = k.batch;
  desc.kv_len = k.length;
  desc.num_kv_heads = k.heads;
  desc.head_dim = k.dim;
  desc.v_head_dim = v.dim;
  desc.format = format;
  status = internal::ValidatePrecision("format.", format.precision, format.rotate_k);
  const PrecisionKernels* kernels = nullptr;
  if (status.ok()) status = internal::FindKernels(format, &kernels);
  if (!status.ok()) return status;
  if (options.placement.data != nullptr || options.placement.bytes != 0) {
    size_t bytes = 0;
    status = PackedBlock::BytesFor(desc, internal::LayoutOf(*kernels, format.rotate_k), &bytes);
    if (status.ok()) status = internal::ValidatePlacement(options.placement, bytes);
    if (!status.ok()) return status;
  }
  return internal::PackInto(desc, *kernels, k, v, options.kv_lens,
                            static_cast<unsigned char*>(options.placement.data), nullptr, parallel,
                            &memory->packed_);
}

Status CrossMemory::From(const KvCache& cache, CrossMemory* memory, const int32_t* kv_lens) {
  if (memory == nullptr) return Status::Error(StatusCode::kInvalidArgument, "memory is null");
  if (cache.empty()) {
    return Status::Error(StatusCode::kInvalidArgument, "the cache is empty: create it first");
  }
  Status status = internal::ValidateKvLens(kv_lens, cache.batch(), cache.length());
  std::shared_ptr<internal::PagedKv> shared;
  if (status.ok()) status = cache.packed_->Share(&shared);
  if (status.ok() && kv_lens != nullptr) status = shared->SetLengths(kv_lens);
  if (status.ok()) memory->packed_ = std::move(shared);
  return status;
}

Status CrossMemory::Bytes(const CrossMemoryDesc& given, size_t* bytes) {
  return CrossMemorySet::Bytes(given, 1, bytes);
}

int64_t CrossMemory::batch() const { return empty() ? 0 : packed_->geometry().batch; }
int64_t CrossMemory::kv_len() const { return empty() ? 0 : packed_->length(); }
int64_t CrossMemory::kv_len(int64_t batch_entry) const {
  if (batch_entry < 0 || batch_entry >= batch()) return 0;
  return static_cast<int64_t>(packed_->keys(static_cast<size_t>(batch_entry)).count);
}
int64_t CrossMemory::num_kv_heads() const { return empty() ? 0 : packed_->geometry().num_kv_heads; }
int64_t CrossMemory::head_dim() const { return empty() ? 0 : packed_->geometry().head_dim; }
int64_t CrossMemory::v_head_dim() const { return empty() ? 0 : packed_->geometry().v_head_dim; }
Precision CrossMemory::precision() const {
  return empty() ? Precision::kF32 : packed_->geometry().precision;
}
bool CrossMemory::rotate_k() const {
  return !empty() && internal::IsRotated(packed_->geometry().layout);
}
size_t CrossMemory::bytes() const { return empty() ? 0 : packed_->bytes(); }

namespace {

// Checks a set's desc and completes it.
Status Complete(const CrossMemoryDesc& given, int64_t num_layers, CrossMemoryDesc* desc,
                const PrecisionKernels** kernels, size_t* layer_bytes) {
  *desc = given;
  if (desc->v_head_dim == 0) desc->v_head_dim = desc->head_dim;
  Status status = internal::ValidateMemoryDesc(*desc, num_layers);
  if (status.ok()) status = internal::FindKernels(desc->format, kernels);
  if (!status.ok()) return status;
  const auto layout = internal::LayoutOf(**kernels, desc->format.rotate_k);
  status = PackedBlock::BytesFor(*desc, layout, layer_bytes);
  size_t bytes = 0;
  if (status.ok() &&
      __builtin_mul_overflow(*layer_bytes, static_cast<size_t>(num_layers), &bytes)) {
    return Status::Error(StatusCode::kInvalidArgument,
                         "num_layers is %lld, of %zu bytes each: they overflow the address space",
                         static_cast<long long>(num_layers), *layer_bytes);
  }
  return status;
}

}  // namespace

Status CrossMemorySet::Bytes(const CrossMemoryDesc& given, int64_t num_layers, size_t* bytes) {
  if (bytes == nullptr) return Status::Error(StatusCode::kInvalidArgument, "bytes is null");
  CrossMemoryDesc desc;
  const PrecisionKernels* kernels = nullptr;
  size_t layer_bytes = 0;
  Status status = Complete(given, num_layers, &desc, &kernels, &layer_bytes);
  if (status.ok()) *bytes = layer_bytes * static_cast<size_t>(num_layers);
  return status;
}

Status CrossMemorySet::Create(const CrossMemoryDesc& given, int64_t num_layers, CrossMemorySet* set,
                              const KvPlacement& placement) {
  if (set == nullptr) return Status::Error(StatusCode::kInvalidArgument, "set is null");
  const std::shared_ptr<MemorySetImpl> impl =
      internal::ShareOrNull(new (std::nothrow) MemorySetImpl());
  if (impl == nullptr) return Status::Error(StatusCode::kOutOfMemory, "the set");
  Status status = Complete(given, num_layers, &impl->desc, &impl->kernels, &impl->layer_bytes);
  if (!status.ok()) return status;
  impl->num_layers = static_cast<size_t>(num_layers);
  const size_t bytes = impl->layer_bytes * impl->num_layers;
  unsigned char* block = static_cast<unsigned char*>(placement.data);
  const bool is_placed = placement.data != nullptr || placement.bytes != 0;
  if (is_placed) {
    status = internal::ValidatePlacement(placement, bytes);
    if (!status.ok()) return status;
  } else {
    block = internal::AllocateAligned(bytes);
  }
  impl->layers.reset(new (std::nothrow) MemorySetImpl::Layer[impl->num_layers]);
  if (block != nullptr) {
    impl->block = internal::ShareOrNull(block, [is_placed](unsigned char* data) {
      if (!is_placed) internal::FreeAligned(data);
    });
  }
  if (impl->block == nullptr || impl->layers == nullptr) {
    return Status::Error(StatusCode::kOutOfMemory, "%zu bytes for %lld layers", bytes,
                         static_cast<long long>(num_layers));
  }
  set->impl_ = impl;
  return status;
}

Status CrossMemorySet::Fill(int64_t layer, const ConstTensorView& k, const ConstTensorView& v,
                            const ParallelFor& parallel, const int32_t* kv_lens) {
  if (empty()) {
    return Status::Error(StatusCode::kInvalidArgument, "the set is empty: create it first");
  }
  MemorySetImpl& impl = *impl_;
  if (layer < 0 || layer >= num_layers()) {
    return Status::Error(StatusCode::kInvalidArgument, "layer is %lld, must be 0 to %lld",
                         static_cast<long long>(layer), static_cast<long long>(num_layers() - 1));
  }
  CrossMemoryDesc desc = impl.desc;
  Status status = internal::ValidateTensors(k, v, kv_lens, parallel);
  if (status.ok()) {
    status =
        internal::ValidateKvShape(k, v, desc.num_kv_heads, desc.head_dim, desc.v_head_dim, "set");
  }
  if (!status.ok()) return status;
  if (k.batch != desc.batch) {
    return Status::Error(StatusCode::kInvalidArgument, "k.batch is %lld, the set has %lld",
                         static_cast<long long>(k.batch), static_cast<long long>(desc.batch));
  }
  if (k.length > desc.kv_len) {
    return Status::Error(StatusCode::kCapacityExceeded, "k.length is %lld, the set's kv_len %lld",
                         static_cast<long long>(k.length), static_cast<long long>(desc.kv_len));
  }
  desc.kv_len = k.length;
  MemorySetImpl::Layer& filled = impl.layers[static_cast<size_t>(layer)];
  {
    const std::lock_guard<std::mutex> lock(impl.mutex);
    if (filled.is_taken) {
      return Status::Error(StatusCode::kInvalidArgument, "layer %lld is filled already",
                           static_cast<long long>(layer));
    }
    filled.is_taken = true;
  }
  unsigned char* block = impl.block.get() + static_cast<size_t>(layer) * impl.layer_bytes;
  std::shared_ptr<const internal::PackedKv> packed;
  status =
      internal::PackInto(desc, *impl.kernels, k, v, kv_lens, block, impl.block, parallel, &packed);
  const std::lock_guard<std::mutex> lock(impl.mutex);
  filled.packed = std::move(packed);
  filled.is_taken = status.ok();
  return status;
}

int64_t CrossMemorySet::num_layers() const {
  return empty() ? 0 : static_cast<int64_t>(impl_->num_layers);
}

CrossMemory CrossMemorySet::layer(int64_t i) const {
  CrossMemory memory;
  if (i < 0 || i >= num_layers()) return memory;
  const std::lock_guard<std::mutex> lock(impl_->mutex);
  memory.packed_ = impl_->layers[static_cast<size_t>(i)].packed;
  return memory;
}

size_t CrossMemorySet::bytes() const {
  return empty() ? 0 : impl_->layer_bytes * impl_->num_layers;
}

}  // namespace sightline
