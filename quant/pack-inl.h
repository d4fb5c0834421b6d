// Packs K and V rows into the layout of kv/layout.h.
//
// Cost: floats are read, converted and stored once; int8 reads K twice (mean, quanta) and V three
// times (mean, range, quanta). K is interleaved by 64 keys, so a row of K becomes head_dim / depth
// stores kKeyBlock lanes apart; a row of V stays a row within each panel, int8 stores four of them
// together.
#ifndef SIGHTLINE_QUANT_PACK_INL_H_
#define SIGHTLINE_QUANT_PACK_INL_H_

#include "kernels/rows-inl.h"
#include "kernels/schemes-inl.h"
#include "quant/quantize-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

HWY_INLINE void LoadSourceRow(const SourceRows& rows, size_t index, size_t n, float* out) {
  LoadRow(RowAt(rows, index), n, out);
}

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

// Adds the task's rows up in order of keys, so that the sum does not depend on the vector length,
// and divides.
HWY_INLINE void MeanOfRows(const SourceRows& rows, size_t num_rows, size_t n,
                           float* HWY_RESTRICT row, float* HWY_RESTRICT mean) {
  const size_t elements = RowBufferElements(n);
  for (size_t c = 0; c < elements; c += kLanes) hn::Store(hn::Zero(df), df, mean + c);
  for (size_t i = 0; i < num_rows; ++i) {
    LoadSourceRow(rows, i, n, row);
    for (size_t c = 0; c < elements; c += kLanes) {
      const VF x = Sanitize(hn::Load(df, row + c));
      hn::Store(hn::Add(hn::Load(df, mean + c), x), df, mean + c);
    }
  }
  const VF count = hn::Set(df, static_cast<float>(num_rows));
  for (size_t c = 0; c < elements; c += kLanes) {
    hn::Store(hn::Div(hn::Load(df, mean + c), count), df, mean + c);
  }
}

// Writes k_center and v_center: the means of the task's rows, of which there is at least one.
void CenterQuantized(const PackTask& task, unsigned char* scratch) {
  const PackedShape& shape = task.head.shape;
  float* row = reinterpret_cast<float*>(scratch);
  float* mean = row + kMaxHeadDim;
  float* k_center = reinterpret_cast<float*>(task.head.base + task.head.offsets.k_center);
  float* v_center = reinterpret_cast<float*>(task.head.base + task.head.offsets.v_center);
  MeanOfRows(task.k, task.num_keys, shape.head_dim, row, mean);
  for (size_t d = 0; d < shape.head_dim; ++d) k_center[d] = mean[d];
  MeanOfRows(task.v, task.num_keys, shape.v_head_dim, row, mean);
  for (size_t c = 0; c < PaddedVHeadDim(shape); ++c) v_center[c] = mean[c];
}

// Row minus centre, finite.
HWY_INLINE void LoadCentered(const SourceRows& rows, size_t index, size_t n,
                             const float* HWY_RESTRICT center, float* HWY_RESTRICT row) {
  LoadSourceRow(rows, index, n, row);
  for (size_t c = 0; c < RowBufferElements(n); c += kLanes) {
    const VF x = Sanitize(hn::Load(df, row + c));
    hn::Store(hn::Sub(x, hn::Load(df, center + c)), df, row + c);
  }
}

// K of one tile, per token.
template <class Scheme>
HWY_INLINE void PackKeys(const PackTask& task, float* HWY_RESTRICT scratch) {
  using Quantum = typename Scheme::KStored;
  const PackedShape& shape = task.head.shape;
  const PackedOffsets& offsets = task.head.offsets;
  Quantum* k_out = reinterpret_cast<Quantum*>(task.head.base + offsets.k);
  float* k_scale = reinterpret_cast<float*>(task.head.base + offsets.k_scale);
  const float* k_center = reinterpret_cast<const float*>(task.head.base + offsets.k_center);
  const size_t elements = RowBufferElements(shape.head_dim);
  const int max_k = Scheme::MaxK(shape.head_dim);
  float* row = scratch;
  float* center = scratch + kMaxHeadDim;
  Quantum* quanta = reinterpret_cast<Quantum*>(scratch + 2 * kMaxHeadDim);
  // Adding 128 to four bytes is flipping their sign bits.
  constexpr uint32_t kFlip = Scheme::kKBias != 0 ? 0x80808080u : 0;

  // Copied to where whole vectors of it can be read.
  for (size_t d = 0; d < elements; ++d) center[d] = d < shape.head_dim ? k_center[d] : 0.0f;
  for (size_t i = task.num_keys_done; i < task.num_keys; ++i) {
    const size_t key = task.key_begin + i;
    LoadCentered(task.k, i, shape.head_dim, center, row);
    int32_t sum;
    k_scale[key] = QuantizeRow(row, elements, max_k, quanta, &sum);
    Quantum* lane = k_out + KBlockOffset(shape, key) + key % kKeyBlock * kQkDepth<Scheme>;
    for (size_t d = 0; d < PaddedHeadDim(shape); d += kQkDepth<Scheme>) {
      uint32_t lane_bits;
      __builtin_memcpy(&lane_bits, quanta + d, sizeof(lane_bits));
      lane_bits ^= kFlip;
      __builtin_memcpy(lane + d * kKeyBlock, &lane_bits, sizeof(lane_bits));
    }
  }
}

// V of one tile, per channel: the range over the tile, then the quanta, four keys to a 32-bit lane.
HWY_INLINE void PackValues(const PackTask& task, float* HWY_RESTRICT scratch) {
  const PackedShape& shape = task.head.shape;
  const PackedOffsets& offsets = task.head.offsets;
  const size_t channels = PaddedVHeadDim(shape);
  uint8_t* v_out = task.head.base + offsets.v;
  float* v_scale = reinterpret_cast<float*>(task.head.base + offsets.v_scale) +
                   task.key_begin / kKvTile * channels;
  const float* v_center = reinterpret_cast<const float*>(task.head.base + offsets.v_center);
  float* inverse = scratch;
  float* rows = scratch + kMaxHeadDim;  // four of them
  constexpr int32_t kFlip =
      I8Ops::kBiasedV ? static_cast<int32_t>(0x80808080u) : 0;

  for (size_t c = 0; c < channels; c += kLanes) hn::Store(hn::Zero(df), df, inverse + c);
  for (size_t i = 0; i < task.num_keys; ++i) {
    LoadCentered(task.v, i, shape.v_head_dim, v_center, rows);
    for (size_t c = 0; c < channels; c += kLanes) {
      const VF x = hn::Abs(hn::Load(df, rows + c));
      hn::Store(hn::Max(hn::Load(df, inverse + c), x), df, inverse + c);
    }
  }
  for (size_t c = 0; c < channels; c += kLanes) {
    const QuantStep step = StepForRange(hn::Load(df, inverse + c), kMaxQuantum);
    hn::Store(step.scale, df, v_scale + c);
    hn::Store(step.inverse, df, inverse + c);
  }

  for (size_t i = 0; i < task.num_keys; i += 4) {
    for (size_t j = 0; j < 4; ++j) {
      float* row = rows + j * kMaxHeadDim;
      if (i + j < task.num_keys) {
        LoadCentered(task.v, i + j, shape.v_head_dim, v_center, row);
      } else {
        for (size_t c = 0; c < channels; c += kLanes) hn::Store(hn::Zero(df), df, row + c);
      }
    }
    const size_t key = task.key_begin + i;
    for (size_t c = 0; c < channels; c += kLanes) {
      VI32 packed = hn::Zero(di32);
      for (size_t j = 0; j < 4; ++j) {
        const VF x = hn::Load(df, rows + j * kMaxHeadDim + c);
        const VI32 q = hn::NearestInt(hn::Mul(x, hn::Load(df, inverse + c)));
        const VI32 byte = hn::And(q, hn::Set(di32, 0xff));
        packed = hn::Or(packed, hn::ShiftLeftSame(byte, static_cast<int>(8 * j)));
      }
      packed = hn::Xor(packed, hn::Set(di32, kFlip));
      const VPanel panel = VPanelAt(shape, key, c);
      uint8_t* quad = v_out + panel.offset + key % kVTileKeys * panel.width + c % kPanelWidth * 4;
      hn::Store(hn::BitCast(du8, packed), du8, quad);
    }
  }
}

// One tile of up to kKvTile keys, from its first.
template <class Scheme>
void PackQuantized(const PackTask& task, unsigned char* scratch) {
  static_assert(kPackScratchRows >= 5, "a range and four rows of V");
  PackKeys<Scheme>(task, reinterpret_cast<float*>(scratch));
  PackValues(task, reinterpret_cast<float*>(scratch));
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_QUANT_PACK_INL_H_
