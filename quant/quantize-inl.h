// Symmetric quantisation of one row: x ≈ scale * q with q = round(x * max_quantum / max|x|).
//
// Shared by Q (quantised at each call) and K (quantised once); V, whose scale is per channel, uses
// the same rules across rows. Integers have no NaN and no infinity: elements are made finite first. The
// format's constants are in kv/layout.h.
#ifndef SIGHTLINE_QUANT_QUANTIZE_INL_H_
#define SIGHTLINE_QUANT_QUANTIZE_INL_H_

#include "kernels/simd-inl.h"

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

// Largest finite magnitude of a row of n elements, a multiple of kChannelAlign; NaN counts as 0.
HWY_INLINE float RangeOfRow(const float* HWY_RESTRICT row, size_t n) {
  VF range = hn::Zero(df);
  for (size_t i = 0; i < n; i += kLanes) {
    range = hn::Max(range, hn::Abs(Sanitize(hn::Load(df, row + i))));
  }
  return hn::GetLane(hn::MaxOfLanes(df, range));
}

// Its quanta; `out` may be `row` itself. Returns their sum in a vector's lanes.
template <typename Quantum>
HWY_INLINE VI32 QuantaOfRow(const float* row, size_t n, float inverse, Quantum* out) {
  const hn::Rebind<Quantum, DF> d_out;
  VI32 sum = hn::Zero(di32);
  for (size_t i = 0; i < n; i += kLanes) {
    const VF x = Sanitize(hn::Load(df, row + i));
    const VI32 q = hn::NearestInt(hn::Mul(x, hn::Set(df, inverse)));
    sum = hn::Add(sum, q);
    hn::StoreU(hn::DemoteTo(d_out, q), d_out, out + i);
  }
  return sum;
}

// Quantises n elements, a multiple of kChannelAlign, zero-padded; `out` may be `row` itself.
// Returns the scale; adds up the quanta, which products with a biased operand have to take back.
template <typename Quantum>
HWY_INLINE float QuantizeRow(const float* row, size_t n, int max_quantum, Quantum* out,
                             int32_t* sum_of_quanta) {
  const QuantStep step =
      StepForRange(hn::Set(df, RangeOfRow(row, n)), static_cast<float>(max_quantum));
  *sum_of_quanta = hn::ReduceSum(di32, QuantaOfRow(row, n, hn::GetLane(step.inverse), out));
  return hn::GetLane(step.scale);
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_QUANT_QUANTIZE_INL_H_
