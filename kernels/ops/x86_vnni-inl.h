// Integer products with AVX512_VNNI or AVX-VNNI: vpdpbusd multiplies u8 with i8, four at a time,
// vpdpwssd i16 with i16, two at a time, both exactly; 512 bits at once, or 256 in either's
// encoding. Raw instructions, since Highway uses them only on targets that also need VBMI2, GFNI
// and VAES, which Cascade Lake lacks, and has no AVX-VNNI target.
#ifndef SIGHTLINE_KERNELS_OPS_X86_VNNI_INL_H_
#define SIGHTLINE_KERNELS_OPS_X86_VNNI_INL_H_

#include "kernels/simd-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

#if HWY_TARGET <= HWY_AVX3
// 24 accumulators of 32 registers: 3 loads and 8 broadcasts feed 24 dot products.
struct VnniBlock {
  static constexpr size_t kQueryVectors = 3;
  static constexpr size_t kStep = 8;
};
#else
// 12 accumulators of 16 registers, 3 query vectors and the broadcast.
struct VnniBlock {
  static constexpr size_t kQueryVectors = 3;
  static constexpr size_t kStep = 4;
};
#endif

// The instructions as they are, in VEX or EVEX form. Of the intrinsics Clang 19 makes vpmaddwd and
// vpaddd, half the speed for a latency that does not matter here, and GCC 12 keeps a block of their
// results in memory, since their type is not that of Highway's vectors: also half the speed.
HWY_INLINE VI32 Vpdpbusd(VI32 acc, VU8 a, VI8 b) {
#if defined(__AVX512VNNI__)
  asm("vpdpbusd %2, %1, %0" : "+v"(acc.raw) : "v"(a.raw), "v"(b.raw));
#else
  asm("%{vex%} vpdpbusd %2, %1, %0" : "+x"(acc.raw) : "x"(a.raw), "x"(b.raw));
#endif
  return acc;
}
HWY_INLINE VI32 Vpdpwssd(VI32 acc, VI16 a, VI16 b) {
#if defined(__AVX512VNNI__)
  asm("vpdpwssd %2, %1, %0" : "+v"(acc.raw) : "v"(a.raw), "v"(b.raw));
#else
  asm("%{vex%} vpdpwssd %2, %1, %0" : "+x"(acc.raw) : "x"(a.raw), "x"(b.raw));
#endif
  return acc;
}

struct I8Ops : VnniBlock {
  static constexpr bool kBiasedV = false;
  static constexpr int kMaxQ = 127;
  static constexpr int kMaxP = 255;

  // acc + a · b over groups of four bytes.
  static HWY_INLINE VI32 DotQK(VI32 acc, VI8 k, VI8 q) {  // k is u8 with bias 128
    return Vpdpbusd(acc, hn::BitCast(du8, k), q);
  }
  static HWY_INLINE VI32 DotPV(VI32 acc, VU8 p, VI8 v) { return Vpdpbusd(acc, p, v); }
};

using ExactPvOps = I8Ops;

struct I16Ops {
  // acc + a · b over pairs.
  static HWY_INLINE VI32 Dot(VI32 acc, VI16 a, VI16 b) { return Vpdpwssd(acc, a, b); }
};

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_OPS_X86_VNNI_INL_H_
