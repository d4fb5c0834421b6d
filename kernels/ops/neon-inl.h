// Integer products on ARM without dotprod: bytes are widened to 16 bits and taken apart, and smlal
// (vmlal) multiplies four by four, or four by one lane, and adds to 32 bits. Exact, four
// instructions for 16 products: as many as multiply-adds of f32 take, for a quarter of the memory,
// but most cores that work out of order have one pipe for these and two for those.
#ifndef SIGHTLINE_KERNELS_OPS_NEON_INL_H_
#define SIGHTLINE_KERNELS_OPS_NEON_INL_H_

#include "kernels/ops/neon_i16-inl.h"
#include "kernels/simd-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

struct I8Ops {
  static constexpr bool kBiasedV = false;
  static constexpr int kMaxQ = 127;
  static constexpr int kMaxP = 255;
  // 16 accumulators, 8 vectors of Q or P and 2 of K or V are 26 of 32 registers; 8, 4 and 2 are 14
  // of 16.
  static constexpr size_t kQueryVectors = HWY_ARCH_ARM_A64 ? 4 : 2;
  static constexpr size_t kStep = 4;

  // Groups of four bytes, one of each lane: the first of all groups in the lower half of [0], the
  // second in the upper half, third and fourth in [1].
  struct Apart {
    int16x8_t of[2];
  };
  static HWY_INLINE Apart TakeApart(int16x8_t first_third, int16x8_t second_fourth) {
#if HWY_ARCH_ARM_A64
    return {{vuzp1q_s16(first_third, second_fourth), vuzp2q_s16(first_third, second_fourth)}};
#else
    const int16x8x2_t apart = vuzpq_s16(first_third, second_fourth);
    return {{apart.val[0], apart.val[1]}};
#endif
  }
  static HWY_INLINE Apart TakeApart(VI8 a) {
    const int16x8_t words = vreinterpretq_s16_s8(a.raw);
    return TakeApart(vshrq_n_s16(vshlq_n_s16(words, 8), 8), vshrq_n_s16(words, 8));
  }
  static HWY_INLINE Apart TakeApart(VU8 a) {
    const uint16x8_t words = vreinterpretq_u16_u8(a.raw);
    return TakeApart(vreinterpretq_s16_u16(vandq_u16(words, vdupq_n_u16(0xff))),
                     vreinterpretq_s16_u16(vshrq_n_u16(words, 8)));
  }
  // The lower or the upper two groups, widened.
  template <bool kUpper>
  static HWY_INLINE int16x8_t Widen(VI8 a) {
    return vmovl_s8(kUpper ? vget_high_s8(a.raw) : vget_low_s8(a.raw));
  }
  template <bool kUpper>
  static HWY_INLINE int16x8_t Widen(VU8 a) {
    return vreinterpretq_s16_u16(vmovl_u8(kUpper ? vget_high_u8(a.raw) : vget_low_u8(a.raw)));
  }

  // acc + a · b over groups.
  static HWY_INLINE VI32 Dot(VI32 acc, Apart a, Apart b) {
    int32x4_t sum = acc.raw;
    HWY_UNROLL(2)
    for (size_t i = 0; i < 2; ++i) {
      sum = MulAddHalf<false>(sum, a.of[i], b.of[i]);
      sum = MulAddHalf<true>(sum, a.of[i], b.of[i]);
    }
    return VI32(sum);
  }
  // The same by one group of b, which `groups` begins with or has at its end.
  template <size_t kLane>
  static HWY_INLINE VI32 DotLane(VI32 acc, Apart a, int16x8_t groups) {
    constexpr int kFirst = kLane % 2 * 4;
    int32x4_t sum = MulAddHalfLane<false, kFirst>(acc.raw, a.of[0], groups);
    sum = MulAddHalfLane<true, kFirst + 1>(sum, a.of[0], groups);
    sum = MulAddHalfLane<false, kFirst + 2>(sum, a.of[1], groups);
    return VI32(MulAddHalfLane<true, kFirst + 3>(sum, a.of[1], groups));
  }

  // k is u8 with bias 128.
  static HWY_INLINE VI32 DotQK(VI32 acc, VI8 k, VI8 q) {
    return Dot(acc, TakeApart(hn::BitCast(du8, k)), TakeApart(q));
  }
  template <size_t kLane>
  static HWY_INLINE VI32 DotQKLane(VI32 acc, VI8 k, VI8 q) {
    return DotLane<kLane>(acc, TakeApart(q), Widen<(kLane >= 2)>(hn::BitCast(du8, k)));
  }
  // v is i8.
  static HWY_INLINE VI32 DotPV(VI32 acc, VU8 p, VI8 v) {
    return Dot(acc, TakeApart(p), TakeApart(v));
  }
  template <size_t kLane>
  static HWY_INLINE VI32 DotPVLane(VI32 acc, VU8 p, VI8 v) {
    return DotLane<kLane>(acc, TakeApart(p), Widen<(kLane >= 2)>(v));
  }
};

using ExactPvOps = I8Ops;

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_OPS_NEON_INL_H_
