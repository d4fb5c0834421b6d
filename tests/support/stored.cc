#include "support/stored.h"

#include <string.h>

#include <algorithm>

#include "support/numeric.h"
#include "support/packed.h"
#include "support/problem.h"

namespace sightline {
namespace testing {
namespace {

using internal::PackedKv;
using internal::TileKeys;

// An element of packed K or V that is `index` elements behind `data`.
double ElementAt(const unsigned char* data, size_t index, size_t bytes, bool is_integer, int bias,
                 bool is_f16) {
  const unsigned char* at = data + index * bytes;
  if (bytes == 4) {
    float x;
    memcpy(&x, at, sizeof(x));
    return static_cast<double>(x);
  }
  if (bytes == 1) return bias != 0 ? *at - bias : static_cast<int8_t>(*at);
  uint16_t bits;
  memcpy(&bits, at, sizeof(bits));
  if (is_integer) return static_cast<int16_t>(bits);
  return static_cast<double>(is_f16 ? F32FromF16(bits) : F32FromBF16(bits));
}

double FloatAt(const unsigned char* data, size_t index) {
  float x;
  memcpy(&x, data + index * sizeof(float), sizeof(x));
  return static_cast<double>(x);
}

bool IsPresent(const internal::KeyPages& pages, size_t key) {
  if (pages.tiles == nullptr) return true;
  const TileKeys keys = pages.tiles[key / internal::kKvTile];
  if (keys != TileKeys::kSome) return keys == TileKeys::kAll;
  return (pages.kept[key / 32] >> key % 32 & 1) != 0;
}

// What is in the head of one key.
void ReadKey(const PackedKey& found, size_t i, StoredHead* head) {
  const internal::PackedShape& shape = found.head.shape;
  const internal::PackedOffsets& offsets = found.head.offsets;
  const unsigned char* base = found.head.base;
  const size_t key = found.key;
  const bool is_f16 = shape.layout == internal::LayoutId::kF16;
  const bool quantized_k = internal::HasQuantizedK(shape.layout);
  const bool quantized_v = internal::HasQuantizedV(shape.layout);
  const bool biased_v = internal::HasBiasedV(shape.layout);
  const int k_bias = quantized_v && !biased_v && !internal::HasWideK(shape.layout) ? 128 : 0;
  const size_t k_depth = internal::KDepth(shape.layout);
  if (quantized_k) head->k_step[i] = FloatAt(base + offsets.k_scale, key);
  for (size_t d = 0; d < shape.head_dim; ++d) {
    const size_t in_block = d / k_depth * internal::kKeyBlock + key % internal::kKeyBlock;
    const size_t index = internal::KBlockOffset(shape, key) + in_block * k_depth + d % k_depth;
    const double x = ElementAt(base + offsets.k, index, internal::KElementBytes(shape.layout),
                               quantized_k, k_bias, is_f16);
    head->k[i * shape.head_dim + d] = quantized_k ? x * head->k_step[i] : x;
  }
  const size_t v_depth = internal::VDepth(shape.layout);
  const size_t row = key % internal::kVTileKeys;
  const size_t tile = key / internal::kKvTile * internal::PaddedVHeadDim(shape);
  for (size_t c = 0; c < shape.v_head_dim; ++c) {
    const internal::VPanel panel = internal::VPanelAt(shape, key, c);
    const size_t in_panel = (row / v_depth * panel.width + c % internal::kPanelWidth) * v_depth;
    const double x =
        ElementAt(base + offsets.v, panel.offset + in_panel + row % v_depth,
                  internal::VElementBytes(shape.layout), quantized_v, biased_v ? 128 : 0, is_f16);
    const size_t at = i * shape.v_head_dim + c;
    if (quantized_v) head->v_step[at] = FloatAt(base + offsets.v_scale, tile + c);
    head->v[at] = quantized_v ? x * head->v_step[at] : x;
  }
}

void ReadCenters(const internal::PackedHead& packed, StoredHead* head) {
  const internal::PackedOffsets& offsets = packed.offsets;
  const auto read = [&](size_t offset, std::vector<float>* to) {
    memcpy(to->data(), packed.base + offset, to->size() * sizeof(float));
  };
  if (internal::HasQuantizedK(packed.shape.layout)) read(offsets.k_center, &head->k_center);
  if (internal::HasQuantizedV(packed.shape.layout)) read(offsets.v_center, &head->v_center);
  if (!head->rotate_k) return;
  head->q_factor.resize(head->head_dim);
  read(offsets.q_factor, &head->q_factor);
}

StoredHead ReadHead(const PackedKv& packed, size_t batch, size_t kv_head, size_t num_keys) {
  const internal::SequenceKeys keys = packed.keys(batch);
  StoredHead head;
  head.precision = packed.geometry().precision;
  head.rotate_k = internal::IsRotated(packed.geometry().layout);
  head.head_dim = packed.shape().head_dim;
  head.v_head_dim = packed.shape().v_head_dim;
  head.present.resize(num_keys);
  head.k.resize(num_keys * head.head_dim);
  head.v.resize(num_keys * head.v_head_dim);
  head.k_step.resize(num_keys);
  head.v_step.resize(head.v.size());
  head.k_center.resize(head.head_dim);
  head.v_center.resize(head.v_head_dim);
  // Kernels read them where the first page is that is there.
  const size_t offset = kv_head * packed.offsets().bytes;
  if (keys.heads != nullptr && num_keys != 0) {
    ReadCenters({keys.heads + offset, packed.shape(), packed.offsets()}, &head);
  }
  for (size_t i = 0; i < num_keys; ++i) {
    head.present[i] = IsPresent(keys.pages, i);
    if (head.present[i]) ReadKey(FindKey(packed, batch, kv_head, i), i, &head);
  }
  return head;
}

}  // namespace

StoredHeads ReadStored(const PackedKv& packed, size_t batch, size_t num_keys) {
  auto heads = std::make_shared<std::vector<StoredHead>>();
  for (int64_t h = 0; h < packed.geometry().num_kv_heads; ++h) {
    heads->push_back(ReadHead(packed, batch, static_cast<size_t>(h), num_keys));
  }
  return heads;
}

bool CollectPages(const PackedKv& packed, std::set<const unsigned char*>* pages) {
  const internal::PackedOffsets& offsets = packed.offsets();
  bool agree = true;
  for (int64_t b = 0; b < packed.geometry().batch; ++b) {
    const internal::SequenceKeys keys = packed.keys(static_cast<size_t>(b));
    if (keys.pages.data == nullptr) continue;
    const unsigned char* first = nullptr;
    for (size_t key = 0; key < keys.count; key += packed.shape().capacity) {
      const unsigned char* page = keys.pages.data[key / packed.shape().capacity];
      if (page == nullptr) continue;
      pages->insert(page);
      if (first == nullptr) first = page;
      for (int64_t h = 0; h < packed.geometry().num_kv_heads; ++h) {
        const size_t at = static_cast<size_t>(h) * offsets.bytes + offsets.k_center;
        agree &= memcmp(first + at, page + at, offsets.v_special - offsets.k_center) == 0;
      }
    }
  }
  return agree;
}

}  // namespace testing
}  // namespace sightline
