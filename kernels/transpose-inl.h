// Between the caller's rows and the kernels' panels: square transposes of 32-bit lanes in
// registers, or of twice as many 16-bit elements.
//
// Cost for 16 rows of a vector each with AVX-512: 16 loads, 64 shuffles, 16 stores of a vector or
// 32 of half a vector.
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

// The largest lane of each of kLanes vectors, that of vector r in lane r: half of the shuffles of a
// transpose.
HWY_INLINE VI32 MaxOfEach(const VI32 (&x)[kLanes]) {
  const hn::Repartition<int64_t, DF> di64;
  VI32 four[kLanes / 4];  // vectors 4g to 4g + 3, each block's maxima in each block
  HWY_UNROLL(4)
  for (size_t g = 0; g < kLanes / 4; ++g) {
    const VI32 ab = hn::Max(hn::InterleaveLower(di32, x[4 * g], x[4 * g + 1]),
                            hn::InterleaveUpper(di32, x[4 * g], x[4 * g + 1]));
    const VI32 cd = hn::Max(hn::InterleaveLower(di32, x[4 * g + 2], x[4 * g + 3]),
                            hn::InterleaveUpper(di32, x[4 * g + 2], x[4 * g + 3]));
    const auto ab64 = hn::BitCast(di64, ab);
    const auto cd64 = hn::BitCast(di64, cd);
    four[g] = hn::Max(hn::BitCast(di32, hn::InterleaveLower(di64, ab64, cd64)),
                      hn::BitCast(di32, hn::InterleaveUpper(di64, ab64, cd64)));
  }
  const auto fold_halves = [](VI32 a, VI32 b) HWY_ATTR {
    return hn::Max(hn::ConcatLowerLower(di32, b, a), hn::ConcatUpperUpper(di32, b, a));
  };
  if constexpr (kLanes == 4) {
    return four[0];
  } else if constexpr (kLanes == 8) {
    return fold_halves(four[0], four[1]);
  } else {
    const VI32 even = fold_halves(four[0], four[2]);
    const VI32 odd = fold_halves(four[1], four[3]);
    return hn::Max(hn::InterleaveEvenBlocks(di32, even, odd),
                   hn::InterleaveOddBlocks(di32, even, odd));
  }
}

// kLanes vectors of 16-bit elements by rows to its columns: store(column, i) is called for each.
template <class Store>
HWY_INLINE void TransposeHalves(const VI32 (&rows)[kLanes], const Store& store) {
  const hn::Half<DU16> d_column;
  const auto store_both = [&](VI32 columns, size_t lower, size_t upper) HWY_ATTR {
    const VU16 both = hn::BitCast(du16, columns);
    store(hn::LowerHalf(d_column, both), lower);
    store(hn::UpperHalf(d_column, both), upper);
  };
  // Two neighbouring rows share a lane: lo holds columns 0 to 3 of each block of 8, hi 4 to 7.
  VI32 lo[kLanes / 2];
  VI32 hi[kLanes / 2];
  HWY_UNROLL(8)
  for (size_t i = 0; i < kLanes / 2; ++i) {
    const VU16 a = hn::BitCast(du16, rows[2 * i]);
    const VU16 b = hn::BitCast(du16, rows[2 * i + 1]);
    lo[i] = hn::BitCast(di32, hn::InterleaveLower(du16, a, b));
    hi[i] = hn::BitCast(di32, hn::InterleaveUpper(du16, a, b));
  }
  if constexpr (kLanes == 4) {
    store_both(hn::InterleaveLower(di32, lo[0], lo[1]), 0, 1);
    store_both(hn::InterleaveUpper(di32, lo[0], lo[1]), 2, 3);
    store_both(hn::InterleaveLower(di32, hi[0], hi[1]), 4, 5);
    store_both(hn::InterleaveUpper(di32, hi[0], hi[1]), 6, 7);
  } else {
    // Eight rows of a column fill a block: that of column 8 b + i in block b.
    HWY_UNROLL(2)
    for (size_t i = 0; i < kLanes / 2; i += 4) {
      Transpose4x4(lo[i], lo[i + 1], lo[i + 2], lo[i + 3]);
      Transpose4x4(hi[i], hi[i + 1], hi[i + 2], hi[i + 3]);
    }
    HWY_UNROLL(4)
    for (size_t i = 0; i < 4; ++i) {
      if constexpr (kLanes == 8) {
        store_both(lo[i], i, 8 + i);
        store_both(hi[i], 4 + i, 12 + i);
      } else {
        store_both(hn::InterleaveEvenBlocks(di32, lo[i], lo[i + 4]), i, 16 + i);
        store_both(hn::InterleaveOddBlocks(di32, lo[i], lo[i + 4]), 8 + i, 24 + i);
        store_both(hn::InterleaveEvenBlocks(di32, hi[i], hi[i + 4]), 4 + i, 20 + i);
        store_both(hn::InterleaveOddBlocks(di32, hi[i], hi[i + 4]), 12 + i, 28 + i);
      }
    }
  }
}

// kLanes rows of n neighbouring elements of any alignment, row_stride bytes apart, to panel rows of
// kLanes lanes each, panel_stride lanes apart. A lane has kDepth elements of a row, 0 past its end:
// two of bf16. Returns the largest magnitudes of 16-bit elements, as their bits.
template <typename T, size_t kDepth>
HWY_NOINLINE VI16 RowsToPanel(const unsigned char* HWY_RESTRICT rows, int64_t row_stride, size_t n,
                              T* HWY_RESTRICT panel, size_t panel_stride) {
  using Bits = hwy::If<sizeof(T) == 4, int32_t, uint16_t>;
  constexpr bool kHalves = sizeof(Bits) * kDepth == 2;
  const hn::Repartition<Bits, DF> d;
  constexpr size_t kStep = kVectorBytes / sizeof(Bits);
  VI16 largest = hn::Zero(di16);
  for (size_t begin = 0; begin < n; begin += kStep) {
    const size_t left = n - begin;
    const unsigned char* row = rows + begin * sizeof(Bits);
    VI32 x[kLanes];
    HWY_UNROLL(16)
    for (size_t r = 0; r < kLanes; ++r, row += row_stride) {
      const Bits* from = reinterpret_cast<const Bits*>(row);
      x[r] = hn::BitCast(di32,
                         HWY_LIKELY(left >= kStep) ? hn::LoadU(d, from) : hn::LoadN(d, from, left));
      if constexpr (sizeof(Bits) == 2) {
        const VI16 magnitudes = hn::And(hn::BitCast(di16, x[r]), hn::Set(di16, 0x7fff));
        largest = hn::Max(largest, magnitudes);
      }
    }
    T* HWY_RESTRICT to = panel + begin * panel_stride;
    if constexpr (kHalves) {
      TransposeHalves(x, [=](auto column, size_t i) HWY_ATTR {
        const hn::Half<DU16> d_column;
        if (i < left) {
          hn::Store(column, d_column, reinterpret_cast<uint16_t*>(to + i * panel_stride));
        }
      });
    } else {
      TransposeSquare(x);
      HWY_UNROLL(16)
      for (size_t i = 0; i < kLanes; ++i) {
        if (i * kDepth < left) {
          hn::Store(x[i], di32, reinterpret_cast<int32_t*>(to + i * panel_stride * kDepth));
        }
      }
    }
  }
  return largest;
}

// Rows of f32, `stride` elements apart, a multiple of kChannelAlign of which all are used, to lanes
// of two neighbouring elements in bf16.
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
