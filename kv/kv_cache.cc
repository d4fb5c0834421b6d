// The growing cache.
//
// Floats are packed where they belong, token by token. V in int8 shares a scale among the 128 keys
// of a tile, so the open tile is kept in f32 beside its packed form (the tail) and packed anew at
// each append: at most 128 rows, and closed tiles never change. The centres of quantised K and V,
// and the balance of rotated K, have to be the same for all keys: they are the first tile's,
// settled when it closes; until then K is packed anew as well. All of this depends on the tokens
// alone, not on how they were grouped into appends.
//
// Cost of appending one token: floats store it; int8 quantises its K and up to 128 rows of V, and
// in the first tile, whose centres still move, up to 128 rows of K as well; of mixed16 that is all.
#include <algorithm>

#include "dispatch/parallel.h"
#include "dispatch/tiers.h"
#include "dispatch/validate.h"
#include "kv/packed_kv.h"
#include "kv/prepare.h"
#include "quant/elements.h"
#include "sightline/kv.h"

namespace sightline {
namespace internal {
namespace {

void CopyRowsToF32(const SourceRows& rows, size_t num_rows, size_t dim, float* out) {
  for (size_t i = 0; i < num_rows; ++i) {
    const Row row = RowAt(rows, i);
    for (size_t d = 0; d < dim; ++d) *out++ = LoadElement(row, d);
  }
}

SourceRows DenseRows(float* data, size_t dim) {
  return {{reinterpret_cast<unsigned char*>(data), DType::kF32, sizeof(float), nullptr, 0},
          static_cast<int64_t>(dim * sizeof(float)),
          0};
}

// Tokens for one quantised head that already holds `length`.
void AppendCentered(const PrecisionKernels& kernels, const PackedHead& head, const PackedTail& tail,
                    size_t length, const SourceRows& k, const SourceRows& v, size_t num_tokens) {
  PackScratch scratch;
  const size_t head_dim = head.shape.head_dim;
  const size_t v_head_dim = head.shape.v_head_dim;
  for (size_t done = 0; done < num_tokens;) {
    const size_t in_tile = (length + done) % kKvTile;
    const size_t tile_begin = length + done - in_tile;
    const size_t count = std::min(kKvTile - in_tile, num_tokens - done);
    PackTask task = {};
    task.head = head;
    task.k = Skip(k, done);
    task.v = Skip(v, done);
    task.key_begin = tile_begin;
    task.num_keys = count;
    const bool is_settled = count == kKvTile || !HasQuantizedV(head.shape.layout);
    if (is_settled && tile_begin != 0) {
      task.key_begin += in_tile;
    } else {
      CopyRowsToF32(task.k, count, head_dim, tail.k + in_tile * head_dim);
      CopyRowsToF32(task.v, count, v_head_dim, tail.v + in_tile * v_head_dim);
      task.k = DenseRows(tail.k, head_dim);
      task.v = DenseRows(tail.v, v_head_dim);
      task.num_keys = in_tile + count;
      if (tile_begin == 0) {
        kernels.center(task, scratch.bytes);
      } else {
        task.num_keys_done = in_tile;
      }
    }
    kernels.pack(task, scratch.bytes);
    done += count;
  }
}

}  // namespace
}  // namespace internal

using internal::PackedHeader;
using internal::PackedKv;
using internal::PrecisionKernels;

Status KvCache::Create(const KvCacheDesc& given, KvCache* cache) {
  if (cache == nullptr) return Status::Error(StatusCode::kInvalidArgument, "cache is null");
  KvCacheDesc desc = given;
  if (desc.v_head_dim == 0) desc.v_head_dim = desc.head_dim;
  Status status = internal::ValidateCacheDesc(desc);
  const internal::KernelTable* table = nullptr;
  if (status.ok()) status = internal::FindKernels(desc.format.tier, &table);
  if (!status.ok()) return status;

  PackedHeader geometry = {};
  geometry.batch = desc.batch;
  geometry.num_kv_heads = desc.num_kv_heads;
  geometry.head_dim = desc.head_dim;
  geometry.v_head_dim = desc.v_head_dim;
  geometry.capacity = desc.capacity;
  const PrecisionKernels& kernels = table->kernels[static_cast<size_t>(desc.format.precision)];
  size_t tail_rows = 0;
  if (internal::HasQuantizedK(kernels.layout)) {
    tail_rows = std::min(internal::kKvTile, internal::RoundUp(static_cast<size_t>(desc.capacity),
                                                              internal::kKeyBlock));
  }
  std::shared_ptr<PackedKv> packed;
  status = PackedKv::Create(geometry, desc.format, kernels, tail_rows, &packed);
  if (status.ok()) cache->packed_ = std::move(packed);
  return status;
}

Status KvCache::Append(const ConstTensorView& k, const ConstTensorView& v,
                       const ParallelFor& parallel) {
  if (empty()) {
    return Status::Error(StatusCode::kInvalidArgument, "the cache is empty: create it first");
  }
  PackedHeader& header = packed_->header();
  Status status = internal::ValidateKv(k, v);
  if (status.ok()) {
    status = internal::ValidateKvShape(k, v, header.num_kv_heads, header.head_dim,
                                       header.v_head_dim, "cache");
  }
  if (status.ok()) status = internal::ValidateParallel(parallel);
  if (!status.ok()) return status;
  if (k.batch != header.batch) {
    return Status::Error(StatusCode::kInvalidArgument, "k.batch is %lld, the cache has %lld",
                         static_cast<long long>(k.batch), static_cast<long long>(header.batch));
  }
  if (k.length > header.capacity - header.length) {
    return Status::Error(StatusCode::kCapacityExceeded,
                         "k.length is %lld, the cache holds %lld of %lld tokens",
                         static_cast<long long>(k.length), static_cast<long long>(header.length),
                         static_cast<long long>(header.capacity));
  }

  PackedKv& packed = *packed_;
  const PrecisionKernels& kernels = packed.kernels();
  const size_t num_kv_heads = static_cast<size_t>(header.num_kv_heads);
  const size_t length = static_cast<size_t>(header.length);
  const size_t num_tokens = static_cast<size_t>(k.length);
  internal::ForEachTask(
      parallel, static_cast<size_t>(header.batch) * num_kv_heads, [&](size_t index, size_t) {
        const size_t batch = index / num_kv_heads;
        const size_t kv_head = index % num_kv_heads;
        const internal::PackedHead head = packed.head(batch, kv_head);
        const internal::SourceRows k_rows = internal::SourceRowsOf(k, batch, kv_head);
        const internal::SourceRows v_rows = internal::SourceRowsOf(v, batch, kv_head);
        if (kernels.center != nullptr) {
          internal::AppendCentered(kernels, head, packed.tail(batch, kv_head), length, k_rows,
                                   v_rows, num_tokens);
        } else {
          internal::PackScratch scratch;
          internal::PackTask task = {};
          task.head = head;
          task.k = k_rows;
          task.v = v_rows;
          task.key_begin = length;
          task.num_keys = num_tokens;
          kernels.pack(task, scratch.bytes);
        }
      });
  header.length += k.length;
  return Status();
}

void KvCache::Clear() {
  if (!empty()) packed_->header().length = 0;
}

int64_t KvCache::length() const { return empty() ? 0 : packed_->header().length; }
int64_t KvCache::capacity() const { return empty() ? 0 : packed_->header().capacity; }
int64_t KvCache::batch() const { return empty() ? 0 : packed_->header().batch; }
int64_t KvCache::num_kv_heads() const { return empty() ? 0 : packed_->header().num_kv_heads; }
int64_t KvCache::head_dim() const { return empty() ? 0 : packed_->header().head_dim; }
int64_t KvCache::v_head_dim() const { return empty() ? 0 : packed_->header().v_head_dim; }
Precision KvCache::precision() const { return empty() ? Precision::kF32 : packed_->precision(); }
bool KvCache::rotate_k() const { return !empty() && internal::IsRotated(packed_->header().layout); }
size_t KvCache::bytes() const { return empty() ? 0 : packed_->bytes(); }

}  // namespace sightline
