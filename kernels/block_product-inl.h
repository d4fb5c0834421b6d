// The micro-kernel: a register block of Sᵀ = K Qᵀ or Oᵀ = Vᵀ P.
//
//   acc[n][v] += B[step][n] * A[step][v]      n < kKeys, v < kVectors
//
// B is packed K (n = keys, steps along head_dim) or V (n = channels, steps along keys), read lane
// by lane; A is the panel of Q or P, read by whole vectors of queries. Both advance one 32-bit lane
// a step: one float, or the two int16 or bf16 or four int8 that one dot product consumes. Per step:
// kVectors loads of A and kKeys / kLanesOfB of B feed kVectors * kKeys multiplications.
//
// Matrix products take two steps at once: matrix_product-inl.h.
#ifndef SIGHTLINE_KERNELS_BLOCK_PRODUCT_INL_H_
#define SIGHTLINE_KERNELS_BLOCK_PRODUCT_INL_H_

#include "kernels/matrix_product-inl.h"
#include "kernels/simd-inl.h"
#include "kernels/tier_ops-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

HWY_INLINE VI32 Broadcast32(const uint8_t* p) {
  int32_t bits;
  __builtin_memcpy(&bits, p, sizeof(bits));
  return hn::Set(di32, bits);
}

// The next lanes of B, so many: see tier_ops-inl.h.
template <size_t kLanesAtOnce>
HWY_INLINE VI32 LoadLanesOfB(const uint8_t* p) {
  if constexpr (kLanesAtOnce == 1) return Broadcast32(p);
  return hn::BitCast(di32, hn::Load(du8, p));
}

// One of the floats of a 32-bit lane: itself, or a bf16 of a pair.
template <size_t kDepth>
HWY_INLINE VF FloatOfLane(VI32 lane, size_t index) {
  if constexpr (kDepth == 1) return hn::BitCast(df, lane);
  return index == 0 ? LowerOfPairs(lane) : UpperOfPairs(lane);
}

// The multiplications. MulAcc: b is a broadcast 32-bit lane, a a vector of the panel; a lane of
// either holds kDepth elements. MulLane: the same by lane kLane of b, where kLanesOfB is not 1. Of
// matrix products both are two rows, of kSteps lanes.
struct F32Product {
  using Acc = VF;
  static constexpr size_t kDepth = 1;
  static constexpr size_t kSteps = 1;
  static HWY_INLINE VF MulAcc(VF acc, VI32 b, VU8 a) {
    return hn::MulAdd(hn::BitCast(df, b), hn::BitCast(df, a), acc);
  }
  template <size_t kLane>
  static HWY_INLINE VF MulLane(VF acc, VI32 b, VU8 a) {
    return F32Ops::MulLane<kLane>(acc, hn::BitCast(df, b), hn::BitCast(df, a));
  }
};
struct BF16Product {
  using Acc = VF;
  static constexpr size_t kDepth = 2;
  static constexpr size_t kSteps = 1;
  static HWY_INLINE VF MulAcc(VF acc, VI32 b, VU8 a) {
    return BF16Ops::Dot(acc, hn::BitCast(di32, a), b);
  }
  template <size_t kLane>
  static HWY_INLINE VF MulLane(VF acc, VI32 b, VU8 a) {
    return MulAcc(acc, hn::Broadcast<kLane>(b), a);
  }
};
template <class Ops>
struct I8QkProduct {
  using Acc = VI32;
  static constexpr size_t kDepth = 4;
  static constexpr size_t kSteps = 1;
  static HWY_INLINE VI32 MulAcc(VI32 acc, VI32 b, VU8 a) {
    return Ops::DotQK(acc, hn::BitCast(di8, b), hn::BitCast(di8, a));
  }
  template <size_t kLane>
  static HWY_INLINE VI32 MulLane(VI32 acc, VI32 b, VU8 a) {
    return Ops::template DotQKLane<kLane>(acc, hn::BitCast(di8, b), hn::BitCast(di8, a));
  }
};
template <class Ops>
struct I16QkProduct {
  using Acc = VI32;
  static constexpr size_t kDepth = 2;
  static constexpr size_t kSteps = 1;
  static HWY_INLINE VI32 MulAcc(VI32 acc, VI32 b, VU8 a) {
    return Ops::Dot(acc, hn::BitCast(di16, b), hn::BitCast(di16, a));
  }
  template <size_t kLane>
  static HWY_INLINE VI32 MulLane(VI32 acc, VI32 b, VU8 a) {
    return Ops::template DotLane<kLane>(acc, hn::BitCast(di16, b), hn::BitCast(di16, a));
  }
};
template <class Ops>
struct I8PvProduct {
  using Acc = VI32;
  static constexpr size_t kDepth = 4;
  static constexpr size_t kSteps = 1;
  static HWY_INLINE VI32 MulAcc(VI32 acc, VI32 b, VU8 a) {
    return Ops::DotPV(acc, a, hn::BitCast(di8, b));
  }
  template <size_t kLane>
  static HWY_INLINE VI32 MulLane(VI32 acc, VI32 b, VU8 a) {
    return Ops::template DotPVLane<kLane>(acc, a, hn::BitCast(di8, b));
  }
};

// Sums of keys n + kLane and on, which `acc` begins with, by the lanes of B that belong to them.
template <class Product, size_t kLane, size_t kVectors>
HWY_INLINE void MultiplyLanes(VI32 lanes, const VU8 (&av)[kVectors],
                              typename Product::Acc (*acc)[kVectors]) {
  constexpr size_t kLanesAtOnce = kLanesOfB<Product::kDepth>;
  HWY_UNROLL(8)
  for (size_t v = 0; v < kVectors; ++v) {
    if constexpr (kLanesAtOnce == 1) {
      acc[kLane][v] = Product::MulAcc(acc[kLane][v], lanes, av[v]);
    } else {
      acc[kLane][v] = Product::template MulLane<kLane>(acc[kLane][v], lanes, av[v]);
    }
  }
  if constexpr (kLane + 1 < kLanesAtOnce) MultiplyLanes<Product, kLane + 1>(lanes, av, acc);
}

// With all but matrix products.
template <class Product, size_t kKeys, size_t kVectors>
HWY_INLINE void LaneBlockProduct(const uint8_t* HWY_RESTRICT b, size_t b_stride_bytes,
                                 const uint8_t* HWY_RESTRICT a, size_t a_stride_bytes,
                                 size_t num_steps, typename Product::Acc (&acc)[kKeys][kVectors]) {
  constexpr size_t kLanesAtOnce = kLanesOfB<Product::kDepth>;
#if HWY_COMPILER_GCC_ACTUAL
  asm("" : "+r"(num_steps));  // hides the trip count: g++ 12 peels the loop and spills the block
#endif
  for (size_t step = 0; step < num_steps; ++step) {
    VU8 av[kVectors];
    HWY_UNROLL(8)
    for (size_t v = 0; v < kVectors; ++v) av[v] = hn::Load(du8, a + v * kVectorBytes);
    HWY_UNROLL(8)
    for (size_t n = 0; n < kKeys; n += kLanesAtOnce) {
      MultiplyLanes<Product, 0>(LoadLanesOfB<kLanesAtOnce>(b + n * kLaneBytes), av, acc + n);
    }
    a += a_stride_bytes;
    b += b_stride_bytes;
  }
}

template <class Product, size_t kKeys, size_t kVectors>
HWY_INLINE void BlockProduct(const uint8_t* HWY_RESTRICT b, size_t b_stride_bytes,
                             const uint8_t* HWY_RESTRICT a, size_t a_stride_bytes, size_t num_steps,
                             typename Product::Acc (&acc)[kKeys][kVectors]) {
  if constexpr (Product::kSteps != 1) {
    MatrixBlockProduct<Product>(b, b_stride_bytes, a, a_stride_bytes, num_steps, acc);
  } else {
    LaneBlockProduct<Product>(b, b_stride_bytes, a, a_stride_bytes, num_steps, acc);
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_BLOCK_PRODUCT_INL_H_
