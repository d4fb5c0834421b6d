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
  const size_t v_bytes = VElementBytes(shape.layout);
  const auto clear = [&](size_t begin, size_t end) { memset(head.base + begin, 0, end - begin); };
  clear(offsets.k + k_elements * KElementBytes(shape.layout), offsets.v);
  // Of V's tile that is packed in part, the lanes that are not packed whole.
  size_t key = length / VDepth(shape.layout) * VDepth(shape.layout);
  while (key < shape.capacity) {
    const size_t tile_keys = VTileKeysAt(shape, key);
    for (size_t channel = 0; channel < PaddedVHeadDim(shape); channel += kPanelWidth) {
      const VPanel panel = VPanelAt(shape, key, channel);
      const size_t begin = offsets.v + panel.offset * v_bytes;
      clear(begin + key % kVTileKeys * panel.width * v_bytes,
            begin + tile_keys * panel.width * v_bytes);
    }
    key += tile_keys - key % kVTileKeys;
  }
  clear(offsets.k_scale, offsets.bytes);
}

}  // namespace internal
}  // namespace sightline
