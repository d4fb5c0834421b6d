// Why no tier multiplies in f16: what that would cost, the table of docs/kernels/float.md. Not a
// test of its own; run it with "[.f16_arithmetic]".
#include <math.h>
#include <stdio.h>

#include <catch2/catch_test_macros.hpp>
#include <vector>

#include "support/numeric.h"
#include "support/problem.h"

namespace sightline {
namespace testing {
namespace {

constexpr size_t kQueries = 64;
constexpr size_t kKeys = 2048;
constexpr size_t kDim = 64;

float ToF16(double x) { return F32FromF16(F16FromF32(static_cast<float>(x))); }

// sum a[i * stride] * b[i * stride] where `chain` products at a time are added in f16, before they
// join a sum in f32; 0: all in f32.
float Dot(const float* a, size_t a_stride, const float* b, size_t b_stride, size_t n,
          size_t chain) {
  float sum = 0.0f;
  float part = 0.0f;
  for (size_t i = 0; i < n; ++i) {
    const double product =
        static_cast<double>(a[i * a_stride]) * static_cast<double>(b[i * b_stride]);
    if (chain == 0) {
      sum = static_cast<float>(product + static_cast<double>(sum));
      continue;
    }
    part = ToF16(product + static_cast<double>(part));
    if ((i + 1) % chain != 0) continue;
    sum += part;
    part = 0.0f;
  }
  return sum;
}

// Relative L2 error.
double ErrorWith(const Problem& problem, const std::vector<double>& exact, size_t k_chain,
                 size_t v_chain) {
  std::vector<float> q, k, v;
  for (int64_t row = 0; row < int64_t{kKeys}; ++row) {
    for (int64_t d = 0; d < int64_t{kDim}; ++d) {
      if (row < int64_t{kQueries})
        q.push_back(ToF16(static_cast<double>(problem.q.Get(0, row, 0, d))));
      k.push_back(ToF16(static_cast<double>(problem.k.Get(0, row, 0, d))));
      v.push_back(ToF16(static_cast<double>(problem.v.Get(0, row, 0, d))));
    }
  }
  double difference = 0.0;
  double norm = 0.0;
  for (size_t i = 0; i < kQueries; ++i) {
    std::vector<float> p(kKeys);
    float max = -HUGE_VALF;
    for (size_t key = 0; key < kKeys; ++key) {
      p[key] = Dot(&q[i * kDim], 1, &k[key * kDim], 1, kDim, k_chain) / sqrtf(float{kDim});
      max = fmaxf(max, p[key]);
    }
    double sum = 0.0;
    for (float& x : p) {
      x = expf(x - max);
      if (v_chain != 0) x = ToF16(static_cast<double>(x));
      sum += static_cast<double>(x);
    }
    for (size_t d = 0; d < kDim; ++d) {
      const double out = static_cast<double>(Dot(p.data(), 1, &v[d], kDim, kKeys, v_chain)) / sum;
      const double expected = exact[i * kDim + d];
      difference += (out - expected) * (out - expected);
      norm += expected * expected;
    }
  }
  return sqrt(difference / norm);
}

TEST_CASE("error of f16 arithmetic", "[.f16_arithmetic]") {
  constexpr size_t kChains[] = {0, 1, 2, 4, 8, 16, 64};
  for (const Distribution distribution : {Distribution::kGaussian, Distribution::kPeaky}) {
    Case c;
    c.q_len = kQueries;
    c.kv_len = kKeys;
    c.head_dim = kDim;
    c.distribution = distribution;
    const Problem problem(c, 42);
    const std::vector<double> exact = ExactOutput(problem);
    printf("| %s |", Name(distribution));
    for (const size_t chain : kChains) {
      printf(" %.2g · %.2g |", 100.0 * ErrorWith(problem, exact, chain, 0),
             100.0 * ErrorWith(problem, exact, chain, chain));
    }
    printf("\n");
  }
}

}  // namespace
}  // namespace testing
}  // namespace sightline
