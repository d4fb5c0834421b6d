// Elements of the caller's tensors in plain C++, one at a time: binary16, bfloat16 and int8 with a
// scale to and from f32, rounded to nearest even, subnormals, infinities and NaN included. The
// kernels have their own way.
#ifndef SIGHTLINE_QUANT_ELEMENTS_H_
#define SIGHTLINE_QUANT_ELEMENTS_H_

#include <math.h>
#include <stdint.h>
#include <string.h>

#include <algorithm>

#include "dispatch/kernel_table.h"
#include "sightline/tensor.h"

namespace sightline {
namespace internal {

inline uint32_t BitsOf(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}
inline float FloatOf(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

inline float F32FromF16(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16;
  const uint32_t magnitude = half & 0x7fffu;
  if (magnitude >= 0x7c00u) return FloatOf(sign | 0x7f800000u | (magnitude & 0x3ffu) << 13);
  // Exponents move from bias 15 to bias 127 by multiplication, which also normalises subnormals.
  const float scaled = FloatOf(magnitude << 13) * 0x1p112f;
  return FloatOf(sign | BitsOf(scaled));
}

inline uint16_t F16FromF32(float x) {
  const uint32_t bits = BitsOf(x);
  const uint32_t sign = bits >> 16 & 0x8000u;
  const uint32_t magnitude = bits & 0x7fffffffu;
  uint32_t half;
  if (magnitude > 0x7f800000u) {
    half = 0x7e00u;  // NaN
  } else if (magnitude >= 0x477ff000u) {
    half = 0x7c00u;  // rounds to 65536 or more
  } else if (magnitude < 0x38800000u) {
    // Below 2^-14: adding 0.5 aligns the subnormal's last bit with f32's, and rounds.
    half = BitsOf(FloatOf(magnitude) + 0.5f) - BitsOf(0.5f);
  } else {
    const uint32_t odd = magnitude >> 13 & 1u;
    half = (magnitude - 0x38000000u + 0xfffu + odd) >> 13;
  }
  return static_cast<uint16_t>(sign | half);
}

inline float F32FromBF16(uint16_t bf16) { return FloatOf(static_cast<uint32_t>(bf16) << 16); }

inline uint16_t BF16FromF32(float x) {
  const uint32_t bits = BitsOf(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>(bits >> 16 | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
}

inline float F32FromI8(int8_t quantum, float scale) { return static_cast<float>(quantum) * scale; }

// NaN becomes 0, all else saturates at +-127.
inline int8_t I8FromF32(float x, float scale) {
  const float quanta = x / scale;
  if (isnan(quanta)) return 0;
  return static_cast<int8_t>(lrintf(std::clamp(quanta, -kMaxQuantum, kMaxQuantum)));
}

// The types that have no scale.
inline float LoadElement(const unsigned char* p, DType dtype) {
  if (dtype == DType::kF32) {
    float x;
    memcpy(&x, p, sizeof(x));
    return x;
  }
  uint16_t bits;
  memcpy(&bits, p, sizeof(bits));
  return dtype == DType::kF16 ? F32FromF16(bits) : F32FromBF16(bits);
}

inline void StoreElement(float x, DType dtype, unsigned char* p) {
  if (dtype == DType::kF32) {
    memcpy(p, &x, sizeof(x));
    return;
  }
  const uint16_t bits = dtype == DType::kF16 ? F16FromF32(x) : BF16FromF32(x);
  memcpy(p, &bits, sizeof(bits));
}

// Element d of a row of any type.
inline float LoadElement(const Row& row, size_t d) {
  const int64_t index = static_cast<int64_t>(d);
  const unsigned char* p = row.data + index * row.dim_stride;
  if (row.dtype != DType::kI8) return LoadElement(p, row.dtype);
  int8_t quantum;
  memcpy(&quantum, p, sizeof(quantum));
  return F32FromI8(quantum, *ScaleAt(row.scale, index * row.scale_stride));
}

inline void StoreElement(float x, const Row& row, size_t d) {
  const int64_t index = static_cast<int64_t>(d);
  unsigned char* p = row.data + index * row.dim_stride;
  if (row.dtype != DType::kI8) return StoreElement(x, row.dtype, p);
  const int8_t quantum = I8FromF32(x, *ScaleAt(row.scale, index * row.scale_stride));
  memcpy(p, &quantum, sizeof(quantum));
}

}  // namespace internal
}  // namespace sightline

#endif  // SIGHTLINE_QUANT_ELEMENTS_H_
