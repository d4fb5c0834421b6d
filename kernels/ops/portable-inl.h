// Integer products from Highway's portable operations, for whatever has no others: exact, widened
// to 16 bits.
#ifndef SIGHTLINE_KERNELS_OPS_PORTABLE_INL_H_
#define SIGHTLINE_KERNELS_OPS_PORTABLE_INL_H_

#include "kernels/simd-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

struct I8Ops {
  static constexpr bool kBiasedV = false;
  static constexpr int kMaxQ = 127;
  static constexpr int kMaxP = 255;
  // The widening multiply needs four temporaries beside the accumulators.
  static constexpr size_t kQueryVectors = 2;
  static constexpr size_t kStep = 4;

  // acc + k · q over groups of four bytes; k is u8 with bias 128.
  static HWY_INLINE VI32 DotQK(VI32 acc, VI8 k, VI8 q) {
    return hn::SumOfMulQuadAccumulate(di32, hn::BitCast(du8, k), q, acc);
  }
  // acc + p · v; v is i8.
  static HWY_INLINE VI32 DotPV(VI32 acc, VU8 p, VI8 v) {
    return hn::SumOfMulQuadAccumulate(di32, p, v, acc);
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

#endif  // SIGHTLINE_KERNELS_OPS_PORTABLE_INL_H_
