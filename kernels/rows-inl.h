// The caller's rows: any element type and stride in, f32 out, and back.
//
// Neighbouring elements are read and written by whole vectors; so are the scales of int8 elements
// that are neighbours or all the same. Other strides, and the end of a row, go element by element.
//
// Nothing outside the row's own elements is touched: the caller's buffer may end at a page
// boundary.
#ifndef SIGHTLINE_KERNELS_ROWS_INL_H_
#define SIGHTLINE_KERNELS_ROWS_INL_H_

#include "kernels/simd-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// One element between memory of any alignment and a buffer.
template <typename T>
HWY_INLINE void CopyElement(const void* from, void* to) {
  __builtin_memcpy(to, from, sizeof(T));
}

// Elements [i, i + kLanes) of a row of n, `stride` bytes apart, to f32, one by one; 0 past the
// row's end.
template <typename T>
HWY_INLINE VF LoadLanes(const uint8_t* HWY_RESTRICT data, int64_t stride, size_t i, size_t n) {
  const hn::Rebind<T, DF> d;
  HWY_ALIGN T buffer[kLanes] = {};
  const size_t count = MinOf(kLanes, n - i);
  for (size_t j = 0; j < count; ++j) {
    CopyElement<T>(data + static_cast<int64_t>(i + j) * stride, buffer + j);
  }
  return ToF32(hn::Load(d, buffer));
}

// Scales of the same elements. 0 past the row's end as well, where a NaN would be more than nothing
// times a padding quantum.
HWY_INLINE VF LoadScales(const Row& row, size_t i, size_t n) {
  if (i + kLanes <= n) {
    if (row.scale_stride == 0) return hn::Set(df, *row.scale);
    if (row.scale_stride == sizeof(float)) return hn::LoadU(df, row.scale + i);
  }
  return LoadLanes<float>(reinterpret_cast<const uint8_t*>(row.scale), row.scale_stride, i, n);
}

// True if whole vectors of the row's elements, and of their scales, can be read in one piece.
template <typename T>
HWY_INLINE bool IsDense(const Row& row) {
  constexpr int64_t kScaleBytes = sizeof(float);
  const bool dense_scales =
      !hwy::IsSame<T, int8_t>() || row.scale_stride == 0 || row.scale_stride == kScaleBytes;
  return row.dim_stride == static_cast<int64_t>(sizeof(T)) && dense_scales;
}

// Asks for a row of n neighbouring elements before it is needed: rows of one head are far apart in
// the caller's tensor, where no hardware prefetcher expects them.
HWY_INLINE void PrefetchRow(const Row& row, size_t n) {
  if (row.dim_stride <= 0 || row.dim_stride > static_cast<int64_t>(sizeof(float))) return;
  const size_t bytes = n * static_cast<size_t>(row.dim_stride);
  for (size_t i = 0; i < bytes; i += kPackedAlignBytes) __builtin_prefetch(row.data + i);
}

// Calls use(i, x) for vectors x of elements [i, i + kLanes) of a row of n, as f32; 0 past its end.
template <typename T, class Use>
HWY_INLINE void VisitRowOf(const Row& row, size_t n, const Use& use) {
  const hn::Rebind<T, DF> d;
  size_t i = 0;
  if (HWY_LIKELY(IsDense<T>(row))) {
    for (; i + kLanes <= n; i += kLanes) {
      VF x = ToF32(hn::LoadU(d, reinterpret_cast<const T*>(row.data) + i));
      if constexpr (hwy::IsSame<T, int8_t>()) x = hn::Mul(x, LoadScales(row, i, n));
      use(i, x);
    }
  }
  for (; i < n; i += kLanes) {
    VF x = LoadLanes<T>(row.data, row.dim_stride, i, n);
    if constexpr (hwy::IsSame<T, int8_t>()) x = hn::Mul(x, LoadScales(row, i, n));
    use(i, x);
  }
}

// The same for `count` > 0 rows from row `begin` on: use(r, i, x), r < count.
template <typename T, class AnyRows, class Use>
HWY_INLINE void VisitRowsOf(const AnyRows& rows, size_t begin, size_t count, size_t n,
                            const Use& use) {
  for (size_t r = 0; r < count; ++r) {
    VisitRowOf<T>(RowAt(rows, begin + r), n, [&](size_t i, VF x) HWY_ATTR { use(r, i, x); });
  }
}
template <class AnyRows, class Use>
HWY_INLINE void VisitRows(const AnyRows& rows, size_t begin, size_t count, size_t n,
                          const Use& use) {
  switch (RowAt(rows, begin).dtype) {
    case DType::kF32:
      return VisitRowsOf<float>(rows, begin, count, n, use);
    case DType::kF16:
      return VisitRowsOf<hwy::float16_t>(rows, begin, count, n, use);
    case DType::kBF16:
      return VisitRowsOf<hwy::bfloat16_t>(rows, begin, count, n, use);
    case DType::kI8:
      return VisitRowsOf<int8_t>(rows, begin, count, n, use);
  }
}

// Asks for rows [begin, end) of n elements, those that there are of `num_rows`.
template <class AnyRows>
HWY_INLINE void PrefetchRows(const AnyRows& rows, size_t begin, size_t end, size_t num_rows,
                             size_t n) {
  for (size_t r = begin; r < MinOf(end, num_rows); ++r) PrefetchRow(RowAt(rows, r), n);
}

// Elements that a row buffer must hold: whole vectors in every tier.
HWY_INLINE size_t RowBufferElements(size_t n) { return RoundUp(n, kChannelAlign); }

// Zeroes the vectors of a row buffer that a row of n elements does not reach.
HWY_INLINE void ZeroPadding(size_t n, float* out) {
  for (size_t i = RoundUp(n, kLanes); i < RowBufferElements(n); i += kLanes) {
    hn::Store(hn::Zero(df), df, out + i);
  }
}

// `count` rows of n elements from row `begin` on, to f32 and RowBufferElements(n) apart. `out` is
// vector-aligned; the elements past n become 0.
template <class AnyRows>
HWY_INLINE void LoadRows(const AnyRows& rows, size_t begin, size_t count, size_t n,
                         float* HWY_RESTRICT out) {
  const size_t elements = RowBufferElements(n);
  for (size_t r = 0; r < count; ++r) ZeroPadding(n, out + r * elements);
  VisitRows(rows, begin, count, n,
            [=](size_t r, size_t i, VF x) HWY_ATTR { hn::Store(x, df, out + r * elements + i); });
}

HWY_INLINE void LoadRow(const Row& row, size_t n, float* HWY_RESTRICT out) {
  LoadRows(row, 0, 1, n, out);
}

template <typename T>
HWY_INLINE void StoreRowOf(const float* HWY_RESTRICT from, size_t n, const Row& row) {
  const hn::Rebind<T, DF> d;
  // A quotient, not a product with the reciprocal: the contract promises its rounding.
  const auto load = [&](size_t i) HWY_ATTR {
    const VF x = hn::Load(df, from + i);
    return hwy::IsSame<T, int8_t>() ? hn::Div(x, LoadScales(row, i, n)) : x;
  };
  size_t i = 0;
  if (HWY_LIKELY(IsDense<T>(row))) {
    for (; i + kLanes <= n; i += kLanes) {
      hn::StoreU(FromF32(d, load(i)), d, reinterpret_cast<T*>(row.data) + i);
    }
  }
  for (; i < n; i += kLanes) {
    HWY_ALIGN T buffer[kLanes];
    hn::Store(FromF32(d, load(i)), d, buffer);
    const size_t count = MinOf(kLanes, n - i);
    for (size_t j = 0; j < count; ++j) {
      CopyElement<T>(buffer + j, row.data + static_cast<int64_t>(i + j) * row.dim_stride);
    }
  }
}

// The opposite of LoadRow, rounding to nearest even.
HWY_INLINE void StoreRow(const float* from, size_t n, const Row& row) {
  switch (row.dtype) {
    case DType::kF32:
      return StoreRowOf<float>(from, n, row);
    case DType::kF16:
      return StoreRowOf<hwy::float16_t>(from, n, row);
    case DType::kBF16:
      return StoreRowOf<hwy::bfloat16_t>(from, n, row);
    case DType::kI8:
      return StoreRowOf<int8_t>(from, n, row);
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_ROWS_INL_H_
