// Element types and random numbers of the tests: written apart from the library's, by other means,
// so that a mistake is not made twice.
#ifndef SIGHTLINE_TESTS_SUPPORT_NUMERIC_H_
#define SIGHTLINE_TESTS_SUPPORT_NUMERIC_H_

#include <stdint.h>

#include "sightline/tensor.h"

namespace sightline {
namespace testing {

// Unit roundoff: half the distance from 1 to the next number.
constexpr double kF32Unit = 1.0 / (1 << 24);
constexpr double kF16Unit = 1.0 / (1 << 11);
constexpr double kBF16Unit = 1.0 / (1 << 8);

// Round to nearest, ties to even; too large becomes infinite.
uint16_t F16FromF32(float x);
uint16_t BF16FromF32(float x);
float F32FromF16(uint16_t bits);
float F32FromBF16(uint16_t bits);
// The quotient x / scale in f32, rounded; NaN becomes 0, all else saturates at +-127.
int8_t I8FromF32(float x, float scale);
float F32FromI8(int8_t quantum, float scale);

// `scale` below: of an i8; the other types have none.

// What is left of x once stored as an element of that type.
float RoundThrough(DType dtype, float x, float scale = 1.0f);

// |stored - exact| for an exact result of this magnitude stored as an element of that type. i8: for
// results up to 127 quanta.
double StorageError(DType dtype, double magnitude, double scale = 1.0);

void StoreElement(DType dtype, void* to, float x, float scale = 1.0f);
float LoadElement(DType dtype, const void* from, float scale = 1.0f);

// The same sequence on every platform (std::normal_distribution is not).
class Rng {
 public:
  explicit Rng(uint64_t seed) : state_(seed) {}
  uint64_t Next();                   // splitmix64
  double Uniform();                  // in (0, 1]
  double Normal();                   // mean 0, variance 1
  int64_t Below(int64_t exclusive);  // in [0, exclusive)

 private:
  uint64_t state_;
};

}  // namespace testing
}  // namespace sightline

#endif  // SIGHTLINE_TESTS_SUPPORT_NUMERIC_H_
