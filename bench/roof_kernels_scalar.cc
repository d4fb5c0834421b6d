// The roofs of the scalar tier: what the compiler makes of plain loops with the flags that every
// CPU of the architecture runs (it vectorises them, as it may vectorise kernels/scalar.cc).
#include <stddef.h>
#include <stdint.h>

#include "bench/roof_kernels.h"

namespace sightline {
namespace scalar {
namespace {

// Twelve vectors of four: as many sums as the 16 registers of x86-64 hold beside the operands.
constexpr size_t kSums = 48;

void Fp32Fma(size_t rounds) {
  float sum[kSums] = {};
  float a[kSums];
  for (float& x : a) x = 0.5f;
  asm volatile("" : : "r"(a) : "memory");
  for (size_t round = 0; round < rounds; ++round) {
    for (size_t i = 0; i < kSums; ++i) sum[i] = sum[i] * 0.5f + a[i];
  }
  asm volatile("" : : "r"(sum) : "memory");
}

void Read(const void* data, size_t bytes, size_t passes) {
  for (size_t pass = 0; pass < passes; ++pass) {
    const uint64_t* p = static_cast<const uint64_t*>(data);
    uint64_t sum[8] = {};
    for (size_t i = 0; i < bytes / sizeof(uint64_t); i += 8) {
      for (size_t j = 0; j < 8; ++j) sum[j] += p[i + j];
    }
    asm volatile("" : : "r"(sum) : "memory");
  }
}

}  // namespace

const bench::RoofKernels& GetRoofKernels();

const bench::RoofKernels& GetRoofKernels() {
  static constexpr bench::RoofKernels kKernels = {{&Fp32Fma, 2.0 * kSums}, {}, {}, {}, &Read};
  return kKernels;
}

}  // namespace scalar
}  // namespace sightline
