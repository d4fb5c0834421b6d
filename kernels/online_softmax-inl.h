// One step of the online softmax (Milakov & Gimelshein 2018): fold a tile of scores into the
// running maximum m and denominator d, and turn the scores into P.
//
//   m' = max(m, max S)    d' = 2^(m - m') d + Σ P    O' = 2^(m - m') O + P·V
//
// f32 takes P relative to m'. int8 takes it relative to the tile's own maximum, so that all 255
// steps are used even when an earlier tile held a larger score, and weighs the tile's product by
// 2^(tile m - m'); d sums P before rounding, so that thousands of keys too faint for a step of
// their own still count.
//
// Cost per score: 10 instructions for 2^x, a subtraction and an addition; int8 rounds and packs.
#ifndef SIGHTLINE_KERNELS_ONLINE_SOFTMAX_INL_H_
#define SIGHTLINE_KERNELS_ONLINE_SOFTMAX_INL_H_

#include "kernels/schemes-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// A row that has seen no key yet has maximum -inf; any finite reference will do for it, and 0 keeps
// -inf - (-inf) away.
HWY_INLINE VF FiniteReference(VF m) { return hn::IfThenZeroElse(hn::Eq(m, NegInf()), m); }

// num_keys is a multiple of kStep; hidden scores are -inf and become exactly 0.
template <class Scheme, size_t kQV>
HWY_INLINE void SoftmaxTile(const QueryTile& q, size_t num_keys, const TileScratch& scratch) {
  constexpr size_t kRowStride = kQV * kLanes;
  HWY_UNROLL(8)
  for (size_t v = 0; v < kQV; ++v) {
    const size_t row = v * kLanes;
    const VF tile_m = hn::Load(df, scratch.tile_m + row);
    const VF old_m = hn::Load(df, q.m + row);
    const VF new_m = hn::Max(old_m, tile_m);
    const VF reference = FiniteReference(new_m);
    const VF rescale = Exp2NonPositive(hn::Sub(old_m, reference));
    const VF old_d = hn::Mul(hn::Load(df, q.d + row), rescale);
    hn::Store(new_m, df, q.m + row);
    hn::Store(rescale, df, scratch.rescale + row);

    VF sum = hn::Zero(df);
    float* HWY_RESTRICT s = scratch.s + row;
    if constexpr (Scheme::kI8) {
      const VF tile_reference = FiniteReference(tile_m);
      const VF weight = Exp2NonPositive(hn::Sub(tile_m, reference));
      uint8_t* HWY_RESTRICT p = scratch.p + row * 4;
      VI32 sum_of_p = hn::Zero(di32);
      for (size_t key = 0; key < num_keys; key += 4) {
        VI32 packed = hn::Zero(di32);
        HWY_UNROLL(4)
        for (size_t i = 0; i < 4; ++i) {
          const VF x = hn::Load(df, s + (key + i) * kRowStride);
          const VF exact = Exp2NonPositive(hn::Sub(x, tile_reference));
          sum = hn::Add(sum, exact);
          const VI32 rounded = hn::NearestInt(hn::Mul(exact, hn::Set(df, kMaxP)));
          sum_of_p = hn::Add(sum_of_p, rounded);
          packed = hn::Or(packed, hn::ShiftLeftSame(rounded, static_cast<int>(8 * i)));
        }
        hn::Store(hn::BitCast(du8, packed), du8, p + key * kRowStride);
      }
      hn::Store(hn::MulAdd(weight, sum, old_d), df, q.d + row);
      hn::Store(hn::Mul(weight, hn::Set(df, 1.0f / kMaxP)), df, scratch.weight + row);
      if constexpr (Scheme::kLayout == LayoutId::kI8BiasedV) {
        hn::Store(hn::Mul(sum_of_p, hn::Set(di32, -kBias)), di32, scratch.p_init + row);
      }
    } else {
      for (size_t key = 0; key < num_keys; ++key) {
        const VF p = Exp2NonPositive(hn::Sub(hn::Load(df, s + key * kRowStride), reference));
        sum = hn::Add(sum, p);
        hn::Store(p, df, s + key * kRowStride);
      }
      hn::Store(hn::Add(old_d, sum), df, q.d + row);
    }
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_ONLINE_SOFTMAX_INL_H_
