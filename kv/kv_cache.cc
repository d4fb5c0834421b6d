// The public side of caches and their pools; what they do is in kv/paged_kv.h.
#include <algorithm>
#include <new>

#include "dispatch/memory.h"
#include "dispatch/tiers.h"
#include "dispatch/validate.h"
#include "kv/paged_kv.h"
#include "sightline/kv.h"

namespace sightline {

using internal::KvPoolImpl;
using internal::LayoutId;
using internal::PagedKv;
using internal::PrecisionKernels;

namespace {

// Tokens of a page where the caller does not say: 512, since the ends of smaller ones cost time
// that shows, twice that and twice again where it helps and hurts little. It helps where K and V
// come from DRAM, which is read slowly by short runs; docs/kernels/memories.md. It hurts short
// contexts, which take a page, and forks, which copy one: so pages stay a small part of the
// capacity. A window forgets by whole pages.
size_t DefaultPageTokens(const KvCacheDesc& desc, LayoutId layout) {
  constexpr size_t kLeast = 512;
  constexpr size_t kMost = 2048;
  constexpr size_t kMostBytes = 256 << 10;  // of K and V of a head: as fast as longer runs, nearly
  constexpr size_t kPages = 32;             // of a full cache: all but 3 % of their room is used
  const auto capacity = static_cast<size_t>(desc.capacity);
  const size_t token_bytes = internal::KeyBytes(layout, static_cast<size_t>(desc.head_dim),
                                                static_cast<size_t>(desc.v_head_dim));
  size_t tokens = kLeast;
  while (desc.window_left < 0 && 2 * tokens <= std::min(kMost, capacity / kPages) &&
         2 * tokens * token_bytes <= kMostBytes) {
    tokens *= 2;
  }
  return internal::RoundUp(std::clamp<size_t>(capacity, 1, tokens), internal::kKvTile);
}

Status CreatePool(const KvPoolDesc& desc, const PrecisionKernels& kernels, size_t max_pages,
                  std::shared_ptr<KvPoolImpl>* pool) {
  *pool = internal::ShareOrNull(new (std::nothrow) KvPoolImpl(desc, kernels, max_pages));
  if (*pool == nullptr || !(*pool)->no_pages) {
    pool->reset();
    return Status::Error(StatusCode::kOutOfMemory, "the pool");
  }
  if (desc.preallocate && !(*pool)->pages.Reserve(max_pages)) {
    pool->reset();
    return Status::Error(StatusCode::kOutOfMemory, "%zu pages", max_pages);
  }
  return Status();
}

Status NotCreated() {
  return Status::Error(StatusCode::kInvalidArgument, "the cache is empty: create it first");
}

}  // namespace

const internal::PackedKv* KvAccess::Get(const KvCache& cache) { return cache.packed_.get(); }
PagedKv* KvAccess::GetPaged(KvCache& cache) { return cache.packed_.get(); }
const PagedKv* KvAccess::GetPaged(const KvCache& cache) { return cache.packed_.get(); }

Status KvPool::Create(const KvPoolDesc& given, KvPool* pool) {
  if (pool == nullptr) return Status::Error(StatusCode::kInvalidArgument, "pool is null");
  KvPoolDesc desc = given;
  if (desc.v_head_dim == 0) desc.v_head_dim = desc.head_dim;
  Status status = internal::ValidatePoolDesc(desc);
  const PrecisionKernels* kernels = nullptr;
  if (status.ok()) status = internal::FindKernels(desc.format, &kernels);
  std::shared_ptr<KvPoolImpl> impl;
  if (status.ok()) {
    status = CreatePool(desc, *kernels, static_cast<size_t>(desc.max_pages), &impl);
  }
  if (status.ok()) pool->impl_ = std::move(impl);
  return status;
}

int64_t KvPool::page_tokens() const { return empty() ? 0 : impl_->desc.page_tokens; }
int64_t KvPool::max_pages() const { return empty() ? 0 : impl_->desc.max_pages; }
int64_t KvPool::pages_in_use() const {
  return empty() ? 0 : static_cast<int64_t>(impl_->pages.num_taken());
}
size_t KvPool::page_bytes() const { return empty() ? 0 : impl_->pages.block_bytes(); }

Status KvCache::Create(const KvCacheDesc& given, KvCache* cache) {
  if (cache == nullptr) return Status::Error(StatusCode::kInvalidArgument, "cache is null");
  KvCacheDesc desc = given;
  std::shared_ptr<KvPoolImpl> pool;
  Status status;
  if (desc.pool != nullptr) {
    if (desc.pool->empty()) {
      return Status::Error(StatusCode::kInvalidArgument, "pool is empty: create it first");
    }
    pool = desc.pool->impl_;
    status = internal::ValidatePooledCacheDesc(desc, pool->desc.format);
  } else {
    if (desc.v_head_dim == 0) desc.v_head_dim = desc.head_dim;
    KvPoolDesc own;
    if (desc.page_tokens != 0) own.page_tokens = desc.page_tokens;
    own.num_kv_heads = desc.num_kv_heads;
    own.head_dim = desc.head_dim;
    own.v_head_dim = desc.v_head_dim;
    own.format = desc.format;
    status = internal::ValidateCacheDesc(desc, own);
    const PrecisionKernels* kernels = nullptr;
    if (status.ok()) status = internal::FindKernels(own.format, &kernels);
    if (!status.ok()) return status;
    if (desc.page_tokens == 0) {
      const LayoutId layout = internal::LayoutOf(*kernels, own.format.rotate_k);
      own.page_tokens = static_cast<int64_t>(DefaultPageTokens(desc, layout));
    }
    status = CreatePool(own, *kernels, SIZE_MAX, &pool);
  }
  if (!status.ok()) return status;
  return PagedKv::Create(std::move(pool), desc.batch,
                         {desc.capacity, desc.window_left, desc.num_sinks}, &cache->packed_);
}

Status KvCache::Append(const ConstTensorView& k, const ConstTensorView& v,
                       const ParallelFor& parallel) {
  if (empty()) return NotCreated();
  const internal::KvGeometry& geometry = packed_->geometry();
  Status status = internal::ValidateKv(k, v);
  if (status.ok()) {
    status = internal::ValidateKvShape(k, v, geometry.num_kv_heads, geometry.head_dim,
                                       geometry.v_head_dim, "cache");
  }
  if (status.ok()) status = internal::ValidateParallel(parallel);
  if (!status.ok()) return status;
  if (k.batch != geometry.batch) {
    return Status::Error(StatusCode::kInvalidArgument, "k.batch is %lld, the cache has %lld",
                         static_cast<long long>(k.batch), static_cast<long long>(geometry.batch));
  }
  if (k.length > internal::kMaxCount - packed_->length()) {
    return Status::Error(StatusCode::kCapacityExceeded,
                         "k.length is %lld, which positions end at %lld after %lld tokens",
                         static_cast<long long>(k.length),
                         static_cast<long long>(internal::kMaxCount),
                         static_cast<long long>(packed_->length()));
  }
  return packed_->Append(k, v, parallel);
}

Status KvCache::Truncate(int64_t length) {
  return empty() ? NotCreated() : packed_->Truncate(length);
}

Status KvCache::Fork(KvCache* child) const {
  if (empty()) return NotCreated();
  if (child == nullptr) return Status::Error(StatusCode::kInvalidArgument, "child is null");
  return packed_->Share(&child->packed_);
}

Status KvCache::Reorder(const int32_t* parents, int64_t batch) {
  if (empty()) return NotCreated();
  Status status = internal::ValidateParents(parents, batch, packed_->geometry().batch);
  return status.ok() ? packed_->Reorder(parents, batch) : status;
}

Status KvCache::Evict(int64_t batch_entry, const int32_t* positions, int64_t count) {
  if (empty()) return NotCreated();
  Status status = internal::ValidateEviction(batch_entry, positions, count,
                                             packed_->geometry().batch, packed_->length());
  if (!status.ok()) return status;
  return packed_->Evict(static_cast<size_t>(batch_entry), positions, static_cast<size_t>(count));
}

void KvCache::Clear() {
  if (!empty()) packed_->Clear();
}

int64_t KvCache::length() const { return empty() ? 0 : packed_->length(); }
int64_t KvCache::num_evicted(int64_t batch_entry) const {
  if (batch_entry < 0 || batch_entry >= batch()) return 0;
  return static_cast<int64_t>(packed_->num_evicted(static_cast<size_t>(batch_entry)));
}
int64_t KvCache::capacity() const { return empty() ? 0 : packed_->limits().capacity; }
int64_t KvCache::batch() const { return empty() ? 0 : packed_->geometry().batch; }
int64_t KvCache::num_kv_heads() const { return empty() ? 0 : packed_->geometry().num_kv_heads; }
int64_t KvCache::head_dim() const { return empty() ? 0 : packed_->geometry().head_dim; }
int64_t KvCache::v_head_dim() const { return empty() ? 0 : packed_->geometry().v_head_dim; }
int64_t KvCache::page_tokens() const { return empty() ? 0 : packed_->pool().desc.page_tokens; }
int64_t KvCache::window_left() const { return empty() ? -1 : packed_->limits().window_left; }
Precision KvCache::precision() const {
  return empty() ? Precision::kF32 : packed_->geometry().precision;
}
bool KvCache::rotate_k() const {
  return !empty() && internal::IsRotated(packed_->geometry().layout);
}
size_t KvCache::bytes() const { return empty() ? 0 : packed_->bytes(); }

}  // namespace sightline
