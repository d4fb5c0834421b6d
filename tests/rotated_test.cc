// Attention over rotated K (rotate_k) against the simulation, which rotates K and Q before it
// quantises them. What is stored, bit for bit: i8_packing_test.cc; what it gains: accuracy_test.cc.
#include <math.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include "support/check.h"
#include "support/problem.h"
#include "support/tiers.h"

namespace sightline {
namespace testing {
namespace {

constexpr Source kSources[] = {Source::kTensors, Source::kMemory, Source::kCache};

Setup Rotated(const char* tier, Source source) {
  Setup setup = {tier, Precision::kI8, source};
  setup.rotate_k = true;
  return setup;
}

void CheckCase(const Case& c, uint64_t seed) {
  const Problem problem(c, seed);
  Expectations expected(problem);
  for (const Source source : kSources) {
    for (const char* tier : SupportedTiers()) {
      if (!IsAffordable(c, tier)) continue;
      INFO(c.ToString() << " on " << tier << ", source " << static_cast<int>(source));
      const Setup setup = Rotated(tier, source);
      CHECK_THAT(Attend(problem, setup), IsClose(expected(setup)));
    }
  }
}

TEST_CASE("rotated K of every kind of head_dim", "[attention][rotated]") {
  constexpr struct {
    int64_t q_len, kv_len;
    bool causal;
  } kShapes[] = {{1, 66, false}, {5, 130, true}, {49, 67, true}};
  uint64_t seed = 9000;
  for (const int64_t head_dim :
       {1,  2,  3,  4,  5,  6,  7,   8,   12,  15,  16,  24,  31,  32,  33, 40,
        48, 63, 64, 65, 80, 96, 100, 112, 128, 192, 255, 256, 384, 511, 512}) {
    for (const auto& shape : kShapes) {
      Case c;
      c.q_len = shape.q_len;
      c.kv_len = shape.kv_len;
      c.causal = shape.causal;
      c.head_dim = head_dim;
      c.v_head_dim = 20;
      c.distribution = ++seed % 2 == 0 ? Distribution::kKOutliers : Distribution::kKBias;
      CheckCase(c, seed);
    }
  }
}

TEST_CASE("rotated K for groups and beams", "[attention][rotated]") {
  constexpr struct {
    int64_t q_len, kv_len, heads, kv_heads, kv_batch, beams;
  } kShapes[] = {{1, 300, 4, 1, 1, 1},
                 {1, 130, 8, 2, 2, 5},
                 {3, 257, 6, 3, 2, 2},
                 {17, 40, 4, 2, 1, 3},
                 {70, 150, 6, 2, 2, 1}};
  uint64_t seed = 9200;
  for (const auto& shape : kShapes) {
    for (const int64_t head_dim : {24, 64}) {
      for (const bool causal : {false, true}) {
        Case c;
        c.q_len = shape.q_len;
        c.kv_len = shape.kv_len;
        c.heads = shape.heads;
        c.kv_heads = shape.kv_heads;
        c.kv_batch = shape.kv_batch;
        c.beams = shape.beams;
        c.head_dim = head_dim;
        c.causal = causal;
        c.q_dtype = c.k_dtype = ++seed % 2 == 0 ? DType::kF16 : DType::kI8;
        c.distribution = Distribution::kKOutliers;
        CheckCase(c, seed);
      }
    }
  }
}

// The steps that see K rotated are the same for a memory and for tensors.
TEST_CASE("tensors and memories rotate alike", "[attention][rotated]") {
  Case c;
  c.q_len = 50;
  c.kv_len = 1100;
  c.heads = 2;
  c.head_dim = 80;
  c.distribution = Distribution::kKOutliers;
  const Problem problem(c, 9300);
  for (const char* tier : SupportedTiers()) {
    if (!IsAffordable(c, tier)) continue;
    INFO(tier);
    CHECK_THAT(Attend(problem, Rotated(tier, Source::kTensors)),
               Equals(Attend(problem, Rotated(tier, Source::kMemory))));
  }
}

// The transform spreads an element over its row: what is not finite must be caught before it. In K
// or in Q: what both bring would be scores beyond f32.
TEST_CASE("rotated rows take NaN as 0 and bound infinities", "[attention][rotated]") {
  constexpr struct {
    float given, taken;
  } kNumbers[] = {{NAN, 0.0f}, {HUGE_VALF, 1e27f}, {-HUGE_VALF, -1e27f}, {3e33f, 1e27f}};
  const bool in_k = GENERATE(true, false);
  for (const int64_t q_len : {1, 41}) {
    for (const int64_t head_dim : {24, 33, 64}) {
      for (int64_t i = 0; i < 4; ++i) {
        Case c;
        c.q_len = q_len;
        c.kv_len = 70;
        c.head_dim = head_dim;
        Problem dirty(c, 9400);
        Problem clean(c, 9400);
        for (const int64_t d : {5 * i, int64_t{23}}) {
          const int64_t row = in_k ? 11 * i : i % q_len;
          (in_k ? dirty.k : dirty.q).Set(0, row, 0, d, kNumbers[i].given);
          (in_k ? clean.k : clean.q).Set(0, row, 0, d, kNumbers[i].taken);
        }
        Expectations expected(dirty);
        for (const Source source : kSources) {
          for (const char* tier : SupportedTiers()) {
            INFO(c.ToString() << ", " << kNumbers[i].given << " in " << (in_k ? "K" : "Q") << " on "
                              << tier << ", source " << static_cast<int>(source));
            const Setup setup = Rotated(tier, source);
            const Tensor out = Attend(dirty, setup);
            CHECK_THAT(out, Equals(Attend(clean, setup)));
            CHECK_THAT(out, IsClose(expected(setup)));
            const std::vector<double> values = out.ToDoubles();
            CHECK(std::all_of(values.begin(), values.end(), [](double x) { return isfinite(x); }));
          }
        }
      }
    }
  }
}

// No key, no balance: Q is left alone, and no memory is read that the plan did not ask for.
TEST_CASE("rotated K of no keys", "[attention][rotated]") {
  for (const int64_t q_len : {1, 41}) {
    Case c;
    c.q_len = q_len;
    c.kv_len = 0;
    c.head_dim = 40;
    const Problem problem(c, 9500);
    for (const Source source : kSources) {
      for (const char* tier : SupportedTiers()) {
        INFO(tier << ", source " << static_cast<int>(source));
        const std::vector<double> out = Attend(problem, Rotated(tier, source)).ToDoubles();
        CHECK(std::all_of(out.begin(), out.end(), [](double x) { return x == 0.0; }));
      }
    }
  }
}

}  // namespace
}  // namespace testing
}  // namespace sightline
