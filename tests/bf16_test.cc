// What is special about V in bf16: keys in pairs, and a reference that P in bf16 is relative to
// before the maximum is known (kernels/softmax_bf16-inl.h).
#include <math.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <string>
#include <vector>

#include "support/check.h"
#include "support/problem.h"
#include "support/tiers.h"

namespace sightline {
namespace testing {
namespace {

constexpr Precision kWithBF16V[] = {Precision::kBF16, Precision::kMixed16};

// Scores of a key, for every query, but for noise of variance 1.
struct Landscape {
  const char* name;
  float (*level)(int64_t key);
};
constexpr Landscape kLandscapes[] = {
    {"around 0", [](int64_t) { return 0.0f; }},
    {"high", [](int64_t) { return 320.0f; }},
    {"low", [](int64_t) { return -320.0f; }},
    {"beyond what a sum's low bits hold", [](int64_t) { return 40000.0f; }},
    {"as low as P may be", [](int64_t) { return -22.0f; }},
    {"as high as P may be", [](int64_t) { return 16.0f; }},
    {"low, where P is a subnormal number", [](int64_t) { return -71.0f; }},
    {"low, where the first reference is infinitely far", [](int64_t) { return -91.0f; }},
    {"low, then around 0", [](int64_t key) { return key < 200 ? -320.0f : 0.0f; }},
    {"around 0, then low", [](int64_t key) { return key < 200 ? 0.0f : -320.0f; }},
    {"rising with every tile", [](int64_t key) { return static_cast<float>(key / 128 * 16); }},
    {"falling with every tile", [](int64_t key) { return static_cast<float>(-(key / 128) * 16); }},
    {"a step within the slack", [](int64_t key) { return key < 128 ? -4.0f : 4.0f; }},
    {"one high key", [](int64_t key) { return key == 300 ? 64.0f : 0.0f; }},
    {"one key whose P would be infinite", [](int64_t key) { return key == 300 ? 105.7f : 0.0f; }},
};

TEST_CASE("scores may be anywhere", "[bf16]") {
  for (const Landscape& landscape : kLandscapes) {
    for (const int64_t q_len : {3, 49, 130}) {
      Case c;
      c.q_len = q_len;
      c.kv_len = 451;
      c.head_dim = 24;
      c.v_head_dim = 20;
      c.scale = 0.25f;
      c.causal = q_len != 49;
      Problem problem(c, 1);
      for (int64_t i = 0; i < q_len; ++i) problem.q.Set(0, i, 0, 7, 16.0f);
      for (int64_t key = 0; key < c.kv_len; ++key) {
        problem.k.Set(0, key, 0, 7, landscape.level(key) / 4.0f);
      }
      Expectations expected(problem);
      for (const Precision precision : kWithBF16V) {
        for (const char* tier : SupportedTiers()) {
          const Setup setup = {tier, precision};
          INFO("scores " << landscape.name << ", q_len " << q_len << ", " << Name(precision)
                         << " on " << tier);
          CHECK_THAT(Attend(problem, setup), IsClose(expected(setup)));
        }
      }
    }
  }
}

// The reference of such scores leaves no bits for their differences, and P must be made in another
// way. Keys of two tiles are the same, with opposite values but for the first, which is always 1.
TEST_CASE("equal scores have equal weights, however large", "[bf16]") {
  Case c;
  c.q_len = 50;
  c.kv_len = 256;
  c.head_dim = 4;
  c.v_head_dim = 16;
  c.scale = 1.0f;
  for (const float score : {0.0f, 30.0f, -30.0f, 1e4f, -1e4f, 1e6f, 3e7f, 1e10f, -1e10f, 1e36f}) {
    Problem problem(c, 4);
    for (int64_t i = 0; i < c.q_len; ++i) {
      for (int64_t d = 0; d < 4; ++d) problem.q.Set(0, i, 0, d, d == 0 ? 1.0f : 0.0f);
    }
    for (int64_t key = 0; key < c.kv_len; ++key) {
      // K loses its mean in mixed16: half of the keys are far below.
      const float far = fabsf(score) < 1e35f ? fabsf(score) : 0.0f;
      for (int64_t d = 0; d < 4; ++d) {
        problem.k.Set(0, key, 0, d, d == 0 ? (key % 2 == 0 ? score : score - 3.0f * far) : 0.0f);
      }
      for (int64_t d = 0; d < c.v_head_dim; ++d) {
        problem.v.Set(0, key, 0, d, key < 128 || d == 0 ? 1.0f : -1.0f);
      }
    }
    for (const Precision precision : kWithBF16V) {
      for (const char* tier : SupportedTiers()) {
        INFO("scores " << score << ", " << Name(precision) << " on " << tier);
        const Tensor out = Attend(problem, {tier, precision});
        double worst = 0.0;
        for (int64_t i = 0; i < c.q_len; ++i) {
          for (int64_t d = 0; d < c.v_head_dim; ++d) {
            const double off =
                fabs(static_cast<double>(out.Get(0, i, 0, d)) - (d == 0 ? 1.0 : 0.0));
            worst = fmax(worst, isnan(off) ? 1.0 : off);
          }
        }
        CHECK(worst < 1e-6);
      }
    }
  }
}

// What f32 can compute bf16 can: Q and K may be as far apart as they like, and scores as large as
// f32 holds.
TEST_CASE("no factor on the way makes scores overflow", "[bf16]") {
  const struct {
    float q_gain, k_gain, scale;
  } kCases[] = {{1e37f, 1e-37f, 0.25f}, {1e-35f, 1e35f, 0.25f}, {1e-18f, 1e-17f, 2e35f},
                {1e18f, 1e18f, 0.25f},  {-1e18f, 1e18f, 0.25f}, {1e18f, 1e18f, -0.25f}};
  for (const auto& gains : kCases) {
    for (const int64_t q_len : {3, 60}) {
      Case c;
      c.q_len = q_len;
      c.kv_len = 200;
      c.head_dim = 16;
      c.v_head_dim = 20;
      c.scale = gains.scale;
      Problem problem(c, 5);
      for (int64_t d = 0; d < c.head_dim; ++d) {
        for (int64_t i = 0; i < q_len; ++i) {
          problem.q.Set(0, i, 0, d, problem.q.Get(0, i, 0, d) * gains.q_gain);
        }
        for (int64_t key = 0; key < c.kv_len; ++key) {
          problem.k.Set(0, key, 0, d, problem.k.Get(0, key, 0, d) * gains.k_gain);
        }
      }
      const std::vector<double> exact = ExactOutput(problem);
      for (const Precision precision : kWithBF16V) {
        // Below 10^-30 a row of K or Q in integers is 0.
        if (precision == Precision::kMixed16 && fminf(fabsf(gains.q_gain), gains.k_gain) < 1e-20f)
          continue;
        for (const char* tier : SupportedTiers()) {
          INFO("Q x " << gains.q_gain << ", K x " << gains.k_gain << ", scale " << gains.scale
                      << ", q_len " << q_len << ", " << Name(precision) << " on " << tier);
          // One key wins by far, and rounding decides which of the two best: any of them is right.
          const bool one_wins = fabsf(gains.q_gain) * gains.k_gain > 1e30f;
          const Tensor out = Attend(problem, {tier, precision});
          CHECK(ErrorOf(out, exact).relative_l2 < (one_wins ? 0.5 : 0.03));
        }
      }
    }
  }
}

// Products that are each far below a step of P add up to some of it.
TEST_CASE("many small products count", "[bf16]") {
  Case c;
  c.q_len = 50;
  c.kv_len = 64;
  c.head_dim = 512;
  c.v_head_dim = 16;
  c.scale = 1.0f;
  Problem problem(c, 6);
  for (int64_t d = 0; d < c.head_dim; ++d) {
    for (int64_t i = 0; i < c.q_len; ++i) problem.q.Set(0, i, 0, d, 1.0f);
    for (int64_t key = 0; key < c.kv_len; ++key) {
      problem.k.Set(0, key, 0, d, key % 2 == 0 ? 0x1p-13f : -0x1p-13f);
    }
  }
  for (int64_t key = 0; key < c.kv_len; ++key) {
    for (int64_t d = 0; d < c.v_head_dim; ++d) {
      problem.v.Set(0, key, 0, d, key % 2 == 0 ? 1.0f : -1.0f);
    }
  }
  const std::vector<double> exact = ExactOutput(problem);
  for (const Precision precision : kWithBF16V) {
    for (const char* tier : SupportedTiers()) {
      INFO(Name(precision) << " on " << tier);
      CHECK(ErrorOf(Attend(problem, {tier, precision}), exact).relative_l2 < 0.06);
    }
  }
}

// Rows of one tile share its fate, whether its references move, but not their bits.
TEST_CASE("rows do not depend on what others see", "[bf16]") {
  Case c;
  c.q_len = c.kv_len = 48;
  c.head_dim = 16;
  c.v_head_dim = 20;
  c.causal = true;
  const Problem before(c, 7);
  for (const float last : {40.0f, -40.0f, NAN, HUGE_VALF, -HUGE_VALF}) {
    for (const bool in_k : {true, false}) {
      Problem after(c, 7);
      for (int64_t d = 0; d < 16; ++d) (in_k ? after.k : after.v).Set(0, 47, 0, d, last);
      for (const char* tier : SupportedTiers()) {
        INFO("last key " << last << (in_k ? " in K" : " in V") << " on " << tier);
        const std::vector<double> a = Attend(before, {tier, Precision::kBF16}).ToDoubles();
        const std::vector<double> b = Attend(after, {tier, Precision::kBF16}).ToDoubles();
        const auto earlier = static_cast<ptrdiff_t>(47 * c.v_head_dim);
        CHECK(std::equal(a.begin(), a.begin() + earlier, b.begin()));
      }
    }
  }
}

// Whose sign is that of a negative number, on x86.
TEST_CASE("a NaN that the CPU makes is one", "[bf16]") {
  Case c;
  c.q_len = 50;
  c.kv_len = 64;
  c.v_head_dim = 20;
  Problem problem(c, 8);
  for (int64_t i = 0; i < 50; ++i) {
    problem.q.Set(0, i, 0, 0, 1.0f);
    problem.q.Set(0, i, 0, 1, 1.0f);
  }
  problem.k.Set(0, 5, 0, 0, HUGE_VALF);
  problem.k.Set(0, 5, 0, 1, GENERATE(-HUGE_VALF, 0.0f));  // or an infinite score, as in f32
  for (const char* tier : SupportedTiers()) {
    INFO(tier);
    const std::vector<double> out = Attend(problem, {tier, Precision::kBF16}).ToDoubles();
    CHECK(std::all_of(out.begin(), out.end(), [](double x) { return isnan(x); }));
  }
}

// Rows of one query that share K and V: all see an odd number of keys, whose last has a neighbour.
TEST_CASE("a NaN beside the last visible key stays hidden", "[bf16]") {
  Case c;
  c.q_len = 5;
  c.kv_len = 64;
  c.heads = 48;
  c.kv_heads = 1;
  c.v_head_dim = 20;
  c.causal = true;
  const int64_t poisoned = GENERATE(61, 63);
  Problem problem(c, 3);
  for (int64_t d = 0; d < 20; ++d) problem.v.Set(0, poisoned, 0, d, NAN);
  Expectations expected(problem);
  for (const Precision precision : kWithBF16V) {
    for (const char* tier : SupportedTiers()) {
      const Setup setup = {tier, precision};
      INFO(Name(precision) << " on " << tier);
      CHECK_THAT(Attend(problem, setup), IsClose(expected(setup)));
    }
  }
}

// An even key's neighbour may be anything that was there before, were it not set to 0.
TEST_CASE("nothing is left beside the last key", "[bf16][cache]") {
  Case c;
  c.q_len = GENERATE(1, 60);
  c.kv_len = 300;
  c.head_dim = 16;
  c.v_head_dim = 20;
  Problem old(c, 2);
  for (int64_t key = 0; key < c.kv_len; ++key) {
    for (int64_t d = 0; d < c.v_head_dim; ++d) old.v.Set(0, key, 0, d, NAN);
  }
  for (const int64_t kv_len : {1, 63, 129, 299}) {
    Case shorter = c;
    shorter.kv_len = kv_len;
    const Problem problem(shorter, 3);
    for (const Precision precision : kWithBF16V) {
      for (const char* tier : SupportedTiers()) {
        INFO(kv_len << " keys, q_len " << c.q_len << ", " << Name(precision) << " on " << tier);
        const Setup setup = {tier, precision, Source::kCache};
        KvCache cache = CacheOf(old, setup);
        cache.Clear();
        REQUIRE_THAT(cache.Append(problem.k.view(), problem.v.view()), IsOk());
        Plan plan;
        AttentionDesc desc = DescOf(shorter, setup);
        desc.owns_workspace = true;
        REQUIRE_THAT(Plan::Create(desc, &plan), IsOk());
        const Tensor out = problem.NewOut();
        AttentionArgs args = TensorArgs(problem, out);
        args.k = args.v = ConstTensorView();
        args.cache = &cache;
        REQUIRE_THAT(Run(plan, args), IsOk());
        CHECK_THAT(out, IsClose(Expect(problem, setup)));
      }
    }
  }
}

}  // namespace
}  // namespace testing
}  // namespace sightline
