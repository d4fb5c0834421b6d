// Products of 16-bit integers on 64-bit ARM: smlal multiplies four by four, or four by one lane,
// and adds to 32 bits. It multiplies lane by lane, so what comes in pairs is taken apart first,
// once for all products that it is part of. Raw intrinsics, since what Highway makes of
// WidenMulPairwiseAdd takes twice as many instructions.
#ifndef SIGHTLINE_KERNELS_OPS_NEON_I16_INL_H_
#define SIGHTLINE_KERNELS_OPS_NEON_I16_INL_H_

#include "kernels/simd-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

struct I16Ops {
  // The first of each pair in the lower half, the second in the upper half.
  static HWY_INLINE int16x8_t Apart(VI16 a) {
    const uint32x4_t second = vshrq_n_u32(vreinterpretq_u32_s16(a.raw), 16);
    return vuzp1q_s16(a.raw, vreinterpretq_s16_u32(second));
  }

  // acc + a · b over pairs.
  static HWY_INLINE VI32 Dot(VI32 acc, VI16 a, VI16 b) {
    const int16x8_t a_apart = Apart(a);
    const int16x8_t b_apart = Apart(b);
    const int32x4_t sum = vmlal_s16(acc.raw, vget_low_s16(a_apart), vget_low_s16(b_apart));
    return VI32(vmlal_high_s16(sum, a_apart, b_apart));
  }
  // The same by one pair of a.
  template <size_t kLane>
  static HWY_INLINE VI32 DotLane(VI32 acc, VI16 a, VI16 b) {
    const int16x8_t apart = Apart(b);
    const int32x4_t sum = vmlal_laneq_s16(acc.raw, vget_low_s16(apart), a.raw, 2 * kLane);
    return VI32(vmlal_high_laneq_s16(sum, apart, a.raw, 2 * kLane + 1));
  }
};

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_OPS_NEON_I16_INL_H_
