// What kernels read, whatever holds it: packed heads of sequences, in one block (kv/packed_block.h)
// or in pages (kv/paged_kv.h). Formats of a head: kv/layout.h.
#ifndef SIGHTLINE_KV_PACKED_KV_H_
#define SIGHTLINE_KV_PACKED_KV_H_

#include <stddef.h>
#include <stdint.h>

#include <memory>
#include <utility>

#include "dispatch/kernel_table.h"
#include "kv/layout.h"
#include "sightline/kv.h"
#include "sightline/status.h"

namespace sightline {
namespace internal {

// Heads that follow one another in memory: of a block, of a page, or of a workspace.
struct PackedHeads {
  unsigned char* base;
  PackedShape shape;
  PackedOffsets offsets;
  size_t num_kv_heads;
  size_t first;  // the head at `base`, counted through the batch

  PackedHead at(size_t batch, size_t kv_head) const {
    return {base + (batch * num_kv_heads + kv_head - first) * offsets.bytes, shape, offsets};
  }
};

// Keys of one sequence, of all kv heads: `heads` holds their first head, and where they are in
// pages, the first page that is there.
struct SequenceKeys {
  unsigned char* heads;
  KeyPages pages;  // head_offset is that of the first head
  size_t count;
};

// Memory in one piece.
struct KvBlock {
  const unsigned char* data;
  size_t bytes;
};

// Shape and format of K and V that outlive a call.
struct KvGeometry {
  LayoutId layout;
  uint32_t layout_version;
  Precision precision;
  int64_t batch;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t v_head_dim;
};

class MappedFile;

class PackedKv {
 public:
  PackedKv(const PackedKv&) = delete;
  PackedKv& operator=(const PackedKv&) = delete;
  virtual ~PackedKv() = default;

  const KvGeometry& geometry() const { return geometry_; }
  KvGeometry& geometry() { return geometry_; }
  const PackedShape& shape() const { return shape_; }  // of a block, or of a page
  const PackedOffsets& offsets() const { return offsets_; }

  virtual int64_t length() const = 0;  // of the longest sequence
  virtual SequenceKeys keys(size_t batch) const = 0;
  virtual size_t bytes() const = 0;
  // What a caller's tensors may overlap: the one block of a memory; empty for pages, which nobody
  // outside knows.
  virtual KvBlock block() const = 0;
  // The open file whose sections it is; null for all others.
  virtual const MappedFile* file() const { return nullptr; }

 protected:
  PackedKv(const KvGeometry& geometry, size_t capacity);

  KvGeometry geometry_;
  PackedShape shape_;
  PackedOffsets offsets_;
};

// Bytes of what all rows of a head have in common: k_center, v_center and q_factor follow one
// another.
inline size_t CenterBytes(const PackedOffsets& offsets) {
  return offsets.v_special - offsets.k_center;
}

// Zeroes what packing `length` keys may leave as it was, so that equal contents are equal bytes:
// all but whole blocks of K and whole lanes of V.
void ClearHead(const PackedHead& head, size_t length);

}  // namespace internal

// The way from the public handles to what they hold.
struct KvAccess {
  static const internal::PackedKv* Get(const CrossMemory& memory) { return memory.packed_.get(); }
  static const internal::PackedKv* Get(const KvCache& cache);
  static internal::PagedKv* GetPaged(KvCache& cache);
  static const internal::PagedKv* GetPaged(const KvCache& cache);
  static void Set(std::shared_ptr<const internal::PackedKv> packed, CrossMemory* memory) {
    memory->packed_ = std::move(packed);
  }
  // For tests, which forge geometries.
  static internal::PackedKv* Mutable(CrossMemory& memory) {
    return const_cast<internal::PackedKv*>(memory.packed_.get());
  }
};

}  // namespace sightline

#endif  // SIGHTLINE_KV_PACKED_KV_H_
