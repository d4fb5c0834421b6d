// The packed form of K and V: what quant/pack-inl.h writes and kernels/ read.
//
// One layout serves prefill, where lanes are queries and K/V elements are broadcast, and decode,
// where lanes are keys (K·Q) and channels (P·V):
//
//   K  [key / 64][dim / depth][64 keys][depth]
//   V  [key / 1024][channel / 64][key / depth][width][depth]
//
// The last block of keys is padded; a panel of V has width 64, the last one what is left.
// depth is how many elements one 32-bit lane multiplies at once: 4 for int8, 2 for int16 and bf16,
// 1 for f16 and f32. Where depth is 2 and the number of keys is odd, the last one's V has a 0
// beside it. 64-key blocks and 1024-key tiles stream from DRAM at 27 GB/s on a Zen 4 core, 16-key
// blocks and 256-key tiles at 10 to 15: the runs are long enough for the prefetchers, and prefill
// does not care.
//
// This header is also compiled with each tier's ISA flags: functions are `static`, so that no tier
// can lend the linker a copy of them, and nothing of the standard library is used.
#ifndef SIGHTLINE_KV_LAYOUT_H_
#define SIGHTLINE_KV_LAYOUT_H_

#include <stddef.h>
#include <stdint.h>

#include "sightline/tensor.h"

namespace sightline {
namespace internal {

// Raised whenever the meaning of a layout id changes.
constexpr uint32_t kLayoutVersion = 4;

enum class LayoutId : uint32_t {
  kNone = 0,
  kF32 = 1,
  kF16 = 2,
  kBF16 = 3,
  kMixed16 = 4,    // K as i16, V as bf16
  kI8BiasedK = 5,  // K as u8 = k + 128, V as i8: for dot products of u8 with i8 (x86, plain NEON)
  kI8BiasedV = 6,  // K as i8, V as u8 = v + 128: for i8·i8 and u8·u8 (NEON dotprod)
  kI8Fine = 7,     // K as i16, V as i8
  kI8FineBiasedV = 8,  // K as i16, V as u8 = v + 128
  // The int8 layouts of quanta with K balanced and rotated; see "Rotated K" below.
  kI8RotatedBiasedK = 9,
  kI8RotatedBiasedV = 10,
};

constexpr size_t kKeyBlock = 64;      // keys interleaved in K
constexpr size_t kVTileKeys = 1024;   // keys of a V tile
constexpr size_t kPanelWidth = 64;    // channels of a V panel
constexpr size_t kChannelAlign = 16;  // lanes of the widest vector: decode loads whole ones

// Keys that share one V scale per channel, and the tile over which softmax is taken. Small enough
// for a local maximum and range to keep int8 precise, and for the scores of 48 rows (24 KiB) to
// stay in a 32 KiB L1; large enough that rescaling O is one multiplication for every 128 / depth.
constexpr size_t kKvTile = 128;

// Words of the bits that say which keys of a tile are there.
constexpr size_t kTileWords = kKvTile / 32;

constexpr size_t kMaxHeadDim = 512;

// K and V lose a mean per channel. Any other vector would do as well, so it is taken over at most
// so many rows, spread evenly: that finds it to a sixteenth of the spread, at a fraction of the
// cost.
constexpr size_t kCenterRows = 256;
static inline size_t CenterStride(size_t num_rows) {
  return (num_rows + kCenterRows - 1) / kCenterRows;
}

// The caller's int8 numbers whose steps are kept lose a mean of at least so many steps: with less,
// numbers at the end of their range would leave ours, for a mean too small to matter.
constexpr float kFewSteps = 4.0f;

// The quantised formats: quanta of int8 reach +-127, biased ones are stored with 128 added.
constexpr float kMaxQuantum = 127.0f;
constexpr int kBias = 128;
// Quanta of K in int16. 12 bits keep the rounding of the scores below that of everything else, and
// dot products of 128 of them fit 32 bits; see MaxWideQuantum for more dimensions.
constexpr int kMaxWideQuantum = 4095;
// Quanta cannot be infinite, and one wild element would flatten its whole row: magnitudes end here.
// Small enough that a sum over 10^8 keys, each weighed by up to 2^kReferenceSlack
// (kernels/online_softmax-inl.h), is still finite.
constexpr float kLargestFinite = 1e27f;
// Rows whose largest magnitude is below this are zero: 127 / magnitude stays finite.
constexpr float kSmallestRange = 1e-30f;

// Every pointer handed to a kernel inside a packed head is aligned to this: a cache line.
constexpr size_t kPackedAlignBytes = 64;

static inline size_t RoundUp(size_t x, size_t multiple) {
  return (x + multiple - 1) / multiple * multiple;
}

// K in integers, with a scale per token and a centre; V as well, with a scale per tile and channel.
static constexpr bool HasQuantizedK(LayoutId layout) { return layout >= LayoutId::kMixed16; }
static constexpr bool HasQuantizedV(LayoutId layout) { return layout >= LayoutId::kI8BiasedK; }
static constexpr bool HasWideK(LayoutId layout) {
  return layout == LayoutId::kMixed16 || layout == LayoutId::kI8Fine ||
         layout == LayoutId::kI8FineBiasedV;
}
// V in int8 with 128 added.
static constexpr bool HasBiasedV(LayoutId layout) {
  return layout == LayoutId::kI8BiasedV || layout == LayoutId::kI8FineBiasedV ||
         layout == LayoutId::kI8RotatedBiasedV;
}
static inline bool IsRotated(LayoutId layout) { return layout >= LayoutId::kI8RotatedBiasedK; }
// K in int8 as the caller's rows have it, but for means and scales.
static inline bool HasPlainI8K(LayoutId layout) {
  return layout == LayoutId::kI8BiasedK || layout == LayoutId::kI8BiasedV;
}
// The rotated form of an int8 layout.
static inline LayoutId RotatedLayout(LayoutId layout) {
  return layout == LayoutId::kI8BiasedV ? LayoutId::kI8RotatedBiasedV : LayoutId::kI8RotatedBiasedK;
}

// Bytes of one stored K or V element, and how many of them one 32-bit lane multiplies.
static inline size_t KElementBytes(LayoutId layout) {
  if (layout == LayoutId::kF32) return 4;
  return HasWideK(layout) || !HasQuantizedK(layout) ? 2 : 1;
}
static inline size_t VElementBytes(LayoutId layout) {
  return layout == LayoutId::kF32 ? 4 : HasQuantizedV(layout) ? 1 : 2;
}
static inline size_t KDepth(LayoutId layout) {
  if (layout == LayoutId::kF32 || layout == LayoutId::kF16) return 1;
  return 4 / KElementBytes(layout);
}
static inline size_t VDepth(LayoutId layout) {
  if (layout == LayoutId::kF32 || layout == LayoutId::kF16) return 1;
  return 4 / VElementBytes(layout);
}

// Largest quantum of int16 Q and K: head_dim products of two of them, and a rounding constant of
// 2^15, stay below 2^31.
static inline int MaxWideQuantum(size_t head_dim) {
  static_assert(kMaxWideQuantum == 4095, "twelve bits");
  const int64_t limit = (int64_t{1} << 31) - (int64_t{1} << 16);
  int quantum = 0;
  for (int bit = 2048; bit != 0; bit /= 2) {
    const int64_t next = quantum | bit;
    if (static_cast<int64_t>(head_dim) * next * next < limit) quantum |= bit;
  }
  return quantum;
}

// Rotated K: scores stay what they are when channels of K are divided by what those of Q are
// multiplied by, and when the same orthogonal transform is applied to both. What each token's scale
// has to reach then no longer depends on a few large channels. Formulas: docs/contract.md; the
// transform: quant/rotate-inl.h.

// A channel of K is divided by two for each of these multiples of the median channel that it
// reaches. Steps of eight, so that divisors grow as the cube root of the channel: what K gains Q
// loses, and the rotation spreads the rest. The first is beyond the spread of ordinary channels.
constexpr float kBalanceThresholds[] = {3.0f, 24.0f, 192.0f, 1536.0f};
// The median counts as at least this share of the largest channel: more than half of the channels
// may be constant, and one with a little noise should not be made equal to the largest.
constexpr float kSmallestMedian = 1.0f / 1024;

// Channels have pseudo-random signs before the transform, which multiplies them by regular patterns
// of signs: channels that go together (neighbours of a smooth spectrum, rotary pairs) would add up
// in a few of its outputs. A hash rather than a table, for it is part of the format.
static inline float RotationSign(size_t channel) {
  uint32_t hash = (static_cast<uint32_t>(channel) + 1) * 0x9e3779b1u;
  hash = (hash ^ hash >> 15) * 0x85ebca77u;
  return hash >> 31 != 0 ? -1.0f : 1.0f;
}

// Channels that one Walsh-Hadamard transform mixes: the largest power of two that divides head_dim.
static inline size_t RotationBlock(size_t head_dim) { return head_dim & (~head_dim + 1); }

// Shape of one packed head, the same for all heads of a memory, cache or workspace.
struct PackedShape {
  LayoutId layout;
  size_t head_dim;
  size_t v_head_dim;
  size_t capacity;  // keys, a multiple of kKeyBlock
};

// Bytes of K and V of one key, but for padding and what keys share.
static inline size_t KeyBytes(LayoutId layout, size_t head_dim, size_t v_head_dim) {
  return head_dim * KElementBytes(layout) + v_head_dim * VElementBytes(layout);
}

// For at least num_keys keys.
static inline PackedShape ShapeOf(LayoutId layout, size_t head_dim, size_t v_head_dim,
                                  size_t num_keys) {
  PackedShape s = {};
  s.layout = layout;
  s.head_dim = head_dim;
  s.v_head_dim = v_head_dim;
  s.capacity = RoundUp(num_keys, kKeyBlock);
  return s;
}

static inline size_t PaddedHeadDim(const PackedShape& s) {
  return RoundUp(s.head_dim, KDepth(s.layout));
}
static inline size_t PaddedVHeadDim(const PackedShape& s) {
  return RoundUp(s.v_head_dim, kChannelAlign);
}
static inline size_t NumKvTiles(const PackedShape& s) {
  return (s.capacity + kKvTile - 1) / kKvTile;
}

// Byte offsets inside one head, and distances. Scales and centres exist where K or V is quantised,
// and are f32. In 32 bits a head may be larger than what can be addressed: all of them are SIZE_MAX
// from there on, and nobody allocates so much (dispatch/memory.h).
struct PackedOffsets {
  size_t k;
  size_t v;
  size_t k_scale;        // [capacity]: per token
  size_t v_scale;        // [NumKvTiles][PaddedVHeadDim]: per tile and channel
  size_t k_center;       // [head_dim]: subtracted from every key; softmax does not notice
  size_t v_center;       // [PaddedVHeadDim]: subtracted from every value, added to the output
  size_t q_factor;       // [RoundUp(head_dim, kChannelAlign)]: of rotated K: what channels of Q are
                         // multiplied by, those of K divided; padding is not 0
  size_t v_special;      // u8 [NumKvTiles]: 1 if a float V tile holds a NaN or an infinity
  size_t bytes;          // of the whole head
  size_t k_block_bytes;  // kKeyBlock keys of K
  size_t v_key_bytes;    // one key's V
};

static inline size_t AddressableBytes(uint64_t bytes) {
  return bytes < SIZE_MAX ? static_cast<size_t>(bytes) : SIZE_MAX;
}

static inline PackedOffsets OffsetsOf(const PackedShape& s) {
  PackedOffsets o = {};
  const bool quantized_k = HasQuantizedK(s.layout);
  const bool quantized_v = HasQuantizedV(s.layout);
  // In 64 bits, since 2^31 keys of 512 channels leave 32.
  uint64_t end = 0;
  const auto place = [&end](uint64_t count, uint64_t element_bytes) {
    const size_t begin = AddressableBytes(end);
    const uint64_t mask = kPackedAlignBytes - 1;
    end = (end + count * element_bytes + mask) & ~mask;
    return begin;
  };
  const uint64_t capacity = s.capacity;
  o.k = place(capacity * PaddedHeadDim(s), KElementBytes(s.layout));
  o.v = place(capacity * PaddedVHeadDim(s), VElementBytes(s.layout));
  o.k_scale = place(quantized_k ? capacity : 0, 4);
  o.v_scale = place(quantized_v ? uint64_t{NumKvTiles(s)} * PaddedVHeadDim(s) : 0, 4);
  o.k_center = place(quantized_k ? s.head_dim : 0, 4);
  o.v_center = place(quantized_v ? PaddedVHeadDim(s) : 0, 4);
  o.q_factor = place(IsRotated(s.layout) ? RoundUp(s.head_dim, kChannelAlign) : 0, 4);
  o.v_special = place(quantized_v ? 0 : NumKvTiles(s), 1);
  o.bytes = AddressableBytes(end);
  o.k_block_bytes = kKeyBlock * PaddedHeadDim(s) * KElementBytes(s.layout);
  o.v_key_bytes = PaddedVHeadDim(s) * VElementBytes(s.layout);
  return o;
}

// Elements before K's block that holds `key`; inside it, [dim / depth][64][depth].
static inline size_t KBlockOffset(const PackedShape& s, size_t key) {
  return key / kKeyBlock * kKeyBlock * PaddedHeadDim(s);
}

// Where one channel panel of one V tile begins, in elements, and how wide it is; kPanelWidth times
// the tile's keys lie between two.
struct VPanel {
  size_t offset;
  size_t width;
};
static inline size_t VTileKeysAt(const PackedShape& s, size_t key) {
  const size_t keys_left = s.capacity - key / kVTileKeys * kVTileKeys;
  return keys_left < kVTileKeys ? keys_left : kVTileKeys;
}
static inline VPanel VPanelAt(const PackedShape& s, size_t key, size_t channel) {
  const size_t tile_begin = key / kVTileKeys * kVTileKeys;
  const size_t tile_keys = VTileKeysAt(s, key);
  const size_t panel_begin = channel / kPanelWidth * kPanelWidth;
  const size_t channels_left = PaddedVHeadDim(s) - panel_begin;
  VPanel p;
  p.width = channels_left < kPanelWidth ? channels_left : kPanelWidth;
  p.offset = tile_begin * PaddedVHeadDim(s) + panel_begin * tile_keys;
  return p;
}

// Index of an element of packed K or V.
static inline size_t KIndex(const PackedShape& s, size_t key, size_t d) {
  const size_t depth = KDepth(s.layout);
  return KBlockOffset(s, key) + (d / depth * kKeyBlock + key % kKeyBlock) * depth + d % depth;
}
static inline size_t VIndex(const PackedShape& s, size_t key, size_t channel) {
  const size_t depth = VDepth(s.layout);
  const VPanel panel = VPanelAt(s, key, channel);
  const size_t row = key % kVTileKeys;
  return panel.offset + (row / depth * panel.width + channel % kPanelWidth) * depth + row % depth;
}

}  // namespace internal
}  // namespace sightline

#endif  // SIGHTLINE_KV_LAYOUT_H_
