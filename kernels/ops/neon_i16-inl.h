// Products of 16-bit integers on ARM: smlal (vmlal) multiplies four by four, or four by one lane,
// and adds to 32 bits. It multiplies lane by lane, so what comes in pairs is taken apart first,
// once for all products that it is part of. Raw intrinsics, since what Highway makes of
// WidenMulPairwiseAdd takes twice as many instructions.
#ifndef SIGHTLINE_KERNELS_OPS_NEON_I16_INL_H_
#define SIGHTLINE_KERNELS_OPS_NEON_I16_INL_H_

#include "kernels/simd-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// The two architectures name halves and lanes differently: 64-bit ARM has instructions that read
// the upper half of a register; on 32-bit ARM each half is a register, and words that multiply by
// lane have to be in one of the first eight.

// sum + a · b over the lower or the upper four words of both.
template <bool kUpper>
HWY_INLINE int32x4_t MulAddHalf(int32x4_t sum, int16x8_t a, int16x8_t b) {
#if HWY_ARCH_ARM_A64
  if constexpr (kUpper) return vmlal_high_s16(sum, a, b);
#else
  if constexpr (kUpper) return vmlal_s16(sum, vget_high_s16(a), vget_high_s16(b));
#endif
  return vmlal_s16(sum, vget_low_s16(a), vget_low_s16(b));
}
// The same by one word of b.
template <bool kUpper, int kWord>
HWY_INLINE int32x4_t MulAddHalfLane(int32x4_t sum, int16x8_t a, int16x8_t b) {
#if HWY_ARCH_ARM_A64
  if constexpr (kUpper) return vmlal_high_laneq_s16(sum, a, b, kWord);
  return vmlal_laneq_s16(sum, vget_low_s16(a), b, kWord);
#else
  const int16x4_t half = kUpper ? vget_high_s16(a) : vget_low_s16(a);
  return vmlal_lane_s16(sum, half, kWord < 4 ? vget_low_s16(b) : vget_high_s16(b), kWord % 4);
#endif
}

struct I16Ops {
  // The first of each pair in the lower half, the second in the upper half.
  static HWY_INLINE int16x8_t Apart(VI16 a) {
#if HWY_ARCH_ARM_A64
    const uint32x4_t second = vshrq_n_u32(vreinterpretq_u32_s16(a.raw), 16);
    return vuzp1q_s16(a.raw, vreinterpretq_s16_u32(second));
#else
    const int32x4_t pairs = vreinterpretq_s32_s16(a.raw);
    return vcombine_s16(vmovn_s32(pairs), vshrn_n_s32(pairs, 16));
#endif
  }

  // acc + a · b over pairs.
  static HWY_INLINE VI32 Dot(VI32 acc, VI16 a, VI16 b) {
    const int16x8_t a_apart = Apart(a);
    const int16x8_t b_apart = Apart(b);
    const int32x4_t sum = MulAddHalf<false>(acc.raw, a_apart, b_apart);
    return VI32(MulAddHalf<true>(sum, a_apart, b_apart));
  }
  // The same by one pair of a.
  template <size_t kLane>
  static HWY_INLINE VI32 DotLane(VI32 acc, VI16 a, VI16 b) {
    const int16x8_t apart = Apart(b);
    const int32x4_t sum = MulAddHalfLane<false, 2 * kLane>(acc.raw, apart, a.raw);
    return VI32(MulAddHalfLane<true, 2 * kLane + 1>(sum, apart, a.raw));
  }
};

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_OPS_NEON_I16_INL_H_
