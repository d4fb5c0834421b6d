// A K/V tile as the products read it: where K's blocks and V's panels begin, and how far apart they
// are. The layout itself is described in kv/layout.h.
#ifndef SIGHTLINE_KERNELS_KV_TILE_INL_H_
#define SIGHTLINE_KERNELS_KV_TILE_INL_H_

#include "kernels/schemes-inl.h"
#include "kernels/scratch-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// Where reading leaves off, to go on elsewhere; to nullptr: nobody knows. And how far ahead of it
// bytes are to be asked for, as if what follows lay behind them; 0: not at all.
struct Turn {
  const uint8_t* from;
  const uint8_t* to;
  size_t ahead;
};

// Keys from key_begin on of one head: a tile of kKvTile; of V also what follows in its V tile.
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
  Turn turn;  // decode: of K
};

// In bytes, of any memory.
HWY_INLINE ptrdiff_t DistanceOf(const uint8_t* from, const uint8_t* to) {
  return static_cast<ptrdiff_t>(reinterpret_cast<uintptr_t>(to) -
                                reinterpret_cast<uintptr_t>(from));
}

// K of `key` onwards, counted from the tile's beginning; a step along head_dim is a row of the
// block.
template <class Keys>
HWY_INLINE const uint8_t* KeyColumns(const KvTile& kv, size_t key) {
  return kv.k + key / kKeyBlock * kv.k_block_bytes +
         key % kKeyBlock * kStoredLaneBytes<typename Keys::Stored>;
}

// V of `channel` onwards in the tile, and the bytes from one step of keys to the next.
struct VColumns {
  const uint8_t* data;
  size_t stride_bytes;
};
template <class Values>
HWY_INLINE VColumns VColumnsAt(const KvTile& kv, size_t padded_channels, size_t channel) {
  constexpr size_t kBytes = kStoredLaneBytes<typename Values::Stored>;
  const size_t panel = channel / kPanelWidth;
  const size_t width = MinOf(kPanelWidth, padded_channels - panel * kPanelWidth);
  const size_t stride_bytes = width * kBytes;
  return {kv.v + panel * kv.v_panel_bytes + kv.v_key / kLaneDepthOf<Values> * stride_bytes +
              channel % kPanelWidth * kBytes,
          stride_bytes};
}

// V's centre, which has to be added to the output; null where V is not centred or there are no
// keys.
HWY_INLINE const float* VCenter(const AttendTask& task) {
  if (!HasQuantizedV(task.head.shape.layout) || task.kv_len == 0) return nullptr;
  return reinterpret_cast<const float*>(task.head.base + task.head.offsets.v_center);
}

// True if a NaN or an infinity is among V of the tile of `key`; quantised values have none.
HWY_NOINLINE bool HasSpecialV(const AttendTask& task, size_t key) {
  if (HasQuantizedV(task.head.shape.layout)) return false;
  const uint8_t* base = FindPage(task, &key);
  return base[task.head.offsets.v_special + key / kKvTile] != 0;
}

// K of the tile that begins at `key`, where it is in memory,
HWY_NOINLINE KvTile KTileAt(const AttendTask& task, size_t key) {
  const PackedOffsets& offsets = task.head.offsets;
  KvTile tile = {};
  tile.key_begin = key;
  tile.turn.ahead = task.fetch_ahead;
  const uint8_t* base = FindPage(task, &key);
  tile.k = base + offsets.k + key / kKeyBlock * offsets.k_block_bytes;
  tile.k_block_bytes = offsets.k_block_bytes;
  if (HasQuantizedK(task.head.shape.layout)) {
    tile.k_scale = reinterpret_cast<const float*>(base + offsets.k_scale) + key;
  }
  return tile;
}

// its V,
HWY_NOINLINE void SetVOfTile(const AttendTask& task, size_t key, KvTile& tile) {
  const PackedShape& shape = task.head.shape;
  const PackedOffsets& offsets = task.head.offsets;
  const uint8_t* base = FindPage(task, &key);
  const size_t channels = PaddedVHeadDim(shape);
  const size_t tile_begin = key / kVTileKeys * kVTileKeys;
  tile.v = base + offsets.v + tile_begin * offsets.v_key_bytes;
  tile.v_panel_bytes = VTileKeysAt(shape, key) * kPanelWidth * VElementBytes(shape.layout);
  tile.v_key = key % kVTileKeys;
  if (HasQuantizedV(shape.layout)) {
    tile.v_scale =
        reinterpret_cast<const float*>(base + offsets.v_scale) + key / kKvTile * channels;
  }
}

// and both.
HWY_NOINLINE KvTile KvTileAt(const AttendTask& task, size_t key) {
  KvTile tile = KTileAt(task, key);
  tile.v_special = HasSpecialV(task, key);
  SetVOfTile(task, key, tile);
  return tile;
}

// Keys from `key` on that are in its page.
HWY_NOINLINE size_t KeysInPage(const AttendTask& task, size_t key) {
  if (task.pages.data == nullptr) return task.kv_len;
  FindPage(task, &key);
  return task.head.shape.capacity - key;
}
// And those that follow one another in V.
HWY_NOINLINE size_t KeysInVTile(const AttendTask& task, size_t key) {
  const size_t in_page = KeysInPage(task, key);
  FindPage(task, &key);
  return MinOf(kVTileKeys - key % kVTileKeys, in_page);
}

// K of the tile that follows in the same page.
HWY_INLINE void NextKTile(KvTile& tile) {
  tile.key_begin += kKvTile;
  tile.k += kKvTile / kKeyBlock * tile.k_block_bytes;
  if (tile.k_scale != nullptr) tile.k_scale += kKvTile;
}

// True if prefill widens K, V of a layout to f32, by the scheme's form of them.
template <class Keys>
HWY_INLINE bool WidensK(LayoutId layout) {
  return hwy::IsSame<Keys, F32Keys>() && layout != LayoutId::kF32;
}
template <class Values>
HWY_INLINE bool WidensV(LayoutId layout) {
  return hwy::IsSame<Values, F32Values>() && layout != LayoutId::kF32;
}

// What prefill makes of a tile where it cannot multiply by it as it is packed: widened, or with its
// steps interleaved (matrix_product-inl.h). Blocks of K and panels of V follow one another as they
// do in memory.
struct OwnTile {
  uint8_t* k;  // [kKvTile / 64][steps][64 lanes]
  uint8_t* v;  // panels of [steps][width], for kKvTile keys; kPanelWidth lanes apart
};
// Bytes of it; 0 where there is none.
template <class Keys>
HWY_INLINE size_t OwnKBytes(const PackedShape& shape) {
  if (WidensK<Keys>(shape.layout)) return kKvTile * PaddedHeadDim(shape) * sizeof(float);
  if (Keys::Product::kSteps == 1) return 0;
  return kKvTile * RoundUp(shape.head_dim, kFullDepthOf<Keys>) * KElementBytes(shape.layout);
}
template <class Values>
HWY_INLINE size_t OwnVBytes(const PackedShape& shape) {
  if (WidensV<Values>(shape.layout)) return kKvTile * PaddedVHeadDim(shape) * sizeof(float);
  if (Values::Product::kSteps == 1) return 0;
  return kKvTile * PaddedVHeadDim(shape) * VElementBytes(shape.layout);
}
HWY_INLINE OwnTile TakeOwnTile(size_t k_bytes, size_t v_bytes, ScratchArena& arena) {
  OwnTile own;
  own.k = arena.Take<uint8_t>(k_bytes);
  own.v = arena.Take<uint8_t>(v_bytes);
  return own;
}

// Rows of `width` elements, a multiple of kLanes, of one block or panel: f16, or bf16 in pairs of
// rows, of which the last may be half used.
HWY_NOINLINE void WidenRows(bool is_f16, const uint8_t* HWY_RESTRICT from, size_t num_rows,
                            size_t width, float* HWY_RESTRICT to) {
  if (is_f16) {
    const hn::Rebind<hwy::float16_t, DF> d16;
    const hwy::float16_t* HWY_RESTRICT elements = reinterpret_cast<const hwy::float16_t*>(from);
    for (size_t i = 0; i < num_rows * width; i += kLanes) {
      hn::Store(ToF32(hn::Load(d16, elements + i)), df, to + i);
    }
    return;
  }
  const int32_t* HWY_RESTRICT pairs = reinterpret_cast<const int32_t*>(from);
  for (size_t row = 0; row < num_rows; row += 2) {
    for (size_t i = 0; i < width; i += kLanes) {
      const VI32 pair = hn::Load(di32, pairs + row / 2 * width + i);
      hn::Store(LowerOfPairs(pair), df, to + row * width + i);
      hn::Store(UpperOfPairs(pair), df, to + (row + 1) * width + i);
    }
  }
}

HWY_INLINE void WidenKeys(const PackedShape& shape, size_t num_keys, uint8_t* own, KvTile& tile) {
  const size_t rows = RoundUp(num_keys, kKeyBlock) / kKeyBlock * PaddedHeadDim(shape);
  WidenRows(shape.layout == LayoutId::kF16, tile.k, rows, kKeyBlock, reinterpret_cast<float*>(own));
  tile.k = own;
  tile.k_block_bytes = kKeyBlock * PaddedHeadDim(shape) * sizeof(float);
}

HWY_INLINE void WidenValues(const PackedShape& shape, size_t num_keys, uint8_t* own, KvTile& tile) {
  const size_t channels = PaddedVHeadDim(shape);
  float* wide = reinterpret_cast<float*>(own);
  for (size_t channel = 0; channel < channels; channel += kPanelWidth) {
    const size_t width = MinOf(kPanelWidth, channels - channel);
    const uint8_t* panel = tile.v + channel / kPanelWidth * tile.v_panel_bytes;
    WidenRows(shape.layout == LayoutId::kF16,
              panel + tile.v_key * width * VElementBytes(shape.layout), num_keys, width,
              wide + channel * kKvTile);
  }
  tile.v = own;
  tile.v_panel_bytes = kKvTile * kPanelWidth * sizeof(float);
  tile.v_key = 0;
}

// Arranges num_rows rows of `width` lanes, a multiple of kLanes, kSteps at a time; rows that are
// missing to a multiple of it are 0. flip: bits to be changed.
template <size_t kSteps>
HWY_NOINLINE void ArrangeRows(const uint8_t* HWY_RESTRICT from, size_t num_rows, size_t width,
                              int32_t flip, uint8_t* HWY_RESTRICT to) {
  const size_t row_bytes = width * kLaneBytes;
  const VI32 flipped = hn::Set(di32, flip);
  for (size_t row = 0; row < num_rows; row += kSteps) {
    for (size_t i = 0; i < row_bytes; i += kVectorBytes) {
      VI32 x[kSteps];
      HWY_UNROLL(4)
      for (size_t step = 0; step < kSteps; ++step) {
        x[step] = hn::Zero(di32);
        if (row + step >= num_rows) continue;
        x[step] = hn::BitCast(di32, hn::Load(du8, from + step * row_bytes + i));
        x[step] = hn::Xor(x[step], flipped);
      }
      ArrangeSteps(x);
      HWY_UNROLL(4)
      for (size_t step = 0; step < kSteps; ++step) {
        hn::Store(hn::BitCast(du8, x[step]), du8, to + step * row_bytes + i);
      }
    }
    from += kSteps * row_bytes;
    to += kSteps * row_bytes;
  }
}

template <class Keys>
HWY_INLINE void ArrangeKeys(const PackedShape& shape, size_t num_keys, uint8_t* own, KvTile& tile) {
  constexpr size_t kSteps = Keys::Product::kSteps;
  const size_t rows = PaddedHeadDim(shape) / kDepthOf<Keys>;
  const size_t block_bytes = RoundUp(rows, kSteps) * kKeyBlock * kLaneBytes;
  for (size_t block = 0; block < RoundUp(num_keys, kKeyBlock) / kKeyBlock; ++block) {
    ArrangeRows<kSteps>(tile.k + block * tile.k_block_bytes, rows, kKeyBlock, 0,
                        own + block * block_bytes);
  }
  tile.k = own;
  tile.k_block_bytes = block_bytes;
}

template <class Values>
HWY_INLINE void ArrangeValues(const PackedShape& shape, size_t num_keys, uint8_t* own,
                              KvTile& tile) {
  constexpr int32_t kAllBiases = -0x7f7f7f80;  // kBias in each byte
  constexpr int32_t kFlip = Values::kQuantized && I8Ops::kBiasedV ? kAllBiases : 0;
  const size_t channels = PaddedVHeadDim(shape);
  const size_t rows = RoundUp(num_keys, kDepthOf<Values>) / kDepthOf<Values>;
  const size_t panel_bytes = kKvTile / kDepthOf<Values> * kPanelWidth * kLaneBytes;
  for (size_t channel = 0; channel < channels; channel += kPanelWidth) {
    const VColumns columns = VColumnsAt<Values>(tile, channels, channel);
    ArrangeRows<Values::Product::kSteps>(columns.data, rows, columns.stride_bytes / kLaneBytes,
                                         kFlip, own + channel / kPanelWidth * panel_bytes);
  }
  tile.v = own;
  tile.v_panel_bytes = panel_bytes;
  tile.v_key = 0;
}

// The tile of keys that begins at `key`, of which num_keys are in use, as prefill reads its K,
template <class Keys>
HWY_INLINE KvTile LoadKTile(const AttendTask& task, size_t key, size_t num_keys,
                            const OwnTile& own) {
  const PackedShape& shape = task.head.shape;
  KvTile tile = KvTileAt(task, key);
  if (WidensK<Keys>(shape.layout)) WidenKeys(shape, num_keys, own.k, tile);
  if constexpr (Keys::Product::kSteps != 1) ArrangeKeys<Keys>(shape, num_keys, own.k, tile);
  return tile;
}
// and V as well.
template <class AnyScheme>
HWY_INLINE KvTile LoadKvTile(const AttendTask& task, size_t key, size_t num_keys,
                             const OwnTile& own) {
  using Values = typename AnyScheme::Values;
  const PackedShape& shape = task.head.shape;
  KvTile tile = LoadKTile<typename AnyScheme::Keys>(task, key, num_keys, own);
  if (WidensV<Values>(shape.layout)) WidenValues(shape, num_keys, own.v, tile);
  if constexpr (Values::Product::kSteps != 1) ArrangeValues<Values>(shape, num_keys, own.v, tile);
  return tile;
}

HWY_INLINE void PrefetchBytes(const uint8_t* data, size_t begin, size_t end) {
  for (size_t i = begin; i < end; i += kPackedAlignBytes) __builtin_prefetch(data + i);
}

// Asks for part `part` of `parts` of a whole tile that comes next: the products read it in strides
// that hardware prefetchers follow too late to hide DRAM.
template <class Values>
HWY_INLINE void PrefetchKvTile(const PackedShape& shape, const KvTile& kv, size_t part,
                               size_t parts) {
  const size_t k_bytes = kKvTile / kKeyBlock * kv.k_block_bytes;
  PrefetchBytes(kv.k, part * k_bytes / parts, (part + 1) * k_bytes / parts);
  const size_t channels = PaddedVHeadDim(shape);
  for (size_t channel = 0; channel < channels; channel += kPanelWidth) {
    const VColumns columns = VColumnsAt<Values>(kv, channels, channel);
    const size_t v_bytes = kKvTile / kLaneDepthOf<Values> * columns.stride_bytes;
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
