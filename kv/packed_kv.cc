#include "kv/packed_kv.h"

#include <string.h>

namespace sightline {
namespace internal {

PackedKv::PackedKv(const KvGeometry& geometry, size_t capacity)
    : geometry_(geometry),
      shape_(ShapeOf(geometry.layout, static_cast<size_t>(geometry.head_dim),
                     static_cast<size_t>(geometry.v_head_dim), capacity)),
      offsets_(OffsetsOf(shape_)) {}

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

}  // namespace internal
}  // namespace sightline
