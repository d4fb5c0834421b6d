// Integer products with ARM's dotprod extension: sdot multiplies i8 with i8, udot u8 with u8, so K
// needs no bias and V carries one. Raw intrinsics, since Highway's HWY_NEON does not use the
// extension.
#ifndef SIGHTLINE_KERNELS_OPS_NEON_DOT_INL_H_
#define SIGHTLINE_KERNELS_OPS_NEON_DOT_INL_H_

#include "kernels/simd-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

struct I8Ops {
  static constexpr bool kBiasedV = true;
  static constexpr int kMaxQ = 127;
  static constexpr int kMaxP = 255;
  // 16 accumulators of 32 registers; 4x8 would spill.
  static constexpr size_t kQueryVectors = 4;
  static constexpr size_t kStep = 4;

  // acc + k · q over groups of four bytes.
  static HWY_INLINE VI32 DotQK(VI32 acc, VI8 k, VI8 q) {
    return VI32(vdotq_s32(acc.raw, k.raw, q.raw));
  }
  // acc + p · v; v is u8 with bias 128.
  static HWY_INLINE VI32 DotPV(VI32 acc, VU8 p, VI8 v) {
    return VI32(vreinterpretq_s32_u32(
        vdotq_u32(vreinterpretq_u32_s32(acc.raw), p.raw, vreinterpretq_u8_s8(v.raw))));
  }
};

using ExactPvOps = I8Ops;

struct I16Ops {
  // acc + a · b over pairs.
  static HWY_INLINE VI32 Dot(VI32 acc, VI16 a, VI16 b) {
    return hn::Add(acc, hn::WidenMulPairwiseAdd(di32, a, b));
  }
};

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_OPS_NEON_DOT_INL_H_
