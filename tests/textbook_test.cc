// Cross-attention small enough to check by hand: three decoder queries over five encoder positions.
//
//   scores d1 =  2.2 0.2 0.8 -0.5 -0.8     values e1 = (1, 0)
//          d2 =  0.1 0.5 2.3  0.2 -0.4            e2 = (2, 1)
//          d3 = -0.7 0.3 0.2  1.1  2.4            e3 = (5, 1)
//                                                 e4 = (0, 2)
//                                                 e5 = (1, 5)
//
// With K the identity and scale 1, the queries are the scores; with V the identity, the output is
// the weights.
#include <math.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>
#include <iomanip>
#include <sstream>

#include "support/check.h"
#include "support/problem.h"
#include "support/tiers.h"

namespace sightline {
namespace testing {
namespace {

constexpr int kQueries = 3;
constexpr int kKeys = 5;
constexpr double kScores[kQueries][kKeys] = {
    {2.2, 0.2, 0.8, -0.5, -0.8}, {0.1, 0.5, 2.3, 0.2, -0.4}, {-0.7, 0.3, 0.2, 1.1, 2.4}};
constexpr double kValues[kKeys][2] = {{1, 0}, {2, 1}, {5, 1}, {0, 2}, {1, 5}};

// softmax(kScores), four decimals, worked out with pencil and table: sums of exp
// are 13.5278, 14.6198 and 17.0952.
constexpr double kRoundedWeights[kQueries][kKeys] = {{0.6671, 0.0903, 0.1645, 0.0448, 0.0332},
                                                     {0.0756, 0.1128, 0.6822, 0.0835, 0.0459},
                                                     {0.0290, 0.0790, 0.0714, 0.1757, 0.6448}};

double Weight(int query, int key) {
  double sum = 0.0;
  for (const double score : kScores[query]) sum += exp(score);
  return exp(kScores[query][key]) / sum;
}

Problem TextbookProblem(int64_t v_head_dim) {
  Case c;
  c.q_len = kQueries;
  c.kv_len = kKeys;
  c.head_dim = kKeys;
  c.v_head_dim = v_head_dim;
  c.scale = 1.0f;
  Problem problem(c, 1);
  for (int i = 0; i < kQueries; ++i) {
    for (int d = 0; d < kKeys; ++d) problem.q.Set(0, i, 0, d, static_cast<float>(kScores[i][d]));
  }
  for (int key = 0; key < kKeys; ++key) {
    for (int d = 0; d < kKeys; ++d) problem.k.Set(0, key, 0, d, key == d ? 1.0f : 0.0f);
    for (int c_v = 0; c_v < v_head_dim; ++c_v) {
      const double identity = key == c_v ? 1.0 : 0.0;
      const double value = v_head_dim == kKeys ? identity : kValues[key][c_v];
      problem.v.Set(0, key, 0, c_v, static_cast<float>(value));
    }
  }
  return problem;
}

// |weight error| allowed. f32 and f16 (0 and 1 are exact in f16): a few roundings. i8, worst case:
// - Q in steps of 2.4 / 64, so off by 0.0188 in each channel of a centered key (0.8, and -0.2 four
//   times): 0.030 on a score. K is off by a quarter of 0.8 / 127 in four channels of |q| <= 2.4
//   that sum to less than 4: 0.006. Weights change by at most p (1 - p) <= 1/4 of a difference
//   between two scores: 0.018.
// - P and V to half of 1/127 and of 0.8/127: 0.007.
// bf16 and mixed16: Q up to 2.4 is rounded to 2^-8 of itself, which moves a weight by at most half
// of that: 0.0047. P straight from sums is off by 0.7 %, d by no more: 0.7 % of p (1 - p), 0.0018.
double WeightTolerance(Precision precision) {
  if (HasQuantizedV(precision)) return 0.025;
  return precision == Precision::kF32 || precision == Precision::kF16 ? 1e-6 : 0.0065;
}

TEST_CASE("the table in this file is softmax", "[textbook]") {
  for (int i = 0; i < kQueries; ++i) {
    for (int key = 0; key < kKeys; ++key) {
      CHECK(fabs(Weight(i, key) - kRoundedWeights[i][key]) < 0.5e-4);
    }
  }
}

TEST_CASE("weights of the 3 x 5 cross-attention", "[textbook]") {
  const Precision precision = GENERATE(from_range(kPrecisions));
  const Source source = GENERATE(Source::kTensors, Source::kMemory);
  const Problem problem = TextbookProblem(kKeys);
  for (const char* tier : TiersOf(precision)) {
    const Tensor weights = Attend(problem, {tier, precision, source});
    std::ostringstream table;
    table << std::fixed << std::setprecision(4);
    for (int i = 0; i < kQueries; ++i) {
      table << "d" << i + 1;
      for (int key = 0; key < kKeys; ++key) table << "  " << weights.Get(0, i, 0, key);
      table << "\n";
    }
    INFO(Name(precision) << " on " << tier << "\n    e1      e2      e3      e4      e5\n"
                         << table.str());
    for (int i = 0; i < kQueries; ++i) {
      double sum = 0.0;
      for (int key = 0; key < kKeys; ++key) {
        const double weight = static_cast<double>(weights.Get(0, i, 0, key));
        sum += weight;
        INFO("query d" << i + 1 << ", key e" << key + 1);
        CHECK(fabs(weight - Weight(i, key)) <= WeightTolerance(precision));
      }
      CHECK(fabs(sum - 1.0) <= kKeys * WeightTolerance(precision));
    }
  }
}

TEST_CASE("outputs of the 3 x 5 cross-attention", "[textbook]") {
  const Precision precision = GENERATE(from_range(kPrecisions));
  const Source source = GENERATE(Source::kTensors, Source::kMemory);
  const Problem problem = TextbookProblem(2);
  for (const char* tier : TiersOf(precision)) {
    const Tensor out = Attend(problem, {tier, precision, source});
    INFO(Name(precision) << " on " << tier);
    CHECK_THAT(out, IsClose(Expect(problem, {tier, precision, source})));
    for (int i = 0; i < kQueries; ++i) {
      for (int d = 0; d < 2; ++d) {
        double exact = 0.0;
        double magnitude = 0.0;
        for (int key = 0; key < kKeys; ++key) {
          exact += Weight(i, key) * kValues[key][d];
          magnitude += fabs(kValues[key][d]);
        }
        CHECK(fabs(static_cast<double>(out.Get(0, i, 0, d)) - exact) <=
              WeightTolerance(precision) * magnitude);
      }
    }
  }
}

}  // namespace
}  // namespace testing
}  // namespace sightline
