#include "kv/packed_kv.h"

#include <string.h>

#include <new>

#include "dispatch/memory.h"

namespace sightline {
namespace internal {
namespace {

constexpr char kMagic[8] = "SIGHTKV";

// Sets *product to a * b + c unless it overflows.
bool MultiplyAdd(size_t a, size_t b, size_t c, size_t* product) {
  return !__builtin_mul_overflow(a, b, product) && !__builtin_add_overflow(*product, c, product);
}

// Zeroes what packing `length` keys may leave as it was, so that equal contents are equal bytes:
// all but whole blocks of K and whole tiles of V.
void ClearHead(const PackedHead& head, size_t length) {
  const PackedShape& shape = head.shape;
  const PackedOffsets& offsets = head.offsets;
  const size_t k_elements = length / kKeyBlock * kKeyBlock * PaddedHeadDim(shape);
  const size_t v_elements = length / kVTileKeys * kVTileKeys * PaddedVHeadDim(shape);
  const auto clear = [&](size_t begin, size_t end) { memset(head.base + begin, 0, end - begin); };
  clear(offsets.k + k_elements * KElementBytes(shape.layout), offsets.v);
  clear(offsets.v + v_elements * VElementBytes(shape.layout), offsets.k_scale);
  clear(offsets.k_scale, offsets.bytes);
}

}  // namespace

Status PackedKv::Create(PackedHeader geometry, const KvFormat& format,
                        const PrecisionKernels& kernels, size_t tail_rows,
                        std::shared_ptr<PackedKv>* packed) {
  const size_t head_dim = static_cast<size_t>(geometry.head_dim);
  const size_t v_head_dim = static_cast<size_t>(geometry.v_head_dim);
  geometry.layout = LayoutOf(kernels, format.rotate_k);
  const PackedShape shape =
      ShapeOf(geometry.layout, head_dim, v_head_dim, static_cast<size_t>(geometry.capacity));
  const PackedOffsets offsets = OffsetsOf(shape);
  const size_t tail_bytes =
      RoundUp(tail_rows * (head_dim + v_head_dim) * sizeof(float), kPackedAlignBytes);

  size_t num_heads = 0;
  size_t tail_offset = 0;
  size_t bytes = 0;
  if (!MultiplyAdd(static_cast<size_t>(geometry.batch), static_cast<size_t>(geometry.num_kv_heads),
                   0, &num_heads) ||
      !MultiplyAdd(num_heads, offsets.bytes, sizeof(PackedHeader), &tail_offset) ||
      !MultiplyAdd(num_heads, tail_bytes, tail_offset, &bytes)) {
    return Status::Error(
        StatusCode::kInvalidArgument,
        "batch %lld, num_kv_heads %lld and capacity %lld overflow the address space",
        static_cast<long long>(geometry.batch), static_cast<long long>(geometry.num_kv_heads),
        static_cast<long long>(geometry.capacity));
  }

  std::shared_ptr<PackedKv> created = ShareOrNull(new (std::nothrow) PackedKv());
  if (created != nullptr) created->block_ = AllocateAligned(bytes);
  if (created == nullptr || created->block_ == nullptr) {
    return Status::Error(StatusCode::kOutOfMemory, "%zu bytes for packed K and V", bytes);
  }
  for (size_t i = 0; i < num_heads; ++i) {
    unsigned char* base = created->block_ + sizeof(PackedHeader) + i * offsets.bytes;
    ClearHead({base, shape, offsets}, static_cast<size_t>(geometry.length));
  }
  memset(created->block_ + tail_offset, 0, bytes - tail_offset);
  memcpy(geometry.magic, kMagic, sizeof(kMagic));
  geometry.layout_version = kLayoutVersion;
  new (created->block_) PackedHeader(geometry);
  created->bytes_ = bytes;
  created->precision_ = format.precision;
  created->kernels_ = &kernels;
  created->heads_ = {created->block_ + sizeof(PackedHeader), shape, offsets,
                     static_cast<size_t>(geometry.num_kv_heads)};
  created->tail_rows_ = tail_rows;
  created->tail_offset_ = tail_offset;
  created->tail_bytes_ = tail_bytes;
  *packed = std::move(created);
  return Status();
}

PackedKv::~PackedKv() { FreeAligned(block_); }

PackedTail PackedKv::tail(size_t batch, size_t kv_head) const {
  unsigned char* begin =
      block_ + tail_offset_ + (batch * heads_.num_kv_heads + kv_head) * tail_bytes_;
  float* k = reinterpret_cast<float*>(begin);
  return {k, k + tail_rows_ * heads_.shape.head_dim};
}

}  // namespace internal
}  // namespace sightline
