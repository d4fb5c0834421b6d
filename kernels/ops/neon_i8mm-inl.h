// Products with ARM's i8mm and bf16 extensions, of which a tier has both or neither. smmla, usmmla
// and bfmmla multiply two rows of A with two rows of B over eight bytes of each, twice what sdot
// and bfdot do, at the same rate. Prefill multiplies by these (matrix_product-inl.h says how),
// decode by sdot, udot and bfdot, whose operands are the lanes of packed K and V as they are. Raw
// intrinsics, since Highway has none of the matrix products.
#ifndef SIGHTLINE_KERNELS_OPS_NEON_I8MM_INL_H_
#define SIGHTLINE_KERNELS_OPS_NEON_I8MM_INL_H_

#include "kernels/simd-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

HWY_INLINE bfloat16x8_t RawBF16(VI32 pairs) { return vreinterpretq_bf16_s32(pairs.raw); }

// acc + a · b: lanes are the first row of a with the first and the second of b, then the second row
// of a with these.
struct MatrixOps {
  static constexpr bool kNative = true;
  // 24 sums of 32 registers, 6 for rows of Q or P and one for K or V: 10 loads feed 24 products.
  static constexpr size_t kQueryVectors = 3;
  static constexpr size_t kStep = 8;

  static HWY_INLINE VI32 MulI8(VI32 acc, VI8 a, VI8 b) {
    return VI32(vmmlaq_s32(acc.raw, a.raw, b.raw));
  }
  static HWY_INLINE VI32 MulU8I8(VI32 acc, VU8 a, VI8 b) {
    return VI32(vusmmlaq_s32(acc.raw, a.raw, b.raw));
  }
  static HWY_INLINE VF MulBF16(VF acc, VI32 a, VI32 b) {
    return VF(vbfmmlaq_f32(acc.raw, RawBF16(a), RawBF16(b)));
  }

  // What p points to is not to be loaded before there is `sum`: compilers like all loads of a block
  // to be first, and then have no registers for some of the sums.
  template <class V>
  static HWY_INLINE void LoadAfter(const uint8_t* HWY_RESTRICT& p, V sum) {
    asm("" : "+r"(p) : "w"(sum.raw));
  }

  // For before a block: nothing stays in a register of vectors. GCC 12 may keep constants there for
  // what follows the block, and then has none for some of the sums.
  static HWY_INLINE void FreeRegisters() {
#if HWY_COMPILER_GCC_ACTUAL
    asm volatile(""
                 :
                 :
                 : "v0", "v1", "v2", "v3", "v4", "v5", "v6", "v7", "v8", "v9", "v10", "v11", "v12",
                   "v13", "v14", "v15", "v16", "v17", "v18", "v19", "v20", "v21", "v22", "v23",
                   "v24", "v25", "v26", "v27", "v28", "v29", "v30", "v31");
#endif
  }
};

// Subnormal numbers count as zeros, and none are made.
struct BF16Ops {
  static constexpr bool kNative = true;

  // acc + a · b over pairs. The instruction itself: GCC 12 takes constants in bf16 for such in f16,
  // and makes 2^-7 of a one.
  static HWY_INLINE VF Dot(VF acc, VI32 a, VI32 b) {
    asm("bfdot %0.4s, %1.8h, %2.8h" : "+w"(acc.raw) : "w"(a.raw), "w"(b.raw));
    return acc;
  }
};

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_OPS_NEON_I8MM_INL_H_
