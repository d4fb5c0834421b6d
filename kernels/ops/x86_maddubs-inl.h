// Integer products without VNNI: vpmaddubsw multiplies u8 with i8 and adds neighbours in 16 bits,
// saturating; vpmaddwd with ones widens to 32 bits. Three instructions for four products of a lane,
// half of what widening everything to int16 first costs.
//
// It must not saturate: two products of the u8 operand (K with its bias, up to 255; P) with the i8
// one stay below 2^15. So Q gives up a bit, which K does not (K is stored once and read by every
// tier), and so does P:
//   2 * 255 * kMaxQ = 32640    2 * kMaxP * 127 = 32766
// The price is a relative error of about 2 % instead of 1.3 %; exact int16 products (vpmaddwd)
// would cost a quarter of the speed. docs/kernels/int8.md has the measurements.
#ifndef SIGHTLINE_KERNELS_OPS_X86_MADDUBS_INL_H_
#define SIGHTLINE_KERNELS_OPS_X86_MADDUBS_INL_H_

#include "kernels/simd-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

#if HWY_TARGET <= HWY_AVX3
// 24 accumulators, 3 operands, the broadcast, the ones and two temporaries of 32 registers.
struct MaddBlock {
  static constexpr size_t kQueryVectors = 3;
  static constexpr size_t kStep = 8;
};
#else
// 8 accumulators, 2 operands, the broadcast, the ones and two temporaries of 16 registers.
struct MaddBlock {
  static constexpr size_t kQueryVectors = 2;
  static constexpr size_t kStep = 4;
};
#endif

struct I16Ops : MaddBlock {
  // acc + a · b over pairs.
  static HWY_INLINE VI32 Dot(VI32 acc, VI16 a, VI16 b) {
    return hn::Add(acc, hn::WidenMulPairwiseAdd(di32, a, b));
  }
};

struct I8Ops : MaddBlock {
  static constexpr bool kBiasedV = false;
  static constexpr int kMaxQ = 64;
  static constexpr int kMaxP = 129;

  // acc + a · b over groups of four bytes.
  static HWY_INLINE VI32 Dot(VI32 acc, VU8 a, VI8 b) {
    return I16Ops::Dot(acc, hn::SatWidenMulPairwiseAdd(di16, a, b), hn::Set(di16, 1));
  }
  static HWY_INLINE VI32 DotQK(VI32 acc, VI8 k, VI8 q) {  // k is u8 with bias 128
    return Dot(acc, hn::BitCast(du8, k), q);
  }
  static HWY_INLINE VI32 DotPV(VI32 acc, VU8 p, VI8 v) { return Dot(acc, p, v); }
};

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_OPS_X86_MADDUBS_INL_H_
