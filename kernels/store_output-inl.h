// The last step: O / d, plus V's centre for int8, to rows of the caller's type. Rows that saw no
// key become 0.
#ifndef SIGHTLINE_KERNELS_STORE_OUTPUT_INL_H_
#define SIGHTLINE_KERNELS_STORE_OUTPUT_INL_H_

#include "kernels/rows-inl.h"
#include "kernels/schemes-inl.h"
#include "kernels/transpose-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// Asks for output rows [begin, end) of the task, which will be written soon.
HWY_INLINE void PrefetchOutput(const AttendTask& task, size_t begin, size_t end) {
  for (size_t row = begin; row < MinOf(end, NumRows(task)); ++row) {
    PrefetchRow(RowAt(task.out, row), task.head.shape.v_head_dim);
  }
}

// rows: scratch for kLanes * PaddedVHeadDim floats. v_center is null but for quantised schemes.
HWY_INLINE void StoreOutput(const AttendTask& task, const QueryTile& q, const float* v_center,
                            float* HWY_RESTRICT rows) {
  const size_t channels = PaddedVHeadDim(task.head.shape);
  const size_t row_stride = q.num_vectors * kLanes;
  for (size_t v = 0; v < q.num_vectors; ++v) {
    const size_t first_row = q.first_row + v * kLanes;
    PrefetchOutput(task, first_row + kLanes, first_row + 2 * kLanes);
    const VF d = hn::Load(df, q.d + v * kLanes);
    const auto empty = hn::Eq(d, hn::Zero(df));
    const VF inverse = hn::IfThenZeroElse(empty, hn::Div(hn::Set(df, 1.0f), d));
    for (size_t begin = 0; begin < channels; begin += kLanes) {
      VI32 x[kLanes];
      HWY_UNROLL(16)
      for (size_t i = 0; i < kLanes; ++i) {
        const size_t channel = begin + i;
        VF y = hn::Mul(hn::Load(df, q.o + channel * row_stride + v * kLanes), inverse);
        if (v_center != nullptr) y = hn::Add(y, hn::Set(df, v_center[channel]));
        x[i] = hn::BitCast(di32, hn::IfThenZeroElse(empty, y));
      }
      TransposeSquare(x);
      HWY_UNROLL(16)
      for (size_t r = 0; r < kLanes; ++r) {
        hn::Store(hn::BitCast(df, x[r]), df, rows + r * channels + begin);
      }
    }
    const size_t count = MinOf(kLanes, q.num_rows - v * kLanes);
    for (size_t r = 0; r < count; ++r) {
      StoreRow(rows + r * channels, task.head.shape.v_head_dim, RowAt(task.out, first_row + r));
    }
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_STORE_OUTPUT_INL_H_
