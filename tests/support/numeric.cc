#include "support/numeric.h"

#include <math.h>
#include <string.h>

#include <algorithm>

namespace sightline {
namespace testing {
namespace {

// binary16: 10 fraction bits, exponents -14 to 15.
constexpr int kF16FractionBits = 10;
constexpr int kF16MinExponent = -14;
constexpr int kF16MaxExponent = 15;
constexpr uint16_t kF16Infinity = 0x7C00;

uint32_t BitsOf(float x) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  return bits;
}

float FloatOf(uint32_t bits) {
  float x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

// That of a normal number; of others less than any normal number's.
int ExponentOf(float x) { return static_cast<int>(BitsOf(x) >> 23 & 0xFF) - 127; }

// 2^exponent, for exponents of normal doubles.
double PowerOfTwo(int exponent) {
  const uint64_t bits = static_cast<uint64_t>(exponent + 1023) << 52;
  double x;
  memcpy(&x, &bits, sizeof(x));
  return x;
}

// Normal numbers by the ziggurat of Marsaglia and Tsang (2000), layers of equal area that cover the
// curve. Logarithms and cosines took half of the time of tests in an emulator.
constexpr size_t kNormalLayers = 256;
constexpr double kNormalTail = 3.6541528853610088;  // where the layers end,
constexpr double kNormalArea = 0.00492867323399;    // and the area of each: solved for their number

double NormalCurve(double x) { return exp(-0.5 * x * x); }

struct Ziggurat {
  Ziggurat() {
    x[0] = kNormalArea / NormalCurve(kNormalTail);
    x[1] = kNormalTail;
    for (size_t i = 1; i + 1 < kNormalLayers; ++i) {
      x[i + 1] = sqrt(-2.0 * log(kNormalArea / x[i] + NormalCurve(x[i])));
    }
  }
  // Right ends of the layers, from the lowest up. The lowest has the tail: its end is that of a
  // rectangle of its area.
  double x[kNormalLayers + 1] = {};
};

// Beyond kNormalTail, by Marsaglia's method (1964).
double NormalTail(Rng* rng) {
  for (;;) {
    const double x = -log(rng->Uniform()) / kNormalTail;
    const double y = -log(rng->Uniform());
    if (2.0 * y > x * x) return kNormalTail + x;
  }
}

}  // namespace

uint16_t F16FromF32(float x) {
  const uint16_t sign = signbit(x) ? 0x8000 : 0;
  if (isnan(x)) return static_cast<uint16_t>(sign | kF16Infinity | 0x200);
  const double magnitude = fabs(static_cast<double>(x));
  if (isinf(magnitude)) return static_cast<uint16_t>(sign | kF16Infinity);
  if (magnitude == 0.0) return sign;

  const int exponent = std::max(ExponentOf(x), kF16MinExponent);
  // Units in the last place; 2^11 of them carry into the next exponent by themselves below.
  const double ulps = nearbyint(magnitude * PowerOfTwo(kF16FractionBits - exponent));
  const double rounded = ulps * PowerOfTwo(exponent - kF16FractionBits);
  if (rounded >= PowerOfTwo(kF16MaxExponent + 1)) return static_cast<uint16_t>(sign | kF16Infinity);
  // Consecutive bit patterns are consecutive numbers, subnormals included.
  const int biased = exponent - kF16MinExponent;  // 0 for subnormals and the first normal binade
  const uint32_t bits = static_cast<uint32_t>(ulps) + (static_cast<uint32_t>(biased) << 10);
  return static_cast<uint16_t>(sign | bits);
}

float F32FromF16(uint16_t bits) {
  const double sign = (bits & 0x8000) != 0 ? -1.0 : 1.0;
  const int exponent = (bits >> 10) & 31;
  const int fraction = bits & 0x3FF;
  if (exponent == 31) {
    return fraction != 0 ? NAN : static_cast<float>(sign * HUGE_VAL);
  }
  const int ulps = exponent == 0 ? fraction : fraction + 1024;
  const int scale = (exponent == 0 ? 1 : exponent) - 25;
  return static_cast<float>(sign * ulps * PowerOfTwo(scale));
}

uint16_t BF16FromF32(float x) {
  const uint32_t bits = BitsOf(x);
  if (isnan(x)) return static_cast<uint16_t>((bits >> 16) | 0x40);
  const uint32_t low = bits & 0xFFFF;
  const uint32_t high = bits >> 16;
  const bool up = low > 0x8000 || (low == 0x8000 && (high & 1) != 0);
  return static_cast<uint16_t>(high + (up ? 1 : 0));
}

float F32FromBF16(uint16_t bits) { return FloatOf(static_cast<uint32_t>(bits) << 16); }

int8_t I8FromF32(float x, float scale) {
  const float quotient = x / scale;
  if (isnan(quotient)) return 0;
  if (quotient >= 127.0f) return 127;
  if (quotient <= -127.0f) return -127;
  const double below = floor(static_cast<double>(quotient));
  const double fraction = static_cast<double>(quotient) - below;
  const bool up = fraction > 0.5 || (fraction == 0.5 && fmod(below, 2.0) != 0.0);
  return static_cast<int8_t>(below + (up ? 1.0 : 0.0));
}

// A product of 8 and 24 bits is exact in double.
float F32FromI8(int8_t quantum, float scale) {
  return static_cast<float>(static_cast<double>(quantum) * static_cast<double>(scale));
}

float RoundThrough(DType dtype, float x, float scale) {
  switch (dtype) {
    case DType::kF32:
      return x;
    case DType::kF16:
      return F32FromF16(F16FromF32(x));
    case DType::kBF16:
      return F32FromBF16(BF16FromF32(x));
    case DType::kI8:
      return F32FromI8(I8FromF32(x, scale), scale);
  }
  return NAN;
}

double StorageError(DType dtype, double magnitude, double scale) {
  switch (dtype) {
    case DType::kF32:
      return kF32Unit * magnitude;
    case DType::kF16:
      return kF16Unit * magnitude + ldexp(1.0, -25);  // half a subnormal step
    case DType::kBF16:
      return kBF16Unit * magnitude;
    case DType::kI8:  // half a quantum, rounding of the quotient, of quantum times scale
      return 0.5 * scale + 2.0 * kF32Unit * magnitude;
  }
  return 0.0;
}

void StoreElement(DType dtype, void* to, float x, float scale) {
  if (dtype == DType::kI8) {
    const int8_t quantum = I8FromF32(x, scale);
    memcpy(to, &quantum, sizeof(quantum));
    return;
  }
  if (dtype == DType::kF32) {
    memcpy(to, &x, sizeof(x));
    return;
  }
  const uint16_t bits = dtype == DType::kF16 ? F16FromF32(x) : BF16FromF32(x);
  memcpy(to, &bits, sizeof(bits));
}

float LoadElement(DType dtype, const void* from, float scale) {
  if (dtype == DType::kI8) {
    int8_t quantum;
    memcpy(&quantum, from, sizeof(quantum));
    return F32FromI8(quantum, scale);
  }
  if (dtype == DType::kF32) {
    float x;
    memcpy(&x, from, sizeof(x));
    return x;
  }
  uint16_t bits;
  memcpy(&bits, from, sizeof(bits));
  return dtype == DType::kF16 ? F32FromF16(bits) : F32FromBF16(bits);
}

uint64_t Rng::Next() {
  state_ += 0x9E3779B97F4A7C15u;
  uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
  return z ^ (z >> 31);
}

double Rng::Uniform() { return (static_cast<double>(Next() >> 11) + 0.5) * 0x1p-53; }

double Rng::Normal() {
  static const Ziggurat ziggurat;
  for (;;) {
    const uint64_t bits = Next();
    const size_t layer = bits % kNormalLayers;
    const double x = (static_cast<double>(bits >> 11) * 0x1p-52 - 1.0) * ziggurat.x[layer];
    // Inside the layer above, and so below the curve: 99 of 100.
    if (fabs(x) < ziggurat.x[layer + 1]) return x;
    if (layer == 0) return copysign(NormalTail(this), x);
    const double low = NormalCurve(ziggurat.x[layer]);
    const double high = NormalCurve(ziggurat.x[layer + 1]);
    if (low + Uniform() * (high - low) < NormalCurve(x)) return x;
  }
}

int64_t Rng::Below(int64_t exclusive) {
  return static_cast<int64_t>(Next() % static_cast<uint64_t>(exclusive));
}

}  // namespace testing
}  // namespace sightline
