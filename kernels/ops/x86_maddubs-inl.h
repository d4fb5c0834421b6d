// Integer products of x86 without VNNI: vpmaddubsw multiplies u8 with i8 and adds neighbours in 16
// bits, vpmaddwd adds those. Three instructions where VNNI has one; exact, widened to 16 bits
// first, it would be five.
//
// Sums of two products saturate, so quanta reach less far:
//
//   K·Q   255 * 64 * 2  = 32640     K has a bias of 128, Q reaches +-64
//   P·V   127 * 127 * 2 = 32258     P might reach 129; 127 lets it have another fraction bit
//
// Keeping two steps in 16 bits would be faster still and take another bit of both: see
// docs/kernels/int8.md for what either costs.
#ifndef SIGHTLINE_KERNELS_OPS_X86_MADDUBS_INL_H_
#define SIGHTLINE_KERNELS_OPS_X86_MADDUBS_INL_H_

#include "kernels/simd-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

#if HWY_TARGET <= HWY_AVX3
// 24 accumulators of 32 registers, 3 query vectors, the broadcast, ones and two products.
struct MaddBlock {
  static constexpr size_t kQueryVectors = 3;
  static constexpr size_t kStep = 8;
};
#else
// 8 accumulators of 16 registers, 2 query vectors, ones, a broadcast and products on their way.
struct MaddBlock {
  static constexpr size_t kQueryVectors = 2;
  static constexpr size_t kStep = 4;
};
#endif

// GCC 12 keeps sums of integers in memory, since its vectors of 32-bit lanes are of another type
// than Highway's, unless it has to show them in a register.
HWY_INLINE VI32 InRegister(VI32 sum) {
#if HWY_COMPILER_GCC_ACTUAL
#if HWY_TARGET <= HWY_AVX3
  asm("" : "+v"(sum.raw));
#else
  asm("" : "+x"(sum.raw));
#endif
#endif
  return sum;
}

struct I16Ops {
  // acc + a · b over pairs.
  static HWY_INLINE VI32 Dot(VI32 acc, VI16 a, VI16 b) {
    return InRegister(hn::Add(acc, hn::WidenMulPairwiseAdd(di32, a, b)));
  }
};

struct I8Ops : MaddBlock {
  static constexpr bool kBiasedV = false;
  static constexpr int kMaxQ = 64;
  static constexpr int kMaxP = 127;

  // acc + a · b over groups of four bytes.
  static HWY_INLINE VI32 Dot(VI32 acc, VU8 a, VI8 b) {
    return I16Ops::Dot(acc, hn::SatWidenMulPairwiseAdd(di16, a, b), hn::Set(di16, 1));
  }
  static HWY_INLINE VI32 DotQK(VI32 acc, VI8 k, VI8 q) {  // k is u8 with bias 128
    return Dot(acc, hn::BitCast(du8, k), q);
  }
  static HWY_INLINE VI32 DotPV(VI32 acc, VU8 p, VI8 v) { return Dot(acc, p, v); }
};

// For i8_fine, whose error would be 1.3 % with the above: widened to 16 bits first.
struct ExactPvOps : I8Ops {
  static constexpr int kMaxP = 255;
  static HWY_INLINE VI32 DotPV(VI32 acc, VU8 p, VI8 v) {
    return InRegister(hn::SumOfMulQuadAccumulate(di32, p, v, acc));
  }
};

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_OPS_X86_MADDUBS_INL_H_
