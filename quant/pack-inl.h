// Packs K and V rows into the layout of kv/layout.h.
//
// Cost: each element is read once, converted and stored once; int8 reads a tile of V twice (range,
// then quanta) from a cached copy. K is interleaved by 64 keys, so a row of K becomes head_dim /
// depth stores kKeyBlock lanes apart; a row of V stays a row within each panel.
#ifndef SIGHTLINE_QUANT_PACK_INL_H_
#define SIGHTLINE_QUANT_PACK_INL_H_

#include "kernels/rows-inl.h"
#include "kernels/schemes-inl.h"
#include "quant/quantize-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

HWY_INLINE void LoadSourceRow(const SourceRows& rows, size_t index, size_t n, float* out) {
  LoadRow(rows.data + static_cast<int64_t>(index) * rows.length_stride, rows.dtype, rows.dim_stride,
          n, out);
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
    for (size_t c = 0; c < v_elements; c += kPanelWidth) {
      const VPanel panel = VPanelAt(shape, key, c);
      StoreElements(row + c, panel.width, v_out + panel.offset + key % kVTileKeys * panel.width);
    }

    // x - x is 0 unless x is an infinity or NaN; what f16 cannot hold has become an infinity. Not
    // Eq, since Ne is false for NaN on some targets.
    StoreElements(row, v_elements, stored);
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
void CenterI8(const PackTask& task, unsigned char* scratch) {
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

// One tile of up to kKvTile keys, from its first.
void PackI8(const PackTask& task, unsigned char* scratch) {
  const PackedShape& shape = task.head.shape;
  const PackedOffsets& offsets = task.head.offsets;
  uint8_t* base = task.head.base;
  uint8_t* k_out = base + offsets.k;
  uint8_t* v_out = base + offsets.v;
  float* k_scale = reinterpret_cast<float*>(base + offsets.k_scale);
  float* v_scale = reinterpret_cast<float*>(base + offsets.v_scale) +
                   task.key_begin / kKvTile * PaddedVHeadDim(shape);
  const float* k_center = reinterpret_cast<const float*>(base + offsets.k_center);
  const float* v_center = reinterpret_cast<const float*>(base + offsets.v_center);
  float* row = reinterpret_cast<float*>(scratch);
  float* center = row + kMaxHeadDim;
  float* inverse = center + kMaxHeadDim;
  int8_t* quanta = reinterpret_cast<int8_t*>(inverse + kMaxHeadDim);
  constexpr uint8_t kKFlip = I8Ops::kLayout == LayoutId::kI8BiasedK ? 0x80 : 0;
  constexpr uint8_t kVFlip = I8Ops::kLayout == LayoutId::kI8BiasedV ? 0x80 : 0;

  // K, per token. The centre is copied to where whole vectors of it can be read.
  for (size_t d = 0; d < RowBufferElements(shape.head_dim); ++d) {
    center[d] = d < shape.head_dim ? k_center[d] : 0.0f;
  }
  for (size_t i = 0; i < task.num_keys; ++i) {
    const size_t key = task.key_begin + i;
    LoadCentered(task.k, i, shape.head_dim, center, row);
    int32_t sum;
    k_scale[key] = QuantizeRow(row, RowBufferElements(shape.head_dim), quanta, &sum);
    // Adding 128 is flipping the sign bit.
    uint8_t* block = k_out + KBlockOffset(shape, key) + key % kKeyBlock * 4;
    for (size_t d = 0; d < PaddedHeadDim(shape); ++d) {
      block[d / 4 * kKeyBlock * 4 + d % 4] =
          static_cast<uint8_t>(static_cast<uint8_t>(quanta[d]) ^ kKFlip);
    }
  }

  // V, per channel: the range over the tile, then the quanta.
  const size_t channels = PaddedVHeadDim(shape);
  for (size_t c = 0; c < channels; c += kLanes) hn::Store(hn::Zero(df), df, inverse + c);
  for (size_t i = 0; i < task.num_keys; ++i) {
    LoadCentered(task.v, i, shape.v_head_dim, v_center, row);
    for (size_t c = 0; c < channels; c += kLanes) {
      const VF x = hn::Abs(hn::Load(df, row + c));
      hn::Store(hn::Max(hn::Load(df, inverse + c), x), df, inverse + c);
    }
  }
  for (size_t c = 0; c < channels; c += kLanes) {
    const QuantStep step = StepForRange(hn::Load(df, inverse + c));
    hn::Store(step.scale, df, v_scale + c);
    hn::Store(step.inverse, df, inverse + c);
  }
  const hn::Rebind<int8_t, DF> d8;
  for (size_t i = 0; i < task.num_keys; ++i) {
    const size_t key = task.key_begin + i;
    LoadCentered(task.v, i, shape.v_head_dim, v_center, row);
    for (size_t c = 0; c < channels; c += kLanes) {
      const VF x = hn::Mul(hn::Load(df, row + c), hn::Load(df, inverse + c));
      hn::StoreU(hn::DemoteTo(d8, hn::NearestInt(x)), d8, quanta + c);
    }
    for (size_t c = 0; c < channels; c += kPanelWidth) {
      const VPanel panel = VPanelAt(shape, key, c);
      uint8_t* quad = v_out + panel.offset + key % kVTileKeys / 4 * panel.width * 4 + key % 4;
      for (size_t j = 0; j < panel.width; ++j) {
        quad[j * 4] = static_cast<uint8_t>(static_cast<uint8_t>(quanta[c + j]) ^ kVFlip);
      }
    }
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_QUANT_PACK_INL_H_
