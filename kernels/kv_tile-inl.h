// A K/V tile as the products read it: where K's blocks and V's panels begin, and how far apart they
// are. The layout itself is described in kv/layout.h.
#ifndef SIGHTLINE_KERNELS_KV_TILE_INL_H_
#define SIGHTLINE_KERNELS_KV_TILE_INL_H_

#include "kernels/schemes-inl.h"
#include "kernels/scratch-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// True if a NaN or an infinity is among the values of the tile of `key`; quantised ones have none.
template <class Scheme>
HWY_INLINE bool HasSpecialV(const PackedHead& head, size_t key) {
  return !Scheme::kQuantizedV && head.base[head.offsets.v_special + key / kKvTile] != 0;
}

// Keys from key_begin on of one head: a tile of kKvTile for prefill, a chunk of several tiles for
// decode, whose V is reached from here only as far as its V tile.
struct KvTile {
  const uint8_t* k;  // block of 64 keys after block, k_block_bytes apart
  size_t k_block_bytes;
  const uint8_t* v;      // first panel of the V tile that these keys are part of
  size_t v_panel_bytes;  // from a panel to the next
  size_t v_key;          // keys of the V tile before these
  const float* k_scale;  // quantised K: [keys]
  const float* v_scale;  // quantised V: [tiles][PaddedVHeadDim]
  bool v_special;        // a NaN or an infinity is among V of the first tile
  size_t key_begin;
};

// K of `key` onwards, counted from the tile's beginning; a step along head_dim is a row of the
// block.
template <class Scheme>
HWY_INLINE const uint8_t* KeyColumns(const KvTile& kv, size_t key) {
  return kv.k + key / kKeyBlock * kv.k_block_bytes + key % kKeyBlock * kTileLaneBytes<Scheme>;
}

// V of `channel` onwards in the tile, and the bytes from one step of keys to the next.
struct VColumns {
  const uint8_t* data;
  size_t stride_bytes;
};
template <class Scheme>
HWY_INLINE VColumns VColumnsAt(const KvTile& kv, size_t padded_channels, size_t channel) {
  const size_t panel = channel / kPanelWidth;
  const size_t width = MinOf(kPanelWidth, padded_channels - panel * kPanelWidth);
  const size_t stride_bytes = width * kTileLaneBytes<Scheme>;
  return {kv.v + panel * kv.v_panel_bytes + kv.v_key / kVLaneDepth<Scheme> * stride_bytes +
              channel % kPanelWidth * kTileLaneBytes<Scheme>,
          stride_bytes};
}

// V's centre, which has to be added to the output; null where V is not centred or there are no
// keys.
template <class Scheme>
HWY_INLINE const float* VCenter(const AttendTask& task) {
  if (!Scheme::kQuantizedV || task.kv_len == 0) return nullptr;
  return reinterpret_cast<const float*>(task.head.base + task.head.offsets.v_center);
}

// Where schemes that widen K or V put the f32 form of a tile.
struct WideTile {
  float* k;  // [kKvTile / 64][head_dim][64]
  float* v;  // panels of [kKvTile][width], kKvTile * 64 apart
};
template <class Scheme>
HWY_INLINE WideTile TakeWideTile(const PackedShape& shape, ScratchArena& arena) {
  WideTile wide;
  wide.k = arena.Take<float>(Scheme::kWidensK ? kKvTile * PaddedHeadDim(shape) : 0);
  wide.v = arena.Take<float>(Scheme::kWidensV ? kKvTile * PaddedVHeadDim(shape) : 0);
  return wide;
}

// Rows of `width` elements, a multiple of kLanes, of one block or panel. bf16 comes in pairs of
// rows, of which the last may be half used.
HWY_INLINE void WidenRows(const hwy::float16_t* HWY_RESTRICT from, size_t num_rows, size_t width,
                          float* HWY_RESTRICT to) {
  const hn::Rebind<hwy::float16_t, DF> d16;
  for (size_t i = 0; i < num_rows * width; i += kLanes) {
    hn::Store(ToF32(hn::Load(d16, from + i)), df, to + i);
  }
}
HWY_INLINE void WidenRows(const hwy::bfloat16_t* HWY_RESTRICT from, size_t num_rows, size_t width,
                          float* HWY_RESTRICT to) {
  const int32_t* HWY_RESTRICT pairs = reinterpret_cast<const int32_t*>(from);
  for (size_t row = 0; row < num_rows; row += 2) {
    for (size_t i = 0; i < width; i += kLanes) {
      const VI32 pair = hn::Load(di32, pairs + row / 2 * width + i);
      hn::Store(LowerOfPairs(pair), df, to + row * width + i);
      hn::Store(UpperOfPairs(pair), df, to + (row + 1) * width + i);
    }
  }
}

// The tile or chunk of keys that begins at `key`, of which num_keys are in use. Where the scheme
// says so, it is widened to f32, and one tile at the most.
template <class Scheme>
HWY_INLINE KvTile BeginKvTile(const PackedHead& head, size_t key, size_t num_keys,
                              const WideTile& wide) {
  using KStored = typename Scheme::KStored;
  using VStored = typename Scheme::VStored;
  const PackedShape& shape = head.shape;
  const size_t channels = PaddedVHeadDim(shape);
  const size_t dims = PaddedHeadDim(shape);
  const KStored* k =
      reinterpret_cast<const KStored*>(head.base + head.offsets.k) + KBlockOffset(shape, key);
  const VStored* v = reinterpret_cast<const VStored*>(head.base + head.offsets.v);
  const VPanel first_panel = VPanelAt(shape, key, 0);

  KvTile tile = {};
  tile.key_begin = key;
  if constexpr (Scheme::kWidensK) {
    const size_t blocks = RoundUp(num_keys, kKeyBlock) / kKeyBlock;
    WidenRows(k, blocks * dims, kKeyBlock, wide.k);
    tile.k = reinterpret_cast<const uint8_t*>(wide.k);
    tile.k_block_bytes = kKeyBlock * dims * sizeof(float);
  } else {
    tile.k = reinterpret_cast<const uint8_t*>(k);
    tile.k_block_bytes = kKeyBlock * dims * sizeof(KStored);
  }
  if constexpr (Scheme::kWidensV) {
    const size_t v_key = key % kVTileKeys;
    for (size_t channel = 0; channel < channels; channel += kPanelWidth) {
      const VPanel panel = VPanelAt(shape, key, channel);
      WidenRows(v + panel.offset + v_key * panel.width, num_keys, panel.width,
                wide.v + channel * kKvTile);
    }
    tile.v = reinterpret_cast<const uint8_t*>(wide.v);
    tile.v_panel_bytes = kKvTile * kPanelWidth * sizeof(float);
  } else {
    tile.v = reinterpret_cast<const uint8_t*>(v + first_panel.offset);
    if (channels > kPanelWidth) {
      tile.v_panel_bytes =
          (VPanelAt(shape, key, kPanelWidth).offset - first_panel.offset) * sizeof(VStored);
    }
    tile.v_key = key % kVTileKeys;
  }
  if constexpr (Scheme::kQuantizedK) {
    tile.k_scale = reinterpret_cast<const float*>(head.base + head.offsets.k_scale) + key;
  }
  if constexpr (Scheme::kQuantizedV) {
    tile.v_scale =
        reinterpret_cast<const float*>(head.base + head.offsets.v_scale) + key / kKvTile * channels;
  }
  tile.v_special = HasSpecialV<Scheme>(head, key);
  return tile;
}

HWY_INLINE void PrefetchBytes(const uint8_t* data, size_t begin, size_t end) {
  for (size_t i = begin; i < end; i += kPackedAlignBytes) __builtin_prefetch(data + i);
}

// Asks for part `part` of `parts` of a whole tile that comes next: the products read it in strides
// that hardware prefetchers follow too late to hide DRAM.
template <class Scheme>
HWY_INLINE void PrefetchKvTile(const PackedShape& shape, const KvTile& kv, size_t part,
                               size_t parts) {
  const size_t k_bytes = kKvTile / kKeyBlock * kv.k_block_bytes;
  PrefetchBytes(kv.k, part * k_bytes / parts, (part + 1) * k_bytes / parts);
  const size_t channels = PaddedVHeadDim(shape);
  for (size_t channel = 0; channel < channels; channel += kPanelWidth) {
    const VColumns columns = VColumnsAt<Scheme>(kv, channels, channel);
    const size_t v_bytes = kKvTile / kVLaneDepth<Scheme> * columns.stride_bytes;
    PrefetchBytes(columns.data, part * v_bytes / parts, (part + 1) * v_bytes / parts);
  }
}

// The tile from its key `key` on, which begins a block of keys.
HWY_INLINE KvTile TileFrom(const KvTile& kv, size_t key) {
  KvTile rest = kv;
  rest.k += key / kKeyBlock * kv.k_block_bytes;
  rest.v_key += key;
  rest.k_scale += key;
  rest.key_begin += key;
  return rest;
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_KV_TILE_INL_H_
