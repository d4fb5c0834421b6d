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

struct I8Ops : VnniBlock {
  static constexpr bool kBiasedV = false;
  static constexpr int kMaxQ = 127;
  static constexpr int kMaxP = 255;

  // acc + a · b over groups of four bytes.
  static HWY_INLINE VI32 Dot(VI32 acc, VU8 a, VI8 b) {
#if HWY_TARGET <= HWY_AVX3
    return VI32{_mm512_dpbusd_epi32(acc.raw, a.raw, b.raw)};
#elif defined(__AVX512VNNI__)
    return VI32{_mm256_dpbusd_epi32(acc.raw, a.raw, b.raw)};
#else
    return VI32{_mm256_dpbusd_avx_epi32(acc.raw, a.raw, b.raw)};
#endif
  }
  static HWY_INLINE VI32 DotQK(VI32 acc, VI8 k, VI8 q) {  // k is u8 with bias 128
    return Dot(acc, hn::BitCast(du8, k), q);
  }
  static HWY_INLINE VI32 DotPV(VI32 acc, VU8 p, VI8 v) { return Dot(acc, p, v); }
};

using ExactPvOps = I8Ops;

struct I16Ops {
  // acc + a · b over pairs.
  static HWY_INLINE VI32 Dot(VI32 acc, VI16 a, VI16 b) {
#if HWY_COMPILER_CLANG
    // The intrinsic becomes vpmaddwd and vpaddd: half the speed, in exchange for a latency that
    // does not matter here.
#if defined(__AVX512VNNI__)
    asm("vpdpwssd %2, %1, %0" : "+v"(acc.raw) : "v"(a.raw), "v"(b.raw));
#else
    asm("%{vex%} vpdpwssd %2, %1, %0" : "+x"(acc.raw) : "x"(a.raw), "x"(b.raw));
#endif
    return acc;
#elif HWY_TARGET <= HWY_AVX3
    return VI32{_mm512_dpwssd_epi32(acc.raw, a.raw, b.raw)};
#elif defined(__AVX512VNNI__)
    return VI32{_mm256_dpwssd_epi32(acc.raw, a.raw, b.raw)};
#else
    return VI32{_mm256_dpwssd_avx_epi32(acc.raw, a.raw, b.raw)};
#endif
  }
};

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_OPS_X86_VNNI_INL_H_
