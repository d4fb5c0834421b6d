// The storage behind CrossMemory: one aligned block with a header, the sequences' lengths, and a
// packed head for each (batch, kv head).
#ifndef SIGHTLINE_KV_PACKED_BLOCK_H_
#define SIGHTLINE_KV_PACKED_BLOCK_H_

#include <stddef.h>
#include <stdint.h>

#include <memory>

#include "kv/packed_kv.h"
#include "sightline/kv.h"
#include "sightline/status.h"

namespace sightline {
namespace internal {

// First bytes of the block: what it holds, and in which layout. Little-endian, as all numbers are.
struct PackedHeader {
  char magic[8];  // "SIGHTKV\0": tells a memory from other data
  uint32_t layout_version;
  LayoutId layout;
  int64_t batch;
  int64_t num_kv_heads;
  int64_t head_dim;
  int64_t v_head_dim;
  int64_t kv_len;  // keys of the longest sequence; packed heads round it up to kKeyBlock
  int64_t reserved;
};
static_assert(sizeof(PackedHeader) == kPackedAlignBytes, "lengths follow the header at once");

class PackedBlock final : public PackedKv {
 public:
  // Bytes of the block; fails if the address space is too small for it.
  static Status BytesFor(const CrossMemoryDesc& desc, LayoutId layout, size_t* bytes);

  // In `block`, which `owner` keeps, or in memory of its own where that is null. The caller packs
  // the keys of all sequences before anyone reads them; every byte that this does not write is 0.
  // kv_lens: [batch], null: all have kv_len.
  static Status Create(const CrossMemoryDesc& desc, const int32_t* kv_lens,
                       const PrecisionKernels& kernels, unsigned char* block,
                       std::shared_ptr<const void> owner, std::shared_ptr<PackedBlock>* packed);
  ~PackedBlock() override;

  int64_t length() const override { return header().kv_len; }
  SequenceKeys keys(size_t batch) const override;
  size_t bytes() const override { return bytes_; }

  const PackedHeader& header() const { return *reinterpret_cast<const PackedHeader*>(block_); }
  const int32_t* kv_lens() const {
    return reinterpret_cast<const int32_t*>(block_ + sizeof(PackedHeader));
  }
  PackedHeads heads() const;
  KvBlock block() const override { return {block_, bytes_}; }

 private:
  PackedBlock(const KvGeometry& geometry, size_t capacity) : PackedKv(geometry, capacity) {}

  unsigned char* block_ = nullptr;
  size_t bytes_ = 0;
  size_t heads_offset_ = 0;
  bool is_own_ = false;
  std::shared_ptr<const void> owner_;
};

}  // namespace internal
}  // namespace sightline

#endif  // SIGHTLINE_KV_PACKED_BLOCK_H_
