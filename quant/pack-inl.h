// Packs K and V rows into the layout of kv/layout.h.
//
// Cost: floats are read, converted and stored once; quantised forms read up to kCenterRows rows
// more for the means. K is interleaved by 64 keys: whole vectors of them are transposed as the rows
// of Q are, single rows become head_dim / depth stores kKeyBlock lanes apart. A row of V stays a
// row within each panel; quantised ones are read twice from a buffer in f32 (range, quanta) and
// stored four together.
#ifndef SIGHTLINE_QUANT_PACK_INL_H_
#define SIGHTLINE_QUANT_PACK_INL_H_

#include "kernels/rows-inl.h"
#include "kernels/schemes-inl.h"
#include "quant/quantize-inl.h"
#include "quant/rotate-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

HWY_INLINE void LoadSourceRow(const SourceRows& rows, size_t index, size_t n, float* out) {
  LoadRow(RowAt(rows, index), n, out);
}

// How many rows before they are needed rows are asked for: 16 of them are packed in the time that
// one takes to come from memory.
constexpr size_t kRowsAhead = 16;

HWY_INLINE void StoreElements(const float* HWY_RESTRICT row, size_t n, float* HWY_RESTRICT out) {
  for (size_t i = 0; i < n; i += kLanes) hn::StoreU(hn::Load(df, row + i), df, out + i);
}
HWY_INLINE void StoreElements(const float* HWY_RESTRICT row, size_t n,
                              hwy::float16_t* HWY_RESTRICT out) {
  const hn::Rebind<hwy::float16_t, DF> d16;
  for (size_t i = 0; i < n; i += kLanes) {
    hn::StoreU(FromF32(d16, hn::Load(df, row + i)), d16, out + i);
  }
}

// f32 and f16: rows are independent, any range of keys can be packed at any time.
template <typename Stored>
void PackFloat(const PackTask& task, unsigned char* scratch) {
  const PackedShape& shape = task.head.shape;
  const PackedOffsets& offsets = task.head.offsets;
  Stored* k_out = reinterpret_cast<Stored*>(task.head.base + offsets.k);
  Stored* v_out = reinterpret_cast<Stored*>(task.head.base + offsets.v);
  float* row = reinterpret_cast<float*>(scratch);
  Stored* stored = reinterpret_cast<Stored*>(row + kMaxHeadDim);
  const size_t k_elements = RowBufferElements(shape.head_dim);
  const size_t v_elements = PaddedVHeadDim(shape);

  for (size_t i = 0; i < task.num_keys; ++i) {
    const size_t key = task.key_begin + i;

    LoadSourceRow(task.k, i, shape.head_dim, row);
    StoreElements(row, k_elements, stored);
    Stored* block = k_out + KBlockOffset(shape, key) + key % kKeyBlock;
    for (size_t d = 0; d < shape.head_dim; ++d) block[d * kKeyBlock] = stored[d];

    LoadSourceRow(task.v, i, shape.v_head_dim, row);
    StoreElements(row, v_elements, stored);
    for (size_t c = 0; c < v_elements; c += kPanelWidth) {
      const VPanel panel = VPanelAt(shape, key, c);
      __builtin_memcpy(v_out + panel.offset + key % kVTileKeys * panel.width, stored + c,
                       panel.width * sizeof(Stored));
    }

    // x - x is 0 unless x is an infinity or NaN; what f16 cannot hold has become an infinity.
    // Not(Eq) rather than Ne, which is false for NaN on some targets.
    auto special = hn::MaskFalse(df);
    for (size_t c = 0; c < v_elements; c += kLanes) {
      const hn::Rebind<Stored, DF> d_stored;
      const VF x = ToF32(hn::LoadU(d_stored, stored + c));
      special = hn::Or(special, hn::Not(hn::Eq(hn::Sub(x, x), hn::Zero(df))));
    }
    uint8_t* flag = task.head.base + offsets.v_special + key / kKvTile;
    if (key % kKvTile == 0) *flag = 0;
    if (!hn::AllFalse(df, special)) *flag = 1;
  }
}

// Adds rows up in order of keys, so that the sum does not depend on the vector length, and divides.
HWY_INLINE void MeanOfRows(const SourceRows& rows, size_t num_rows, size_t n,
                           float* HWY_RESTRICT row, float* HWY_RESTRICT mean) {
  const size_t elements = RowBufferElements(n);
  const size_t stride = CenterStride(num_rows);
  for (size_t c = 0; c < elements; c += kLanes) hn::Store(hn::Zero(df), df, mean + c);
  for (size_t i = 0; i < num_rows; i += stride) {
    const size_t ahead = i + kRowsAhead * stride;
    PrefetchRows(rows, ahead, ahead + 1, num_rows, n);
    LoadSourceRow(rows, i, n, row);
    for (size_t c = 0; c < elements; c += kLanes) {
      const VF x = Sanitize(hn::Load(df, row + c));
      hn::Store(hn::Add(hn::Load(df, mean + c), x), df, mean + c);
    }
  }
  const VF count = hn::Set(df, static_cast<float>((num_rows + stride - 1) / stride));
  for (size_t c = 0; c < elements; c += kLanes) {
    hn::Store(hn::Div(hn::Load(df, mean + c), count), df, mean + c);
  }
}

// Writes k_center, v_center and, where K is rotated, q_factor: all from the task's rows, of which
// there is at least one.
void CenterQuantized(const PackTask& task, unsigned char* scratch) {
  const PackedShape& shape = task.head.shape;
  float* row = reinterpret_cast<float*>(scratch);
  float* mean = row + kMaxHeadDim;
  float* k_center = reinterpret_cast<float*>(task.head.base + task.head.offsets.k_center);
  float* v_center = reinterpret_cast<float*>(task.head.base + task.head.offsets.v_center);
  MeanOfRows(task.k, task.num_keys, shape.head_dim, row, mean);
  for (size_t d = 0; d < shape.head_dim; ++d) k_center[d] = mean[d];
  if (IsRotated(shape.layout)) BalanceChannels(task, mean, row, mean + kMaxHeadDim);
  MeanOfRows(task.v, task.num_keys, shape.v_head_dim, row, mean);
  for (size_t c = 0; c < PaddedVHeadDim(shape); ++c) v_center[c] = mean[c];
}

// `count` > 0 rows of n elements from row `begin` on, minus centre and finite, RowBufferElements(n)
// apart. Elements nearly always are finite: those that are not are looked for together.
HWY_INLINE void LoadCentered(const SourceRows& source, size_t begin, size_t count, size_t n,
                             const float* HWY_RESTRICT center, float* HWY_RESTRICT rows) {
  const size_t elements = RowBufferElements(n);
  for (size_t r = 0; r < count; ++r) ZeroPadding(n, rows + r * elements);
  VI32 largest = hn::Zero(di32);  // magnitudes as bits, in whose order infinities and NaN are last
  VisitRows(source, begin, count, n, [&](size_t r, size_t i, VF x) HWY_ATTR {
    largest = hn::Max(largest, hn::BitCast(di32, hn::Abs(x)));
    hn::Store(hn::Sub(x, hn::Load(df, center + i)), df, rows + r * elements + i);
  });
  const VI32 limit = hn::BitCast(di32, hn::Set(df, kLargestFinite));
  if (HWY_LIKELY(hn::AllTrue(di32, hn::Lt(largest, limit)))) return;
  VisitRows(source, begin, count, n, [&](size_t r, size_t i, VF x) HWY_ATTR {
    hn::Store(hn::Sub(Sanitize(x), hn::Load(df, center + i)), df, rows + r * elements + i);
  });
}

// K of one tile, per token.
template <class Scheme>
HWY_INLINE void PackKeys(const PackTask& task, unsigned char* HWY_RESTRICT scratch) {
  using Quantum = typename Scheme::KStored;
  const PackedShape& shape = task.head.shape;
  const PackedOffsets& offsets = task.head.offsets;
  Quantum* k_out = reinterpret_cast<Quantum*>(task.head.base + offsets.k);
  float* k_scale = reinterpret_cast<float*>(task.head.base + offsets.k_scale);
  const float* k_center = reinterpret_cast<const float*>(task.head.base + offsets.k_center);
  const size_t elements = RowBufferElements(shape.head_dim);
  const size_t lanes = PaddedHeadDim(shape) / kQkDepth<Scheme>;
  const int max_k = Scheme::MaxK(shape.head_dim);
  static_assert((kLanes + 2) * kMaxHeadDim * sizeof(float) <= kPackScratchBytes,
                "rows, centre and factors");
  float* center = reinterpret_cast<float*>(scratch);
  float* factor = center + kMaxHeadDim;
  float* rows = factor + kMaxHeadDim;
  const bool rotated = IsRotated(shape.layout);
  if (rotated) LoadKeyFactors(task.head, factor);

  // Copied to where whole vectors of it can be read.
  for (size_t d = 0; d < elements; ++d) center[d] = d < shape.head_dim ? k_center[d] : 0.0f;

  for (size_t i = task.num_keys_done; i < task.num_keys;) {
    const size_t key = task.key_begin + i;
    Quantum* column = k_out + KBlockOffset(shape, key) + key % kKeyBlock * kQkDepth<Scheme>;
    // Whole vectors of keys become whole vectors of the layout.
    if (key % kLanes == 0 && i + kLanes <= task.num_keys) {
      const size_t ahead = i + kRowsAhead;
      PrefetchRows(task.k, ahead, ahead + kLanes, task.num_keys, shape.head_dim);
      LoadCentered(task.k, i, kLanes, shape.head_dim, center, rows);
      if (rotated) RotateRows(factor, shape.head_dim, rows, kLanes);
      const VF scales = QuantizeRows<Quantum>(rows, elements, max_k, Scheme::kKBias);
      hn::StoreU(scales, df, k_scale + key);
      RowsToPanel(rows, elements, lanes, reinterpret_cast<int32_t*>(column), kKeyBlock);
      i += kLanes;
      continue;
    }
    LoadCentered(task.k, i, 1, shape.head_dim, center, rows);
    if (rotated) RotateRows(factor, shape.head_dim, rows, 1);
    k_scale[key] =
        QuantizeRow(rows, elements, max_k, Scheme::kKBias, reinterpret_cast<Quantum*>(rows));
    const uint8_t* quanta = reinterpret_cast<const uint8_t*>(rows);
    uint8_t* out = reinterpret_cast<uint8_t*>(column);
    for (size_t lane = 0; lane < lanes; ++lane) {
      __builtin_memcpy(out + lane * kKeyBlock * kLaneBytes, quanta + lane * kLaneBytes, kLaneBytes);
    }
    ++i;
  }
}

// The low bytes of four vectors, interleaved.
HWY_INLINE VU8 InterleaveBytes(VI32 a, VI32 b, VI32 c, VI32 d) {
  const VI16 ac = hn::OddEven(hn::BitCast(di16, hn::ShiftLeft<16>(c)), hn::BitCast(di16, a));
  const VI16 bd = hn::OddEven(hn::BitCast(di16, hn::ShiftLeft<16>(d)), hn::BitCast(di16, b));
  return hn::OddEven(hn::BitCast(du8, hn::ShiftLeft<8>(bd)), hn::BitCast(du8, ac));
}

// The rows without the channels before `channel`.
HWY_INLINE SourceRows FromChannel(SourceRows rows, size_t channel) {
  const auto count = static_cast<int64_t>(channel);
  rows.first.data += count * rows.first.dim_stride;
  rows.first.scale = ScaleAt(rows.first.scale, count * rows.first.scale_stride);
  return rows;
}

// V of one tile, per channel: the range over the tile, then the quanta, four keys to a 32-bit lane.
// A panel at a time, whose rows fit a buffer.
HWY_INLINE void PackValues(const PackTask& task, unsigned char* HWY_RESTRICT scratch) {
  const PackedShape& shape = task.head.shape;
  const PackedOffsets& offsets = task.head.offsets;
  const size_t channels = PaddedVHeadDim(shape);
  uint8_t* v_out = task.head.base + offsets.v;
  float* v_scale = reinterpret_cast<float*>(task.head.base + offsets.v_scale) +
                   task.key_begin / kKvTile * channels;
  const float* v_center = reinterpret_cast<const float*>(task.head.base + offsets.v_center);
  constexpr int kVBias = I8Ops::kBiasedV ? kBias : 0;
  static_assert(kKvTile * kPanelWidth * sizeof(float) <= kPackScratchBytes, "a panel in f32");
  float* rows = reinterpret_cast<float*>(scratch);
  const size_t padded_keys = RoundUp(task.num_keys, 4);

  for (size_t begin = 0; begin < channels; begin += kPanelWidth) {
    const VPanel panel = VPanelAt(shape, task.key_begin, begin);
    const size_t width = panel.width;
    const size_t used = MinOf(width, shape.v_head_dim - begin);  // RowBufferElements(used) == width
    const SourceRows source = FromChannel(task.v, begin);
    for (size_t i = 0; i < task.num_keys; i += kRowsAhead) {
      PrefetchRows(source, i + kRowsAhead, i + 2 * kRowsAhead, task.num_keys, used);
      LoadCentered(source, i, MinOf(kRowsAhead, task.num_keys - i), used, v_center + begin,
                   rows + i * width);
    }
    for (size_t i = task.num_keys * width; i < padded_keys * width; i += kLanes) {
      hn::Store(hn::Zero(df), df, rows + i);
    }
    uint8_t* out = v_out + panel.offset + task.key_begin % kVTileKeys * width;
    for (size_t c = 0; c < width; c += kLanes) {
      VF ranges[4] = {hn::Zero(df), hn::Zero(df), hn::Zero(df), hn::Zero(df)};
      // Four maxima, so that none waits for the other.
      for (size_t i = 0; i < padded_keys; i += 4) {
        HWY_UNROLL(4)
        for (size_t j = 0; j < 4; ++j) {
          ranges[j] = hn::Max(ranges[j], hn::Abs(hn::Load(df, rows + (i + j) * width + c)));
        }
      }
      const VF range = hn::Max(hn::Max(ranges[0], ranges[1]), hn::Max(ranges[2], ranges[3]));
      const QuantStep step = StepForRange(range, kMaxQuantum);
      hn::Store(step.scale, df, v_scale + begin + c);
      for (size_t i = 0; i < padded_keys; i += 4) {
        VI32 quanta[4];
        HWY_UNROLL(4)
        for (size_t j = 0; j < 4; ++j) {
          const VF x = hn::Load(df, rows + (i + j) * width + c);
          quanta[j] = QuantaBits(x, step.inverse, kVBias);
        }
        const VU8 bytes = InterleaveBytes(quanta[0], quanta[1], quanta[2], quanta[3]);
        hn::Store(bytes, du8, out + i * width + c * 4);
      }
    }
  }
}

// One tile of up to kKvTile keys, from its first.
template <class Scheme>
void PackQuantized(const PackTask& task, unsigned char* scratch) {
  PackKeys<Scheme>(task, scratch);
  PackValues(task, scratch);
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_QUANT_PACK_INL_H_
