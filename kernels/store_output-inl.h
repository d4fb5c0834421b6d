// The last step: O / d, plus V's centre for int8, to rows of the caller's type. Rows that saw no
// key become 0.
#ifndef SIGHTLINE_KERNELS_STORE_OUTPUT_INL_H_
#define SIGHTLINE_KERNELS_STORE_OUTPUT_INL_H_

#include "kernels/rows-inl.h"
#include "kernels/schemes-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// chunks, rows: kLanes * PaddedVHeadDim floats each. v_center is null but for quantised schemes.
HWY_INLINE void StoreOutput(const AttendTask& task, const QueryTile& q, const float* v_center,
                            uint8_t* HWY_RESTRICT chunks, float* HWY_RESTRICT rows) {
  const size_t channels = PaddedVHeadDim(task.head.shape);
  const size_t num_chunks = channels / kChunkElements;
  const size_t row_stride = q.num_vectors * kLanes;
  for (size_t v = 0; v < q.num_vectors; ++v) {
    const VF d = hn::Load(df, q.d + v * kLanes);
    const auto empty = hn::Eq(d, hn::Zero(df));
    const VF inverse = hn::IfThenZeroElse(empty, hn::Div(hn::Set(df, 1.0f), d));
    for (size_t chunk = 0; chunk < num_chunks; ++chunk) {
      VI32 x[kChunkElements];
      HWY_UNROLL(4)
      for (size_t i = 0; i < kChunkElements; ++i) {
        const size_t channel = chunk * kChunkElements + i;
        const VF o = hn::Load(df, q.o + channel * row_stride + v * kLanes);
        VF y = hn::Mul(o, inverse);
        if (v_center != nullptr) y = hn::Add(y, hn::Set(df, v_center[channel]));
        x[i] = hn::BitCast(di32, hn::IfThenZeroElse(empty, y));
      }
      Transpose4x4(x[0], x[1], x[2], x[3]);
      int32_t* to = reinterpret_cast<int32_t*>(chunks) + chunk * kChunkElements * kLanes;
      HWY_UNROLL(4)
      for (size_t i = 0; i < kChunkElements; ++i) hn::Store(x[i], di32, to + i * kLanes);
    }
    const size_t first = v * kLanes;
    const size_t count = MinOf(q.num_rows, first + kLanes) - first;
    // All rows are put together before the first is read: whole vectors that were just written in
    // parts would have to wait until the parts have reached the cache.
    for (size_t lane = 0; lane < count; ++lane) {
      for (size_t chunk = 0; chunk < num_chunks; ++chunk) {
        CopyChunk(chunks + ChunkOffset(lane, chunk),
                  rows + lane * channels + chunk * kChunkElements);
      }
    }
    for (size_t lane = 0; lane < count; ++lane) {
      StoreRow(rows + lane * channels, task.head.shape.v_head_dim,
               RowAt(task.out, q.first_row + first + lane));
    }
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_STORE_OUTPUT_INL_H_
