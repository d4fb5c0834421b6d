// Integer products with ARM's dotprod extension: sdot multiplies i8 with i8, udot u8 with u8, so K
// needs no bias and V carries one. Raw intrinsics, since Highway's HWY_NEON does not use the
// extension.
#ifndef SIGHTLINE_KERNELS_OPS_NEON_DOT_INL_H_
#define SIGHTLINE_KERNELS_OPS_NEON_DOT_INL_H_

#include "kernels/ops/neon_i16-inl.h"
#include "kernels/simd-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

struct I8Ops {
  static constexpr bool kBiasedV = true;
  static constexpr int kMaxQ = 127;
  static constexpr int kMaxP = 255;
  // 24 accumulators, 3 vectors of Q or P and 2 of K or V are 29 of 32 registers.
  static constexpr size_t kQueryVectors = 3;
  static constexpr size_t kStep = 8;

  // acc + k · q over groups of four bytes; the same by one group of k.
  static HWY_INLINE VI32 DotQK(VI32 acc, VI8 k, VI8 q) {
    return VI32(vdotq_s32(acc.raw, k.raw, q.raw));
  }
  template <size_t kLane>
  static HWY_INLINE VI32 DotQKLane(VI32 acc, VI8 k, VI8 q) {
    return VI32(vdotq_laneq_s32(acc.raw, q.raw, k.raw, kLane));
  }
  // acc + p · v; v is u8 with bias 128.
  static HWY_INLINE VI32 DotPV(VI32 acc, VU8 p, VI8 v) {
    return VI32(vreinterpretq_s32_u32(
        vdotq_u32(vreinterpretq_u32_s32(acc.raw), p.raw, vreinterpretq_u8_s8(v.raw))));
  }
  template <size_t kLane>
  static HWY_INLINE VI32 DotPVLane(VI32 acc, VU8 p, VI8 v) {
    return VI32(vreinterpretq_s32_u32(
        vdotq_laneq_u32(vreinterpretq_u32_s32(acc.raw), p.raw, vreinterpretq_u8_s8(v.raw), kLane)));
  }
};

using ExactPvOps = I8Ops;

// Looks up bytes in a table of 64.
struct ByteTable {
  uint8x16x4_t bytes;

  explicit HWY_INLINE ByteTable(const uint8_t* table) {
    asm("" : "+r"(table));  // GCC would read a constant again at each use, to save registers
    bytes = vld1q_u8_x4(table);
  }
  HWY_INLINE VU8 operator[](VU8 index) const { return VU8(vqtbl4q_u8(bytes, index.raw)); }
};

// x / 2^-n, n from -15 to 0. Highway would negate n to shift to the left.
HWY_INLINE VI16 ShiftBy(VU16 x, VI16 n) {
  return VI16(vreinterpretq_s16_u16(vshlq_u16(x.raw, n.raw)));
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_OPS_NEON_DOT_INL_H_
