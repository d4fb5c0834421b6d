// Products of bf16 without an instruction for them: both halves of a lane widened to f32, where
// they are exact, and two multiply-adds. No kernel multiplies by it where it is not kNative: they
// widen K and V once, or as they are loaded.
#ifndef SIGHTLINE_KERNELS_OPS_WIDENED_BF16_INL_H_
#define SIGHTLINE_KERNELS_OPS_WIDENED_BF16_INL_H_

#include "kernels/simd-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

struct BF16Ops {
  static constexpr bool kNative = false;

  // acc + a · b over pairs.
  static HWY_INLINE VF Dot(VF acc, VI32 a, VI32 b) {
    acc = hn::MulAdd(LowerOfPairs(a), LowerOfPairs(b), acc);
    return hn::MulAdd(UpperOfPairs(a), UpperOfPairs(b), acc);
  }
};

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_OPS_WIDENED_BF16_INL_H_
