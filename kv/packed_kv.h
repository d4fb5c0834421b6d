// The storage behind CrossMemory and KvCache: one aligned block with a header and a packed head for
// each (batch, kv head). Formats of a head: kv/layout.h.
#ifndef SIGHTLINE_KV_PACKED_KV_H_
#define SIGHTLINE_KV_PACKED_KV_H_

#include <stddef.h>
#include <stdint.h>

#include <memory>

#include "dispatch/kernel_table.h"
#include "kv/layout.h"
#include "sightline/kv.h"
#include "sightline/status.h"

namespace sightline {
namespace internal {

// Heads that follow one another in memory: of a PackedKv, or of a workspace.
struct PackedHeads {
  unsigned char* base;
  PackedShape shape;
  PackedOffsets offsets;
  size_t num_kv_heads;

  PackedHead at(size_t batch, size_t kv_head) const {
    return {base + (batch * num_kv_heads + kv_head) * offsets.bytes, shape, offsets};
  }
};

// First bytes of the block: what it holds, and in which layout.
struct PackedHeader {
  char magic[8];  // "SIGHTKV\0": tells a memory from other data once it is in a file
  uint32_t layout_version;
  LayoutId layout;
  int64_t batch;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t v_head_dim;
  int64_t capacity;  // keys asked for; packed heads round it up to kKeyBlock
  int64_t length;    // keys in use
};
static_assert(sizeof(PackedHeader) == kPackedAlignBytes, "heads follow the header at once");

// Tokens of an int8 cache's open tile, in f32; see kv_cache.cc.
struct PackedTail {
  float* k;  // [tail_rows][head_dim]
  float* v;  // [tail_rows][v_head_dim]
};

class PackedKv {
 public:
  // `geometry` says everything but magic, version and layout. The caller packs the first `length`
  // keys before anyone reads them; every byte that this does not write is 0. tail_rows: rows of K
  // and of V in f32 that each head keeps beside its packed form; see KvCache::Append.
  static Status Create(PackedHeader geometry, const KvFormat& format,
                       const PrecisionKernels& kernels, size_t tail_rows,
                       std::shared_ptr<PackedKv>* packed);
  PackedKv(const PackedKv&) = delete;
  PackedKv& operator=(const PackedKv&) = delete;
  ~PackedKv();

  const PackedHeader& header() const { return *reinterpret_cast<const PackedHeader*>(block_); }
  PackedHeader& header() { return *reinterpret_cast<PackedHeader*>(block_); }
  Precision precision() const { return precision_; }
  const PrecisionKernels& kernels() const { return *kernels_; }

  const PackedHeads& heads() const { return heads_; }
  PackedHead head(size_t batch, size_t kv_head) const { return heads_.at(batch, kv_head); }
  PackedTail tail(size_t batch, size_t kv_head) const;

  const unsigned char* block() const { return block_; }
  size_t bytes() const { return bytes_; }

 private:
  PackedKv() = default;

  unsigned char* block_ = nullptr;
  size_t bytes_ = 0;
  Precision precision_ = Precision::kF32;
  const PrecisionKernels* kernels_ = nullptr;
  PackedHeads heads_ = {};
  size_t tail_rows_ = 0;
  size_t tail_offset_ = 0;
  size_t tail_bytes_ = 0;  // per head
};

}  // namespace internal

// The way from the public handles to what they hold.
struct KvAccess {
  static const internal::PackedKv* Get(const CrossMemory& memory) { return memory.packed_.get(); }
  static const internal::PackedKv* Get(const KvCache& cache) { return cache.packed_.get(); }
  // For tests, which forge headers.
  static internal::PackedKv* Mutable(CrossMemory& memory) {
    return const_cast<internal::PackedKv*>(memory.packed_.get());
  }
};

}  // namespace sightline

#endif  // SIGHTLINE_KV_PACKED_KV_H_
