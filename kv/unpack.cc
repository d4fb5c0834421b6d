#include "kv/unpack.h"

#include <stdint.h>
#include <string.h>

#include <algorithm>

#include "quant/elements.h"

namespace sightline {
namespace internal {
namespace {

float FloatAt(const unsigned char* base, size_t index) {
  float x;
  memcpy(&x, base + index * sizeof(x), sizeof(x));
  return x;
}
uint16_t WordAt(const unsigned char* base, size_t index) {
  uint16_t x;
  memcpy(&x, base + index * sizeof(x), sizeof(x));
  return x;
}

// A stored element as it is, and an integer without what was added to it.
float FloatElement(LayoutId layout, const unsigned char* base, size_t index) {
  if (layout == LayoutId::kF32) return FloatAt(base, index);
  const uint16_t bits = WordAt(base, index);
  return layout == LayoutId::kF16 ? F32FromF16(bits) : F32FromBF16(bits);
}
float Quantum(unsigned char byte, bool is_biased) {
  return static_cast<float>(is_biased ? int{byte} - kBias : int{static_cast<int8_t>(byte)});
}
bool HasBiasedK(LayoutId layout) {
  return layout == LayoutId::kI8BiasedK || layout == LayoutId::kI8RotatedBiasedK;
}

// The reflection and the transform of quant/rotate-inl.h undo themselves, but for a factor of the
// block, which K was divided by beforehand: what is left is to apply them in the other order.
void UnrotateRow(size_t head_dim, float* row) {
  const size_t block = RotationBlock(head_dim);
  const size_t num_blocks = head_dim / block;
  for (size_t j = 0; num_blocks > 1 && j < block; ++j) {
    float sum = 0.0f;
    for (size_t d = j; d < head_dim; d += block) sum += row[d];
    const float shift = 2.0f / static_cast<float>(num_blocks) * sum;
    for (size_t d = j; d < head_dim; d += block) row[d] -= shift;
  }
  for (size_t stride = 1; stride < block; stride *= 2) {
    for (size_t d = 0; d < head_dim; ++d) {
      if ((d & stride) != 0) continue;
      const float a = row[d];
      const float b = row[d + stride];
      row[d] = a + b;
      row[d + stride] = a - b;
    }
  }
}

void UnpackKey(const PackedHead& head, size_t key, float* out) {
  const PackedShape& s = head.shape;
  const PackedOffsets& o = head.offsets;
  const unsigned char* k = head.base + o.k;
  if (!HasQuantizedK(s.layout)) {
    for (size_t d = 0; d < s.head_dim; ++d) out[d] = FloatElement(s.layout, k, KIndex(s, key, d));
    return;
  }
  const float scale = FloatAt(head.base + o.k_scale, key);
  for (size_t d = 0; d < s.head_dim; ++d) {
    const size_t index = KIndex(s, key, d);
    const float quantum = HasWideK(s.layout)
                              ? static_cast<float>(static_cast<int16_t>(WordAt(k, index)))
                              : Quantum(k[index], HasBiasedK(s.layout));
    out[d] = quantum * scale;
  }
  if (IsRotated(s.layout)) {
    UnrotateRow(s.head_dim, out);
    for (size_t d = 0; d < s.head_dim; ++d) out[d] *= FloatAt(head.base + o.q_factor, d);
  }
  for (size_t d = 0; d < s.head_dim; ++d) out[d] += FloatAt(head.base + o.k_center, d);
}

}  // namespace

void UnpackValue(const PackedHead& head, size_t key, float* out) {
  const PackedShape& s = head.shape;
  const PackedOffsets& o = head.offsets;
  const unsigned char* v = head.base + o.v;
  const size_t tile = key / kKvTile * PaddedVHeadDim(s);
  for (size_t c = 0; c < s.v_head_dim; ++c) {
    const size_t index = VIndex(s, key, c);
    if (!HasQuantizedV(s.layout)) {
      out[c] = FloatElement(s.layout, v, index);
    } else {
      out[c] = Quantum(v[index], HasBiasedV(s.layout)) * FloatAt(head.base + o.v_scale, tile + c) +
               FloatAt(head.base + o.v_center, c);
    }
  }
}

void UnpackRows(const PackedHead& head, size_t key, size_t num_keys, float* k, float* v) {
  for (size_t i = 0; i < num_keys; ++i) {
    UnpackKey(head, key + i, k + i * head.shape.head_dim);
    UnpackValue(head, key + i, v + i * head.shape.v_head_dim);
  }
}

}  // namespace internal
}  // namespace sightline
