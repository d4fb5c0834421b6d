// The caller's rows: any element type and stride in, f32 out, and back.
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

template <typename T>
HWY_INLINE void LoadRowOf(const uint8_t* HWY_RESTRICT data, int64_t stride, size_t n,
                          float* HWY_RESTRICT out) {
  const hn::Rebind<T, DF> d;
  size_t i = 0;
  if (stride == static_cast<int64_t>(sizeof(T))) {
    for (; i + kLanes <= n; i += kLanes) {
      const T* from = reinterpret_cast<const T*>(data) + i;
      hn::Store(ToF32(hn::LoadU(d, from)), df, out + i);
    }
  }
  // The end of a row, or all of it when its elements are not neighbours.
  for (; i < n; i += kLanes) {
    HWY_ALIGN T buffer[kLanes] = {};
    const size_t count = MinOf(kLanes, n - i);
    for (size_t j = 0; j < count; ++j) {
      CopyElement<T>(data + static_cast<int64_t>(i + j) * stride, buffer + j);
    }
    hn::Store(ToF32(hn::Load(d, buffer)), df, out + i);
  }
}

// Elements that a row buffer must hold: whole vectors and whole chunks in every tier.
HWY_INLINE size_t RowBufferElements(size_t n) { return RoundUp(n, kChannelAlign); }

// Row of n elements, `stride` bytes apart, to f32. `out` is vector-aligned and holds
// RowBufferElements(n); the elements past n become 0.
HWY_INLINE void LoadRow(const uint8_t* data, DType dtype, int64_t stride, size_t n, float* out) {
  for (size_t i = n / kLanes * kLanes; i < RowBufferElements(n); i += kLanes) {
    hn::Store(hn::Zero(df), df, out + i);
  }
  switch (dtype) {
    case DType::kF32:
      return LoadRowOf<float>(data, stride, n, out);
    case DType::kF16:
      return LoadRowOf<hwy::float16_t>(data, stride, n, out);
    case DType::kBF16:
      return LoadRowOf<hwy::bfloat16_t>(data, stride, n, out);
  }
}

template <typename T>
HWY_INLINE void StoreRowOf(const float* HWY_RESTRICT row, size_t n, int64_t stride,
                           uint8_t* HWY_RESTRICT data) {
  const hn::Rebind<T, DF> d;
  size_t i = 0;
  if (stride == static_cast<int64_t>(sizeof(T))) {
    for (; i + kLanes <= n; i += kLanes) {
      hn::StoreU(FromF32(d, hn::Load(df, row + i)), d, reinterpret_cast<T*>(data) + i);
    }
  }
  for (; i < n; i += kLanes) {
    HWY_ALIGN T buffer[kLanes];
    hn::Store(FromF32(d, hn::Load(df, row + i)), d, buffer);
    const size_t count = MinOf(kLanes, n - i);
    for (size_t j = 0; j < count; ++j) {
      CopyElement<T>(buffer + j, data + static_cast<int64_t>(i + j) * stride);
    }
  }
}

// The opposite of LoadRow, rounding to nearest even.
HWY_INLINE void StoreRow(const float* row, size_t n, DType dtype, int64_t stride, uint8_t* data) {
  switch (dtype) {
    case DType::kF32:
      return StoreRowOf<float>(row, n, stride, data);
    case DType::kF16:
      return StoreRowOf<hwy::float16_t>(row, n, stride, data);
    case DType::kBF16:
      return StoreRowOf<hwy::bfloat16_t>(row, n, stride, data);
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_ROWS_INL_H_
