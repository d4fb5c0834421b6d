// The SIMD vocabulary of a tier: tags and vector types of one register width, exp2, conversions.
//
// A lane is a query: vectors hold kLanes queries, so that maximum, sum and rescale of softmax are
// vertical. A panel is [index][row]: element `index` of each row of a query tile, contiguous over
// rows.
#ifndef SIGHTLINE_KERNELS_SIMD_INL_H_
#define SIGHTLINE_KERNELS_SIMD_INL_H_

#include <stddef.h>
#include <stdint.h>

#include "hwy/base.h"
// hwy::Abort lives in libhwy, which is not linked.
#undef HWY_ABORT
#define HWY_ABORT(format, ...) __builtin_trap()
#include "hwy/highway.h"

#include "dispatch/kernel_table.h"
#include "kv/layout.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

namespace hn = hwy::HWY_NAMESPACE;
using namespace internal;  // NOLINT: the plain structs of the border

using DF = hn::ScalableTag<float>;
using DI32 = hn::RebindToSigned<DF>;
using DI8 = hn::Repartition<int8_t, DF>;
using DU8 = hn::Repartition<uint8_t, DF>;
using DI16 = hn::Repartition<int16_t, DF>;
using DU16 = hn::Repartition<uint16_t, DF>;
using VF = hn::Vec<DF>;
using VI32 = hn::Vec<DI32>;
using VI16 = hn::Vec<DI16>;
using VU16 = hn::Vec<DU16>;
using VI8 = hn::Vec<DI8>;
using VU8 = hn::Vec<DU8>;

// Tags are named as in Highway's own sources.
// NOLINTBEGIN(readability-identifier-naming)
constexpr DF df;
constexpr DI32 di32;
constexpr DI8 di8;
constexpr DU8 du8;
constexpr DI16 di16;
constexpr DU16 du16;
// NOLINTEND(readability-identifier-naming)

constexpr size_t kLanes = hn::MaxLanes(DF());
constexpr size_t kLaneBytes = sizeof(float);
constexpr size_t kVectorBytes = kLanes * kLaneBytes;

// std::min and std::max belong to the standard library, which tier code must not instantiate.
constexpr size_t MinOf(size_t a, size_t b) { return a < b ? a : b; }
constexpr size_t MaxOf(size_t a, size_t b) { return a > b ? a : b; }

// 1.5 * 2^23, and its bits: a sum with it has the nearest integer in its low bits.
constexpr float kMagic = 12582912.0f;
constexpr int32_t kMagicBits = 0x4b400000;

constexpr float kNegInf = -__builtin_huge_valf();
HWY_INLINE VF NegInf() { return hn::Set(df, kNegInf); }

// Other threads may read what was streamed to memory when they hear of it after this.
HWY_INLINE void EndStreaming() {
#if HWY_ARCH_X86
  _mm_sfence();
#endif
}

// a / b, correctly rounded in every tier, so that all quantise alike. ARMv7 divides no vectors, and
// Highway's iteration there errs in the last bit.
HWY_INLINE VF Div(VF a, VF b) {
#if HWY_ARCH_ARM_V7
  float quotients[kLanes];
  float divisors[kLanes];
  hn::StoreU(a, df, quotients);
  hn::StoreU(b, df, divisors);
  for (size_t i = 0; i < kLanes; ++i) quotients[i] /= divisors[i];
  return hn::LoadU(df, quotients);
#else
  return hn::Div(a, b);
#endif
}

// The larger of both, NaN if x is; floor is a number.
HWY_INLINE VF LargerOrNaN(VF x, VF floor) {
#if HWY_ARCH_X86
  return hn::Max(floor, x);  // x86's max returns the second operand when either is NaN
#elif HWY_ARCH_ARM
  return VF(vmaxq_f32(floor.raw, x.raw));  // NaN when either is; Highway's Max returns the number
#else
  return hn::IfThenElse(hn::Lt(x, floor), floor, x);  // others may return the number
#endif
}

// 2^x of each x < 127, relative error below 2e-7, exactly 0 from x = -126.5 down; NaN stays NaN.
// Cost: 6 FMA-port and 4 other instructions. Step by step for all, and in this order GCC leaves it
// on ARM (cmake/tiers.cmake): a core that works in order waits four cycles for each.
template <size_t kCount>
HWY_INLINE void Exp2BySteps(VF (&x)[kCount]) {
  const VF floor = hn::Set(df, -127.0f);
  // 1.5 * 2^23 makes the sum's low mantissa bits the nearest integer; 127 is the exponent's bias,
  // so that k = -127 shifts to the bits of 0.0f.
  const VF magic = hn::Set(df, kMagic + 127.0f);
  VF biased[kCount];
  HWY_UNROLL(4)
  for (size_t i = 0; i < kCount; ++i) x[i] = LargerOrNaN(x[i], floor);
  HWY_UNROLL(4)
  for (size_t i = 0; i < kCount; ++i) biased[i] = hn::Add(x[i], magic);
  VF f[kCount];  // [-0.5, 0.5]
  HWY_UNROLL(4)
  for (size_t i = 0; i < kCount; ++i) f[i] = hn::Sub(biased[i], magic);
  HWY_UNROLL(4)
  for (size_t i = 0; i < kCount; ++i) f[i] = hn::Sub(x[i], f[i]);
  // Minimax for the relative error of 2^f (9e-8) among degree 5 with p(0) = 1: the largest p is
  // exact.
  constexpr float kCoefficients[] = {9.67151286e-3f, 5.55073375e-2f, 2.40222421e-1f, 6.93146978e-1f,
                                     1.0f};
  VF p[kCount];
  HWY_UNROLL(4)
  for (size_t i = 0; i < kCount; ++i) p[i] = hn::Set(df, 1.32647271e-3f);
  HWY_UNROLL(5)
  for (const float coefficient : kCoefficients) {
    HWY_UNROLL(4)
    for (size_t i = 0; i < kCount; ++i) p[i] = hn::MulAdd(p[i], f[i], hn::Set(df, coefficient));
  }
  HWY_UNROLL(4)
  for (size_t i = 0; i < kCount; ++i) {
    const VF power = hn::BitCast(df, hn::ShiftLeft<23>(hn::BitCast(di32, biased[i])));
    x[i] = hn::Mul(p[i], power);
  }
}

HWY_INLINE VF Exp2(VF x) {
  VF each[1] = {x};
  Exp2BySteps(each);
  return each[0];
}

// The same for all, in the order that suits the tier.
template <size_t kCount>
HWY_INLINE void Exp2Each(VF (&x)[kCount]) {
  if constexpr (HWY_ARCH_ARM_A64) {
    Exp2BySteps(x);
  } else {
    HWY_UNROLL(4)
    for (size_t i = 0; i < kCount; ++i) x[i] = Exp2(x[i]);
  }
}

HWY_INLINE hn::VFromD<hn::RebindToUnsigned<DF>> AsUnsigned(VI32 v) {
  return hn::BitCast(hn::RebindToUnsigned<DF>(), v);
}

// Stored elements to f32 and back; f32 itself passes through. int8: quanta, NaN becomes 0 and all
// else saturates at +-127.
HWY_INLINE VF ToF32(VF v) { return v; }
HWY_INLINE VF ToF32(hn::VFromD<hn::Rebind<hwy::bfloat16_t, DF>> v) { return hn::PromoteTo(df, v); }
HWY_INLINE VF ToF32(hn::VFromD<hn::Rebind<int8_t, DF>> v) {
  return hn::ConvertTo(df, hn::PromoteTo(di32, v));
}
HWY_INLINE VF ToF32(hn::VFromD<hn::Rebind<hwy::float16_t, DF>> v) {
  const VF x = hn::PromoteTo(df, v);
#if (HWY_ARCH_X86 && !defined(__F16C__)) || HWY_ARCH_WASM
  // Highway's emulation takes infinities and NaN for numbers of 2^16 and more.
  const hn::RebindToUnsigned<DF> du32;
  const hn::Rebind<uint16_t, DF> du16;
  const auto bits = hn::PromoteTo(du32, hn::BitCast(du16, v));
  const auto exponent = hn::Set(du32, 0x7c00);
  const auto special = hn::Eq(hn::And(bits, exponent), exponent);
  const auto fixed = hn::Or(hn::BitCast(du32, x), hn::Set(du32, 0x7f800000));
  return hn::IfThenElse(hn::RebindMask(df, special), hn::BitCast(df, fixed), x);
#else
  return x;
#endif
}
HWY_INLINE VF FromF32(DF, VF v) { return v; }
template <class D>
HWY_INLINE hn::VFromD<D> FromF32(D d, VF v) {
  return hn::DemoteTo(d, v);
}
HWY_INLINE hn::VFromD<hn::Rebind<int8_t, DF>> FromF32(hn::Rebind<int8_t, DF> d, VF v) {
  v = hn::IfThenZeroElse(hn::IsNaN(v), v);
  v = hn::Clamp(v, hn::Set(df, -kMaxQuantum), hn::Set(df, kMaxQuantum));
  return hn::DemoteTo(d, hn::NearestInt(v));
}

// The bf16 nearest to v is the upper half of each lane, or a quiet NaN. Not vcvtneps2bf16, which
// flushes subnormals to zero.
HWY_INLINE VI32 RoundToBF16(VF v) {
  const VI32 bits = hn::BitCast(di32, v);
  const VI32 odd = hn::And(hn::ShiftRight<16>(bits), hn::Set(di32, 1));
  const VI32 rounded = hn::Add(bits, hn::Add(odd, hn::Set(di32, 0x7fff)));
  const VI32 quiet = hn::Or(bits, hn::Set(di32, 0x400000));
  return hn::IfThenElse(hn::RebindMask(di32, hn::IsNaN(v)), quiet, rounded);
}
HWY_INLINE hn::VFromD<hn::Rebind<hwy::bfloat16_t, DF>> FromF32(hn::Rebind<hwy::bfloat16_t, DF> d,
                                                               VF v) {
  const hn::RebindToUnsigned<DF> du32;
  const hn::Rebind<uint16_t, DF> du16_half;
  const auto upper = hn::ShiftRight<16>(hn::BitCast(du32, RoundToBF16(v)));
  return hn::BitCast(d, hn::TruncateTo(du16_half, upper));
}

// Two bf16 share a lane of 32 bits. Their f32 values, and lanes from these: of two vectors, or of
// neighbours in 2 * kLanes elements.
constexpr int32_t kUpperHalf = -0x10000;
HWY_INLINE VF LowerOfPairs(VI32 pairs) { return hn::BitCast(df, hn::ShiftLeft<16>(pairs)); }
HWY_INLINE VF UpperOfPairs(VI32 pairs) {
  return hn::BitCast(df, hn::And(pairs, hn::Set(di32, kUpperHalf)));
}
HWY_INLINE VI32 PairsOf(VF lower, VF upper) {
  const hn::RebindToUnsigned<DF> du32;
  const VI32 low = hn::BitCast(di32, hn::ShiftRight<16>(hn::BitCast(du32, RoundToBF16(lower))));
  return hn::Or(low, hn::And(RoundToBF16(upper), hn::Set(di32, kUpperHalf)));
}
HWY_INLINE VI32 OnesOfPairs() { return hn::Set(di32, 0x3f803f80); }
HWY_INLINE VI32 PairsOfNeighbors(VF first, VF second) {
  const hn::RebindToUnsigned<DF> du32;
  const auto upper_half = [&](VF v) HWY_ATTR {
    return hn::ShiftRight<16>(hn::BitCast(du32, RoundToBF16(v)));
  };
  return hn::BitCast(di32, hn::OrderedTruncate2To(du16, upper_half(first), upper_half(second)));
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_SIMD_INL_H_
