#include "kv/packed_block.h"

#include <string.h>

#include <new>
#include <utility>

#include "dispatch/memory.h"

namespace sightline {
namespace internal {
namespace {

constexpr char kMagic[8] = "SIGHTKV";

// Sets *product to a * b + c unless it overflows.
bool MultiplyAdd(size_t a, size_t b, size_t c, size_t* product) {
  return !__builtin_mul_overflow(a, b, product) && !__builtin_add_overflow(*product, c, product);
}

size_t HeadsOffset(int64_t batch) {
  const uint64_t bytes = sizeof(PackedHeader) + static_cast<uint64_t>(batch) * sizeof(int32_t);
  const uint64_t mask = kPackedAlignBytes - 1;
  return AddressableBytes((bytes + mask) & ~mask);
}

}  // namespace

Status PackedBlock::BytesFor(const CrossMemoryDesc& desc, LayoutId layout, size_t* bytes) {
  const PackedShape shape =
      ShapeOf(layout, static_cast<size_t>(desc.head_dim), static_cast<size_t>(desc.v_head_dim),
              static_cast<size_t>(desc.kv_len));
  size_t num_heads = 0;
  size_t total = 0;
  if (!MultiplyAdd(static_cast<size_t>(desc.batch), static_cast<size_t>(desc.num_kv_heads), 0,
                   &num_heads) ||
      !MultiplyAdd(num_heads, OffsetsOf(shape).bytes, HeadsOffset(desc.batch), &total) ||
      total == SIZE_MAX) {  // what cannot be counted: see AddressableBytes
    return Status::Error(StatusCode::kInvalidArgument,
                         "batch %lld, num_kv_heads %lld and kv_len %lld overflow the address space",
                         static_cast<long long>(desc.batch),
                         static_cast<long long>(desc.num_kv_heads),
                         static_cast<long long>(desc.kv_len));
  }
  *bytes = total;
  return Status();
}

Status PackedBlock::Create(const CrossMemoryDesc& desc, const int32_t* kv_lens,
                           const PrecisionKernels& kernels, unsigned char* block,
                           std::shared_ptr<const void> owner,
                           std::shared_ptr<PackedBlock>* packed) {
  const LayoutId layout = LayoutOf(kernels, desc.format.rotate_k);
  const KvGeometry geometry = {layout,         kLayoutVersion,    desc.format.precision,
                               desc.batch,     desc.num_kv_heads, desc.head_dim,
                               desc.v_head_dim};
  size_t bytes = 0;
  Status status = BytesFor(desc, layout, &bytes);
  if (!status.ok()) return status;
  std::shared_ptr<PackedBlock> created =
      ShareOrNull(new (std::nothrow) PackedBlock(geometry, static_cast<size_t>(desc.kv_len)));
  if (created != nullptr) {
    created->is_own_ = block == nullptr;
    created->block_ = block == nullptr ? AllocateAligned(bytes) : block;
  }
  if (created == nullptr || created->block_ == nullptr) {
    return Status::Error(StatusCode::kOutOfMemory, "%zu bytes for packed K and V", bytes);
  }
  created->bytes_ = bytes;
  created->heads_offset_ = HeadsOffset(desc.batch);
  created->owner_ = std::move(owner);

  PackedHeader header = {};
  memcpy(header.magic, kMagic, sizeof(kMagic));
  header.layout_version = kLayoutVersion;
  header.layout = layout;
  header.batch = desc.batch;
  header.num_kv_heads = desc.num_kv_heads;
  header.head_dim = desc.head_dim;
  header.v_head_dim = desc.v_head_dim;
  header.kv_len = desc.kv_len;
  unsigned char* begin = created->block_;
  memset(begin, 0, created->heads_offset_);
  new (begin) PackedHeader(header);
  int32_t* lens = reinterpret_cast<int32_t*>(begin + sizeof(PackedHeader));
  const PackedHeads heads = created->heads();
  for (size_t b = 0; b < static_cast<size_t>(desc.batch); ++b) {
    lens[b] = kv_lens != nullptr ? kv_lens[b] : static_cast<int32_t>(desc.kv_len);
    for (size_t h = 0; h < heads.num_kv_heads; ++h) {
      ClearHead(heads.at(b, h), static_cast<size_t>(lens[b]));
    }
  }
  *packed = std::move(created);
  return Status();
}

PackedBlock::~PackedBlock() {
  if (is_own_) FreeAligned(block_);
}

PackedHeads PackedBlock::heads() const {
  return {block_ + heads_offset_, shape_, offsets_, static_cast<size_t>(geometry_.num_kv_heads), 0};
}

SequenceKeys PackedBlock::keys(size_t batch) const {
  return {heads().at(batch, 0).base, {}, static_cast<size_t>(kv_lens()[batch])};
}

}  // namespace internal
}  // namespace sightline
