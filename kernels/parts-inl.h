// Rows that see several packed heads one after the other: segments of a call, each a part with
// means and scales of its own, of which softmax must not take notice.
//
// Scores of a part lack q times the mean of its keys, and are all raised by the segment's bias. In
// decode each tile's maximum, to which its P is relative, has that beside it, and several parts are
// read in one go. In prefill and in scalar.cc a part begins by moving the rows' reference instead
// to where its scores are. It ends by moving it back, and by adding the mean of its values, which
// has the weight of the part's keys alone. Meanwhile d has the part's sum, and that of the parts
// before waits in before_d. A reference that no score of the part has raised is what it was, to the
// bit: a large bias would round it on both ways.
//
//   m' = m - offset      O' = O + (sum of P) * v_center      d' = sum of P + 2^(m - m_now) * d
//
// Cost: for each row of a part a pass over O where V is quantised, and a product of Q and a vector
// where K is. Floats without bias have next to nothing to do.
#ifndef SIGHTLINE_KERNELS_PARTS_INL_H_
#define SIGHTLINE_KERNELS_PARTS_INL_H_

#include "kernels/rows-inl.h"
#include "kernels/schemes-inl.h"
#include "kernels/score_mods-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// What a row's scores are to be raised by, in octaves.
HWY_INLINE float RaisedBy(const AttendTask& task, size_t r, float lack) {
  return LackAtEnd(task, lack) + SegmentBias(task, IndexOf(r, task.q.beams, task.q.group));
}
// The same when the last part is over.
HWY_INLINE float RaisedByAtEnd(const AttendTask& task, size_t r, float lack) {
  return IsPart(task) ? 0.0f : RaisedBy(task, r, lack);
}

// Sums of this part and those before: 0 where a row has seen nothing yet.
HWY_INLINE VF SumSoFar(const QueryTile& q, size_t row) {
  return hn::Add(hn::Load(df, q.d + row), hn::Load(df, q.before_d + row));
}

// start_m: the reference of rows that have seen nothing. whole_octaves: references have to be.
HWY_NOINLINE void OpenPart(const AttendTask& task, float start_m, bool whole_octaves,
                           const QueryTile& q) {
  const size_t stride = q.num_vectors * kLanes;
  for (size_t row = 0; row < stride; row += kLanes) {
    HWY_ALIGN float offsets[kLanes];
    for (size_t i = 0; i < kLanes; ++i) {
      const size_t real = MinOf(row + i, q.num_rows - 1);
      offsets[i] = RaisedBy(task, q.first_row + real, q.lack[real]);
    }
    const VF offset = hn::Load(df, offsets);
    const VF old_m = hn::Load(df, q.m + row);
    const VF exact = hn::Sub(old_m, offset);
    VF d = hn::Load(df, q.d + row);
    const auto first = hn::Eq(d, hn::Zero(df));
    VF m = whole_octaves ? hn::Round(exact) : exact;
    const VF rounding = hn::IfThenZeroElse(first, hn::Sub(m, exact));
    m = hn::IfThenElse(first, hn::Set(df, start_m), m);
    if (whole_octaves && !hn::AllTrue(df, first)) {
      const VF rescale = Exp2(hn::Neg(rounding));
      d = hn::Mul(d, rescale);
      for (size_t c = 0; c < PaddedVHeadDim(task.head.shape); ++c) {
        float* o = q.o + c * stride + row;
        hn::Store(hn::Mul(hn::Load(df, o), rescale), df, o);
      }
    }
    hn::Store(offset, df, q.offset + row);
    hn::Store(m, df, q.m + row);
    hn::Store(m, df, q.before_m + row);
    hn::Store(hn::Add(old_m, rounding), df, q.kept_m + row);
    hn::Store(d, df, q.before_d + row);
    hn::Store(hn::Zero(df), df, q.d + row);
  }
}

// v_center: null where V is not centred.
HWY_NOINLINE void ClosePart(const QueryTile& q, const float* v_center, size_t channels) {
  const size_t stride = q.num_vectors * kLanes;
  for (size_t row = 0; row < stride; row += kLanes) {
    const VF m = hn::Load(df, q.m + row);
    const VF d = hn::Load(df, q.d + row);
    const VF before_d = hn::Load(df, q.before_d + row);
    const VF before_m = hn::Load(df, q.before_m + row);
    const VF rescale = Exp2(hn::Sub(before_m, m));
    const auto nothing = hn::Eq(before_d, hn::Zero(df));  // and perhaps no reference
    const VF before = hn::IfThenZeroElse(nothing, hn::Mul(before_d, rescale));
    for (size_t c = 0; v_center != nullptr && c < channels; ++c) {
      float* o = q.o + c * stride + row;
      hn::Store(hn::MulAdd(d, hn::Set(df, v_center[c]), hn::Load(df, o)), df, o);
    }
    const auto is_kept = hn::AndNot(nothing, hn::Eq(m, before_m));
    const VF moved = hn::Add(m, hn::Load(df, q.offset + row));
    hn::Store(hn::IfThenElse(is_kept, hn::Load(df, q.kept_m + row), moved), df, q.m + row);
    hn::Store(hn::Add(d, before), df, q.d + row);
    hn::Store(hn::Zero(df), df, q.before_d + row);
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_PARTS_INL_H_
