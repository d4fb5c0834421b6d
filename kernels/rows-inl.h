// The caller's rows: any element type and stride in, f32 out, and back.
//
// Neighbouring elements are read and written by whole vectors; so are the scales of int8 elements
// that are neighbours or all the same. Other strides, and the end of a row that is written or has
// scales, go element by element.
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

// True if the row's elements are neighbours, and their scales are as well or are one.
HWY_INLINE bool IsDense(const Row& row) {
  switch (row.dtype) {
    case DType::kF32:
      return row.dim_stride == 4;
    case DType::kF16:
    case DType::kBF16:
      return row.dim_stride == 2;
    case DType::kI8:
      return row.dim_stride == 1 &&
             (row.scale_stride == 0 || row.scale_stride == int64_t{sizeof(float)});
  }
  return false;
}

// Asks for a row of n neighbouring elements before it is needed: rows of one head are far apart in
// the caller's tensor, where no hardware prefetcher expects them.
HWY_INLINE void PrefetchRow(const Row& row, size_t n) {
  if (row.dim_stride <= 0 || row.dim_stride > static_cast<int64_t>(sizeof(float))) return;
  const size_t bytes = n * static_cast<size_t>(row.dim_stride);
  for (size_t i = 0; i < bytes; i += kPackedAlignBytes) __builtin_prefetch(row.data + i);
}

// Calls body(i, Whole()) for each vector of a row of n elements, which begins with element i, and
// body(i, Part()) for one that the row fills in part.
struct Whole {
  static constexpr bool value = true;  // NOLINT: as std::true_type has it
};
struct Part {
  static constexpr bool value = false;  // NOLINT
};
template <class Body>
HWY_INLINE void ForEachVector(size_t n, const Body& body) {
  size_t i = 0;
  for (; i + kLanes <= n; i += kLanes) body(i, Whole());
  if (i < n) body(i, Part());
}

// A row of n neighbouring elements of one type, by vectors of f32: row(i, extent) is [i, i +
// kLanes), 0 past its end.
template <typename T>
class DenseRow {
 public:
  DenseRow() = default;
  DenseRow(const Row& row, size_t n) : row_(row), n_(n) {}

  template <class Extent>
  HWY_INLINE VF operator()(size_t i, Extent extent) const {
    VF x = ToF32(Elements(i, extent));
    if constexpr (hwy::IsSame<T, int8_t>()) x = hn::Mul(x, LoadScales(row_, i, n_));
    return x;
  }

  // The same as they are in memory.
  template <class Extent>
  HWY_INLINE hn::VFromD<hn::Rebind<T, DF>> Elements(size_t i, Extent) const {
    const hn::Rebind<T, DF> d;
    const T* from = reinterpret_cast<const T*>(row_.data) + i;
    return Extent::value ? hn::LoadU(d, from) : hn::LoadN(d, from, n_ - i);
  }

 private:
  Row row_;
  size_t n_;
};

// The same for any type and any stride, element by element.
class StridedRow {
 public:
  StridedRow() = default;
  StridedRow(const Row& row, size_t n) : row_(row), n_(n) {}

  template <class Extent>
  HWY_INLINE VF operator()(size_t i, Extent) const {
    return Load(i);
  }

 private:
  HWY_NOINLINE VF Load(size_t i) const {
    switch (row_.dtype) {
      case DType::kF32:
        return LoadLanes<float>(row_.data, row_.dim_stride, i, n_);
      case DType::kF16:
        return LoadLanes<hwy::float16_t>(row_.data, row_.dim_stride, i, n_);
      case DType::kBF16:
        return LoadLanes<hwy::bfloat16_t>(row_.data, row_.dim_stride, i, n_);
      case DType::kI8:
        return hn::Mul(LoadLanes<int8_t>(row_.data, row_.dim_stride, i, n_),
                       LoadScales(row_, i, n_));
    }
    return hn::Zero(df);
  }

  Row row_;
  size_t n_;
};

// Rows of n elements that are read as Vectors: rows[r](i, extent).
template <class Vectors, class AnyRows>
struct RowReader {
  using RowVectors = Vectors;
  HWY_INLINE Vectors operator[](size_t r) const { return Vectors(RowAt(rows, r), n); }

  AnyRows rows;  // a copy, which no store can change
  size_t n;
};

// Calls body(reader) with the reader for the type and stride that all of the rows have. What body
// captures lives in memory that any store may change, as far as the compiler knows: loops belong
// in a function that it calls.
template <class AnyRows, class Body>
HWY_INLINE void ReadRows(const AnyRows& rows, size_t n, const Body& body) {
  const Row first = RowAt(rows, 0);
  if (HWY_UNLIKELY(!IsDense(first))) return body(RowReader<StridedRow, AnyRows>{rows, n});
  switch (first.dtype) {
    case DType::kF32:
      return body(RowReader<DenseRow<float>, AnyRows>{rows, n});
    case DType::kF16:
      return body(RowReader<DenseRow<hwy::float16_t>, AnyRows>{rows, n});
    case DType::kBF16:
      return body(RowReader<DenseRow<hwy::bfloat16_t>, AnyRows>{rows, n});
    case DType::kI8:
      return body(RowReader<DenseRow<int8_t>, AnyRows>{rows, n});
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
template <typename T>
HWY_INLINE void ZeroPadding(size_t n, T* out) {
  const hn::Rebind<T, DF> d;
  for (size_t i = RoundUp(n, kLanes); i < RowBufferElements(n); i += kLanes) {
    hn::Store(hn::Zero(d), d, out + i);
  }
}

// x on its way to T, of which compilers do not know where it comes from: GCC for ARM takes
// conversions from f16 and back for nothing, which make NaN quiet.
template <typename T>
HWY_INLINE VF Opaque(VF x) {
#if HWY_ARCH_ARM
  if constexpr (sizeof(T) == 2) asm("" : "+w"(x.raw));
#endif
  return x;
}

template <class Reader, typename T>
HWY_INLINE void LoadRowsFrom(Reader reader, size_t begin, size_t count, T* HWY_RESTRICT out) {
  const hn::Rebind<T, DF> d;
  const size_t n = reader.n;
  for (size_t r = begin; r < begin + count; ++r, out += RowBufferElements(n)) {
    const auto row = reader[r];
    ForEachVector(n, [&](size_t i, auto extent) HWY_ATTR {
      hn::Store(FromF32(d, Opaque<T>(row(i, extent))), d, out + i);
    });
    ZeroPadding(n, out);
  }
}

// `count` rows of n elements from row `begin` on, to floats of any type and RowBufferElements(n)
// apart. `out` is vector-aligned; the elements past n become 0.
template <class AnyRows, typename T>
HWY_NOINLINE void LoadRows(const AnyRows& rows, size_t begin, size_t count, size_t n,
                           T* HWY_RESTRICT out) {
  ReadRows(rows, n, [=](auto reader) HWY_ATTR { LoadRowsFrom(reader, begin, count, out); });
}

HWY_INLINE void LoadRow(const Row& row, size_t n, float* HWY_RESTRICT out) {
  LoadRows(SourceRows{row, 0, 0}, 0, 1, n, out);
}

template <typename T>
HWY_INLINE void StoreRowOf(const float* HWY_RESTRICT from, size_t n, const Row& row) {
  const hn::Rebind<T, DF> d;
  // A quotient, not a product with the reciprocal: the contract promises its rounding.
  const auto load = [&](size_t i) HWY_ATTR {
    const VF x = hn::Load(df, from + i);
    return hwy::IsSame<T, int8_t>() ? Div(x, LoadScales(row, i, n)) : x;
  };
  size_t i = 0;
  if (HWY_LIKELY(IsDense(row))) {
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

// The opposite of LoadRows, rounding to nearest even: `count` rows of n elements, `stride` apart,
// to rows from row `begin` on.
template <class AnyRows>
HWY_NOINLINE void StoreRows(const float* HWY_RESTRICT from, size_t stride, size_t count, size_t n,
                            const AnyRows& rows, size_t begin) {
  const auto store_all = [=, &rows](auto zero) HWY_ATTR {
    for (size_t r = 0; r < count; ++r) {
      StoreRowOf<decltype(zero)>(from + r * stride, n, RowAt(rows, begin + r));
    }
  };
  switch (RowAt(rows, begin).dtype) {
    case DType::kF32:
      return store_all(float());
    case DType::kF16:
      return store_all(hwy::float16_t());
    case DType::kBF16:
      return store_all(hwy::bfloat16_t());
    case DType::kI8:
      return store_all(int8_t());
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_ROWS_INL_H_
