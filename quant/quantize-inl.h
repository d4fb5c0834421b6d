// Symmetric quantisation of one row: x ≈ scale * q with q = round(x * max_quantum / max|x|).
//
// Shared by Q (quantised at each call) and K (quantised once); V, whose scale is per channel, uses
// the same rules across rows. Integers have no NaN and no infinity: elements are made finite first.
// The format's constants are in kv/layout.h.
#ifndef SIGHTLINE_QUANT_QUANTIZE_INL_H_
#define SIGHTLINE_QUANT_QUANTIZE_INL_H_

#include "kernels/transpose-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// NaN becomes 0, infinities +-kLargestFinite.
HWY_INLINE VF Sanitize(VF x) {
  x = hn::IfThenZeroElse(hn::IsNaN(x), x);
  return hn::Clamp(x, hn::Set(df, -kLargestFinite), hn::Set(df, kLargestFinite));
}

struct QuantStep {
  VF scale;    // what one quantum is worth
  VF inverse;  // quanta per unit
};

// Elementwise on vectors of ranges (the largest magnitudes), for quanta up to max_quantum.
HWY_INLINE QuantStep StepForRange(VF range, float max_quantum) {
  const auto usable = hn::Ge(range, hn::Set(df, kSmallestRange));
  QuantStep step;
  step.scale = hn::IfThenElseZero(usable, hn::Mul(range, hn::Set(df, 1.0f / max_quantum)));
  step.inverse = hn::IfThenElseZero(usable, hn::Div(hn::Set(df, max_quantum), range));
  return step;
}

// Largest magnitude of a row of n elements, a multiple of kChannelAlign. Makes the row finite,
// which it nearly always is already.
HWY_INLINE float FiniteRange(float* HWY_RESTRICT row, size_t n) {
  const DI32 d;
  const VI32 magnitude = hn::Set(d, 0x7fffffff);
  VI32 range = hn::Zero(d);  // as bits, in whose order infinities and NaN are the largest
  for (size_t i = 0; i < n; i += kLanes) {
    range = hn::Max(range, hn::And(magnitude, hn::BitCast(d, hn::Load(df, row + i))));
  }
  const VF largest = hn::BitCast(df, hn::MaxOfLanes(d, range));
  if (HWY_LIKELY(hn::AllTrue(df, hn::Lt(largest, hn::Set(df, kLargestFinite))))) {
    return hn::GetLane(largest);
  }
  VF finite = hn::Zero(df);
  for (size_t i = 0; i < n; i += kLanes) {
    const VF x = Sanitize(hn::Load(df, row + i));
    finite = hn::Max(finite, hn::Abs(x));
    hn::Store(x, df, row + i);
  }
  return hn::GetLane(hn::MaxOfLanes(df, finite));
}

// The quanta of a vector, plus `bias`, in the low bits of its lanes: rounded by an addition that
// leaves them there, which is cheaper than a conversion that has to mind overflow.
HWY_INLINE VI32 QuantaBits(VF x, VF inverse, int bias = 0) {
  const VF magic = hn::Set(df, 12582912.0f + static_cast<float>(bias));  // 1.5 * 2^23
  return hn::BitCast(di32, hn::Add(hn::Mul(x, inverse), magic));
}

// Quanta of a finite row, plus `bias`; `out` may be `row` itself.
template <typename Quantum>
HWY_INLINE void QuantaOfRow(const float* row, size_t n, float inverse, Quantum* out, int bias = 0) {
  const hn::RebindToUnsigned<DF> du32;
  const hn::Rebind<hwy::MakeUnsigned<Quantum>, DF> d_out;
  for (size_t i = 0; i < n; i += kLanes) {
    const VI32 bits = QuantaBits(hn::Load(df, row + i), hn::Set(df, inverse), bias);
    hn::StoreU(hn::TruncateTo(d_out, hn::BitCast(du32, bits)), d_out,
               reinterpret_cast<hwy::MakeUnsigned<Quantum>*>(out + i));
  }
}

// FiniteRange of kLanes rows side by side.
HWY_INLINE VF FiniteRanges(float* HWY_RESTRICT rows, size_t n) {
  VI32 range[kLanes];
  HWY_UNROLL(16)
  for (size_t r = 0; r < kLanes; ++r) range[r] = hn::Zero(di32);
  const VI32 magnitude = hn::Set(di32, 0x7fffffff);
  for (size_t i = 0; i < n; i += kLanes) {
    HWY_UNROLL(16)
    for (size_t r = 0; r < kLanes; ++r) {
      const VI32 bits = hn::BitCast(di32, hn::Load(df, rows + r * n + i));
      range[r] = hn::Max(range[r], hn::And(magnitude, bits));
    }
  }
  TransposeSquare(range);
  HWY_UNROLL(4)
  for (size_t step = kLanes / 2; step != 0; step /= 2) {
    HWY_UNROLL(8)
    for (size_t r = 0; r < step; ++r) range[r] = hn::Max(range[r], range[r + step]);
  }
  const VF ranges = hn::BitCast(df, range[0]);
  if (HWY_LIKELY(hn::AllTrue(df, hn::Lt(ranges, hn::Set(df, kLargestFinite))))) return ranges;
  HWY_ALIGN float finite[kLanes];
  for (size_t r = 0; r < kLanes; ++r) finite[r] = FiniteRange(rows + r * n, n);
  return hn::Load(df, finite);
}

// kLanes rows of n elements, in place: row r's quanta are where the row began. Returns the scales.
template <typename Quantum>
HWY_INLINE VF QuantizeRows(float* HWY_RESTRICT rows, size_t n, int max_quantum, int bias) {
  const hn::RebindToUnsigned<DF> du32;
  const hn::Rebind<hwy::MakeUnsigned<Quantum>, DF> d_out;
  HWY_ALIGN float inverse[kLanes];
  const QuantStep step = StepForRange(FiniteRanges(rows, n), static_cast<float>(max_quantum));
  hn::Store(step.inverse, df, inverse);
  for (size_t i = 0; i < n; i += kLanes) {
    HWY_UNROLL(16)
    for (size_t r = 0; r < kLanes; ++r) {
      float* row = rows + r * n;
      const VI32 bits = QuantaBits(hn::Load(df, row + i), hn::Set(df, inverse[r]), bias);
      hn::StoreU(hn::TruncateTo(d_out, hn::BitCast(du32, bits)), d_out,
                 reinterpret_cast<hwy::MakeUnsigned<Quantum>*>(row) + i);
    }
  }
  return step.scale;
}

// Quantises n elements, a multiple of kChannelAlign, zero-padded, and adds `bias`; `out` may be
// `row` itself. Returns the scale.
template <typename Quantum>
HWY_INLINE float QuantizeRow(float* row, size_t n, int max_quantum, int bias, Quantum* out) {
  const QuantStep step =
      StepForRange(hn::Set(df, FiniteRange(row, n)), static_cast<float>(max_quantum));
  QuantaOfRow(row, n, hn::GetLane(step.inverse), out, bias);
  return hn::GetLane(step.scale);
}

// What products with a biased operand have to take back.
template <typename Quantum>
HWY_INLINE int32_t SumOfQuanta(const Quantum* quanta, size_t n) {
  const hn::Rebind<Quantum, DF> d;
  VI32 sum = hn::Zero(di32);
  for (size_t i = 0; i < n; i += kLanes) {
    sum = hn::Add(sum, hn::PromoteTo(di32, hn::LoadU(d, quanta + i)));
  }
  return hn::ReduceSum(di32, sum);
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_QUANT_QUANTIZE_INL_H_
