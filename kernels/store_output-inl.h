// The last step: O / d, plus V's centre for int8, to rows of the caller's type, and the logarithm
// of d to the caller's array. Rows that saw no key become 0.
#ifndef SIGHTLINE_KERNELS_STORE_OUTPUT_INL_H_
#define SIGHTLINE_KERNELS_STORE_OUTPUT_INL_H_

#include "kernels/parts-inl.h"
#include "kernels/rows-inl.h"
#include "kernels/schemes-inl.h"
#include "kernels/score_mods-inl.h"
#include "kernels/transpose-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// What becomes of a row's sums: O is multiplied by o_factor, and V's centre, whose weight is that
// of all keys together, by center_factor. Both are 0 in a row that saw nothing.
struct RowEnd {
  float o_factor;
  float center_factor;
};

// Denominator d is relative to 2^m of scores that are to be raised by `offset`. A sink takes part
// in it as one more score.
HWY_NOINLINE RowEnd EndOfRow(const AttendTask& task, size_t r, float m, float d, float offset) {
  m += offset;
  float keys = d;  // relative to 2^reference
  float total = d;
  float reference = m;
  float rescale = 1.0f;
  if (task.sinks != nullptr) {
    const float sink = task.sinks[IndexOf(r, task.q.beams, task.q.group).head] * kLog2E;
    if (sink > m || d == 0.0f) reference = sink;
    if (reference > kNegInf) {
      rescale = d == 0.0f ? 0.0f : __builtin_exp2f(m - reference);
      keys = d * rescale;
      total = keys + __builtin_exp2f(sink - reference);
    }
  }
  if (task.lse.data != nullptr) {
    constexpr double kLn2 = 0.69314718055994530942;
    const double lse =
        total == 0.0f ? double{kNegInf} : double{reference} * kLn2 + __builtin_log(double{total});
    const float rounded = static_cast<float>(lse);
    CopyElement<float>(&rounded, RowAt(task.lse, r).data);
  }
  if (d == 0.0f) return {0.0f, 0.0f};
  return {rescale / total, keys / total};
}

// The factors of EndOfRow for `count` rows of vector v, side by side: of O, and of V's centre.
HWY_INLINE VF FactorsOfRows(const AttendTask& task, const QueryTile& q, size_t v, size_t count,
                            VF& center_factor) {
  if (HWY_LIKELY(task.sinks == nullptr && task.lse.data == nullptr)) {
    const VF d = hn::Load(df, q.d + v * kLanes);
    const auto seen = hn::Not(hn::Eq(d, hn::Zero(df)));  // NaN too
    center_factor = hn::IfThenElseZero(seen, Div(d, d));
    return hn::IfThenElseZero(seen, Div(hn::Set(df, 1.0f), d));
  }
  HWY_ALIGN float o_factors[kLanes] = {};
  HWY_ALIGN float center_factors[kLanes] = {};
  for (size_t r = 0; r < count; ++r) {
    const size_t row = v * kLanes + r;
    const size_t index = q.first_row + row;
    const float offset = RaisedByAtEnd(task, index, q.lack[row]);
    const RowEnd end = EndOfRow(task, index, q.m[row], q.d[row], offset);
    o_factors[r] = end.o_factor;
    center_factors[r] = end.center_factor;
  }
  center_factor = hn::Load(df, center_factors);
  return hn::Load(df, o_factors);
}

// rows: scratch for kLanes * PaddedVHeadDim floats. v_center is null but where V is quantised.
HWY_NOINLINE void StoreOutput(const AttendTask& task, const QueryTile& q, const float* v_center,
                              float* HWY_RESTRICT rows) {
  const size_t channels = PaddedVHeadDim(task.head.shape);
  const size_t row_stride = q.num_vectors * kLanes;
  for (size_t v = 0; v < q.num_vectors; ++v) {
    const size_t first_row = q.first_row + v * kLanes;
    const size_t count = MinOf(kLanes, q.num_rows - v * kLanes);
    PrefetchRows(task.out, first_row + kLanes, first_row + 2 * kLanes, NumRows(task),
                 task.head.shape.v_head_dim);
    VF center_factor;
    const VF o_factor = FactorsOfRows(task, q, v, count, center_factor);
    const auto empty = hn::Eq(o_factor, hn::Zero(df));
    for (size_t begin = 0; begin < channels; begin += kLanes) {
      VI32 x[kLanes];
      HWY_UNROLL(16)
      for (size_t i = 0; i < kLanes; ++i) {
        const size_t channel = begin + i;
        VF y = hn::Mul(hn::Load(df, q.o + channel * row_stride + v * kLanes), o_factor);
        if (v_center != nullptr) {
          y = hn::MulAdd(hn::Set(df, v_center[channel]), center_factor, y);
        }
        x[i] = hn::BitCast(di32, hn::IfThenZeroElse(empty, y));
      }
      TransposeSquare(x);
      HWY_UNROLL(16)
      for (size_t r = 0; r < kLanes; ++r) {
        hn::Store(hn::BitCast(df, x[r]), df, rows + r * channels + begin);
      }
    }
    StoreRows(rows, channels, count, task.head.shape.v_head_dim, task.out, first_row);
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_STORE_OUTPUT_INL_H_
