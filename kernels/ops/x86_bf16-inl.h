// Products of bf16 with AVX512_BF16: vdpbf16ps multiplies two pairs a lane, at the rate of a
// multiply-add of f32. It takes subnormal numbers for zeros and makes none.
#ifndef SIGHTLINE_KERNELS_OPS_X86_BF16_INL_H_
#define SIGHTLINE_KERNELS_OPS_X86_BF16_INL_H_

#include "kernels/simd-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

struct BF16Ops {
  static constexpr bool kNative = true;

  // acc + a · b over pairs. The instruction itself: its intrinsic takes another vector type in each
  // compiler.
  static HWY_INLINE VF Dot(VF acc, VI32 a, VI32 b) {
    asm("vdpbf16ps %2, %1, %0" : "+v"(acc.raw) : "v"(a.raw), "v"(b.raw));
    return acc;
  }
};

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_OPS_X86_BF16_INL_H_
