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
#elif HWY_ARCH_ARM
#include "kernels/ops/neon-inl.h"
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

// Lanes of K or V that a register block reads at once (block_product-inl.h), where each holds
// kDepth elements. NEON multiplies a vector by any lane of a register, on ARMv7 one of integers:
// one load serves four keys or channels. A load that broadcasts, x86's way, takes a slot of the
// pipes that multiply on most of ARM's cores.
template <size_t kDepth>
constexpr size_t kLanesOfB = HWY_ARCH_ARM_A64 || (HWY_ARCH_ARM_V7 && kDepth > 1) ? kLanes : 1;

// Registers that an operand of kDepth elements a lane becomes, each for two instructions of the
// product: bytes are taken apart where NEON has no dot product of them (kernels/ops/neon-inl.h).
template <size_t kDepth>
#if HWY_ARCH_ARM && !defined(__ARM_FEATURE_DOTPROD)
constexpr size_t kOperandRegisters = kDepth == 4 ? 2 : 1;
#else
constexpr size_t kOperandRegisters = 1;
#endif

// WebAssembly has as many as the machine below, of which x86 has least.
constexpr size_t kNumRegisters =
    HWY_ARCH_ARM_V7 || HWY_ARCH_WASM || (HWY_ARCH_X86 && HWY_TARGET > HWY_AVX3) ? 16 : 32;

// f32 products: kQueryVectors x kStep accumulators, kQueryVectors operands and a broadcast fill the
// register file: 24 + 3 + 1 of 32 with AVX-512, 12 + 3 + 1 of 16 with AVX2. Without FMA the product
// needs a register of its own. NEON multiplies by a lane: 24 + 3 + 2 of 32; on ARMv7 it has 16, and
// no multiply-add by a lane.
struct F32Ops {
#if HWY_TARGET <= HWY_AVX3 || HWY_ARCH_ARM_A64
  static constexpr size_t kQueryVectors = 3;
  static constexpr size_t kStep = 8;
#elif HWY_TARGET <= HWY_AVX2
  static constexpr size_t kQueryVectors = 3;
  static constexpr size_t kStep = 4;
#elif HWY_ARCH_X86 || HWY_ARCH_ARM_V7 || HWY_ARCH_WASM
  static constexpr size_t kQueryVectors = 2;
  static constexpr size_t kStep = 4;
#else
  static constexpr size_t kQueryVectors = 4;
  static constexpr size_t kStep = 4;
#endif

  // acc + a * (lane kLane of b). GCC 12 makes two instructions of the portable form.
  template <size_t kLane>
  static HWY_INLINE VF MulLane(VF acc, VF b, VF a) {
#if HWY_ARCH_ARM_A64
    return VF(vfmaq_laneq_f32(acc.raw, a.raw, b.raw, kLane));
#else
    return hn::MulAdd(a, hn::Broadcast<kLane>(b), acc);
#endif
  }
};

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_TIER_OPS_INL_H_
