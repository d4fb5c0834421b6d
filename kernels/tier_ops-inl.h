// What differs between tiers: the integer products (one small file each), how far their quanta may
// reach, and the size of register blocks. Chosen by the compiler's own macros, so that a tier's
// flags are the only thing to keep in step.
//
// I8Ops: products of bytes. kQueryVectors x kStep accumulators fill the register file; kMaxQ,
// kMaxP: largest quantum of Q and P whose products are exact; kBiasedV: V is stored with a bias,
// and K is not. ExactPvOps: P·V as I8Ops has it, but for P up to 255. I16Ops: products of 16-bit
// integers. BF16Ops: products of bf16, kNative where one instruction makes them. MatrixOps:
// products of two rows with two rows, kNative where there are instructions for them, and
// prefill's register block with them.
#ifndef SIGHTLINE_KERNELS_TIER_OPS_INL_H_
#define SIGHTLINE_KERNELS_TIER_OPS_INL_H_

#include "kernels/simd-inl.h"

#if defined(__AVX512VNNI__) || defined(__AVXVNNI__)
#include "kernels/ops/x86_vnni-inl.h"
#elif defined(__ARM_FEATURE_DOTPROD)
#include "kernels/ops/neon_dot-inl.h"
#elif HWY_ARCH_X86
#include "kernels/ops/x86_maddubs-inl.h"
#else
#include "kernels/ops/portable-inl.h"
#endif

#if defined(__ARM_FEATURE_MATMUL_INT8) && defined(__ARM_FEATURE_BF16_VECTOR_ARITHMETIC)
#include "kernels/ops/neon_i8mm-inl.h"
#else
#include "kernels/ops/no_matrix-inl.h"
#if defined(__AVX512BF16__)
#include "kernels/ops/x86_bf16-inl.h"
#else
#include "kernels/ops/widened_bf16-inl.h"
#endif
#endif

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

constexpr size_t kNumRegisters = HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3 ? 16 : 32;

// f32 products: kQueryVectors x kStep accumulators, kQueryVectors operands and a broadcast fill the
// register file: 24 + 3 + 1 of 32 with AVX-512, 12 + 3 + 1 of 16 with AVX2. Without FMA the product
// needs a register of its own. NEON multiplies by a lane: 16 + 4 + 1 of 32.
struct F32Ops {
#if HWY_TARGET <= HWY_AVX3
  static constexpr size_t kQueryVectors = 3;
  static constexpr size_t kStep = 8;
#elif HWY_TARGET <= HWY_AVX2
  static constexpr size_t kQueryVectors = 3;
  static constexpr size_t kStep = 4;
#elif HWY_ARCH_X86
  static constexpr size_t kQueryVectors = 2;
  static constexpr size_t kStep = 4;
#else
  static constexpr size_t kQueryVectors = 4;
  static constexpr size_t kStep = 4;
#endif
};

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_TIER_OPS_INL_H_
