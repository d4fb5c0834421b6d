// Between the caller's rows and the kernels' panels: square transposes of 32-bit lanes in
// registers.
//
// Cost for 16 rows of 16 lanes with AVX-512: 16 loads, 64 shuffles, 16 stores.
#ifndef SIGHTLINE_KERNELS_TRANSPOSE_INL_H_
#define SIGHTLINE_KERNELS_TRANSPOSE_INL_H_

#include "kernels/simd-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// Four vectors, of which block b holds a 4x4 matrix by rows, become its columns.
HWY_INLINE void Transpose4x4(VI32& a, VI32& b, VI32& c, VI32& d) {
  const hn::Repartition<int64_t, DF> di64;
  const auto ab_lo = hn::BitCast(di64, hn::InterleaveLower(di32, a, b));
  const auto ab_hi = hn::BitCast(di64, hn::InterleaveUpper(di32, a, b));
  const auto cd_lo = hn::BitCast(di64, hn::InterleaveLower(di32, c, d));
  const auto cd_hi = hn::BitCast(di64, hn::InterleaveUpper(di32, c, d));
  a = hn::BitCast(di32, hn::InterleaveLower(di64, ab_lo, cd_lo));
  b = hn::BitCast(di32, hn::InterleaveUpper(di64, ab_lo, cd_lo));
  c = hn::BitCast(di32, hn::InterleaveLower(di64, ab_hi, cd_hi));
  d = hn::BitCast(di32, hn::InterleaveUpper(di64, ab_hi, cd_hi));
}

// kLanes vectors by rows become its columns.
HWY_INLINE void TransposeSquare(VI32 (&x)[kLanes]) {
  constexpr size_t kBlocks = kLanes / 4;
  static_assert(kBlocks == 1 || kBlocks == 2 || kBlocks == 4, "128, 256 or 512 bits");
  HWY_UNROLL(4)
  for (size_t i = 0; i < kLanes; i += 4) Transpose4x4(x[i], x[i + 1], x[i + 2], x[i + 3]);
  // Vector 4g + i now holds, in block b, column 4b + i of rows 4g to 4g + 3: what is left is to
  // transpose blocks.
  if constexpr (kBlocks == 2) {
    HWY_UNROLL(4)
    for (size_t i = 0; i < 4; ++i) {
      const VI32 a = x[i];
      const VI32 b = x[i + 4];
      x[i] = hn::ConcatLowerLower(di32, b, a);
      x[i + 4] = hn::ConcatUpperUpper(di32, b, a);
    }
  } else if constexpr (kBlocks == 4) {
    HWY_UNROLL(4)
    for (size_t i = 0; i < 4; ++i) {
      const VI32 ac_lo = hn::ConcatLowerLower(di32, x[i + 8], x[i]);
      const VI32 ac_hi = hn::ConcatUpperUpper(di32, x[i + 8], x[i]);
      const VI32 bd_lo = hn::ConcatLowerLower(di32, x[i + 12], x[i + 4]);
      const VI32 bd_hi = hn::ConcatUpperUpper(di32, x[i + 12], x[i + 4]);
      x[i] = hn::InterleaveEvenBlocks(di32, ac_lo, bd_lo);
      x[i + 4] = hn::InterleaveOddBlocks(di32, ac_lo, bd_lo);
      x[i + 8] = hn::InterleaveEvenBlocks(di32, ac_hi, bd_hi);
      x[i + 12] = hn::InterleaveOddBlocks(di32, ac_hi, bd_hi);
    }
  }
}

// kLanes rows, `stride` elements apart and readable up to a multiple of kLanes, of which n elements
// are used, to as many panel rows of kLanes elements each, panel_stride apart.
template <typename Stored>
HWY_NOINLINE void RowsToPanel(const float* HWY_RESTRICT rows, size_t stride, size_t n,
                              Stored* HWY_RESTRICT panel, size_t panel_stride) {
  const hn::Rebind<Stored, DF> d_stored;
  for (size_t begin = 0; begin < n; begin += kLanes) {
    VI32 x[kLanes];
    HWY_UNROLL(16)
    for (size_t r = 0; r < kLanes; ++r) {
      x[r] = hn::BitCast(di32, hn::Load(df, rows + r * stride + begin));
    }
    TransposeSquare(x);
    Stored* HWY_RESTRICT to = panel + begin * panel_stride;
    const auto store = [=](VI32 column, size_t i) HWY_ATTR {
      hn::StoreU(FromF32(d_stored, hn::BitCast(df, column)), d_stored, to + i * panel_stride);
    };
    if (HWY_LIKELY(begin + kLanes <= n)) {
      HWY_UNROLL(16)
      for (size_t i = 0; i < kLanes; ++i) store(x[i], i);
    } else {
      for (size_t i = 0; i < n - begin; ++i) store(x[i], i);
    }
  }
}

// The same to lanes of two neighbouring elements in bf16; stride, of which all are used, is a
// multiple of kChannelAlign.
HWY_MAYBE_UNUSED HWY_NOINLINE void RowsToPairPanel(const float* HWY_RESTRICT rows, size_t stride,
                                                   size_t lanes, int32_t* HWY_RESTRICT panel,
                                                   size_t panel_stride) {
  for (size_t begin = 0; begin < lanes; begin += kLanes) {
    const size_t second = 2 * begin + kLanes;
    VI32 x[kLanes];
    HWY_UNROLL(16)
    for (size_t r = 0; r < kLanes; ++r) {
      const float* row = rows + r * stride;
      const VF upper = second < stride ? hn::Load(df, row + second) : hn::Zero(df);
      x[r] = PairsOfNeighbors(hn::Load(df, row + 2 * begin), upper);
    }
    TransposeSquare(x);
    const size_t count = MinOf(kLanes, lanes - begin);
    HWY_UNROLL(16)
    for (size_t i = 0; i < kLanes; ++i) {
      if (i < count) hn::Store(x[i], di32, panel + (begin + i) * panel_stride);
    }
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_TRANSPOSE_INL_H_
