// What is special about V in bf16: keys in pairs, and a reference that P in bf16 is relative to
// before the maximum is known (kernels/softmax_bf16-inl.h).
#include <math.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <string>

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
    {"far beyond what a sum's low bits hold", [](int64_t) { return 40000.0f; }},
    {"low, then around 0", [](int64_t key) { return key < 200 ? -320.0f : 0.0f; }},
    {"around 0, then low", [](int64_t key) { return key < 200 ? 0.0f : -320.0f; }},
    {"rising with every tile", [](int64_t key) { return static_cast<float>(key / 128 * 16); }},
    {"falling with every tile", [](int64_t key) { return static_cast<float>(-(key / 128) * 16); }},
    {"a step within the slack", [](int64_t key) { return key < 128 ? -4.0f : 4.0f; }},
    {"one high key", [](int64_t key) { return key == 300 ? 64.0f : 0.0f; }},
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
      c.mask = q_len == 49 ? Mask::kNone : Mask::kCausal;
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
