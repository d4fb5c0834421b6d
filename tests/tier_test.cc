// Which tiers there are, which one is active, and that the one asked for is the one that runs.
//
// The cases tagged [.environment] run under SIGHTLINE_TIER=..., one CTest test for each value; see
// tests/CMakeLists.txt.
#include <stdlib.h>
#include <string.h>

#include <catch2/catch_test_macros.hpp>
#include <set>
#include <string>

#include "sightline/tier.h"
#include "support/check.h"
#include "support/problem.h"
#include "support/tiers.h"

namespace sightline {
namespace testing {
namespace {

const char* EnvironmentTier() {
  const char* name = getenv("SIGHTLINE_TIER");
  return name == nullptr ? "" : name;
}

// Null if there is none.
const TierInfo* FindTier(const std::string& name) {
  static TierInfo found;
  for (size_t i = 0; i < NumTiers(); ++i) {
    found = GetTier(i);
    if (name == found.name) return &found;
  }
  return nullptr;
}

// Takes an override back, whatever a failing check skips.
struct TierGuard {
  ~TierGuard() { (void)SetActiveTier(nullptr).ok(); }
};

Case SmallCase() {
  Case c;
  c.q_len = 3;
  c.kv_len = 70;
  return c;
}

// Name of the tier that plans take when they name none.
std::string DefaultTier() {
  Plan plan;
  const Status status = Plan::Create(DescOf(SmallCase(), {}), &plan);
  return status.ok() ? plan.tier() : std::string();
}

TEST_CASE("the list of tiers", "[tiers]") {
  REQUIRE(NumTiers() >= 1);
  CHECK(std::string(GetTier(0).name) == "scalar");
  CHECK(GetTier(0).supported);
  std::set<std::string> names;
  for (size_t i = 0; i < NumTiers(); ++i) {
    const TierInfo tier = GetTier(i);
    INFO(tier.name);
    CHECK(strlen(tier.name) > 0);
    CHECK(names.insert(tier.name).second);
    CHECK(tier.supported == (strlen(tier.missing) == 0));
  }
  const TierInfo beyond = GetTier(NumTiers());
  CHECK(std::string(beyond.name).empty());
  CHECK(std::string(beyond.missing).empty());
  CHECK_FALSE(beyond.supported);
}

TEST_CASE("plans run the tier they name", "[tiers]") {
  const Problem problem(SmallCase(), 1);
  for (size_t i = 0; i < NumTiers(); ++i) {
    const TierInfo tier = GetTier(i);
    INFO(tier.name);
    Plan plan;
    const Status status = Plan::Create(DescOf(problem.c, {tier.name}), &plan);
    if (tier.supported) {
      CHECK_THAT(status, IsOk());
      CHECK(std::string(plan.tier()) == tier.name);
      CHECK_THAT(Attend(problem, {tier.name}), IsClose(Expect(problem, {tier.name})));
    } else {
      CHECK(status.code() == StatusCode::kUnsupported);
      CHECK(std::string(status.message()).find(tier.missing) != std::string::npos);
      CHECK(plan.empty());
      CrossMemory memory;
      CHECK(CrossMemory::Create(problem.k.view(), problem.v.view(), {Precision::kF32, tier.name},
                                &memory)
                .code() == StatusCode::kUnsupported);
      CHECK(memory.empty());
    }
  }
}

TEST_CASE("the best supported tier is active unless something else was asked for", "[tiers]") {
  if (strlen(EnvironmentTier()) != 0) SKIP("SIGHTLINE_TIER is set");
  const char* active = nullptr;
  REQUIRE_THAT(GetActiveTier(&active), IsOk());
  CHECK(std::string(active) == BestTier());
  CHECK(DefaultTier() == BestTier());
  CHECK_THAT(GetActiveTier(nullptr), IsError(StatusCode::kInvalidArgument, "name"));
}

// On the CPUs of tests/emulated_cpus.cmake.
TEST_CASE("the expected tier is active, and runs", "[tiers]") {
  const char* expected = getenv("SIGHTLINE_TESTS_EXPECTED_TIER");
  if (expected == nullptr) SKIP("SIGHTLINE_TESTS_EXPECTED_TIER is not set");
  const char* active = nullptr;
  REQUIRE_THAT(GetActiveTier(&active), IsOk());
  CHECK(std::string(active) == expected);
  CHECK(DefaultTier() == expected);
  const Problem problem(SmallCase(), 3);
  CHECK_THAT(Attend(problem, {}), IsClose(Expect(problem, {expected})));
}

TEST_CASE("SetActiveTier overrides, and nullptr or \"\" take it back", "[tiers]") {
  const TierGuard guard;
  const std::string before = DefaultTier();
  for (const char* tier : SupportedTiers()) {
    for (const char* none : {static_cast<const char*>(nullptr), ""}) {
      REQUIRE_THAT(SetActiveTier(tier), IsOk());
      const char* active = nullptr;
      REQUIRE_THAT(GetActiveTier(&active), IsOk());
      CHECK(std::string(active) == tier);
      CHECK(DefaultTier() == tier);
      REQUIRE_THAT(SetActiveTier(none), IsOk());
      CHECK(DefaultTier() == before);
    }
  }
}

TEST_CASE("a plan keeps its tier when the active one changes", "[tiers]") {
  const TierGuard guard;
  REQUIRE_THAT(SetActiveTier("scalar"), IsOk());
  Plan plan;
  REQUIRE_THAT(Plan::Create(DescOf(SmallCase(), {}), &plan), IsOk());
  REQUIRE_THAT(SetActiveTier(BestTier()), IsOk());
  CHECK(std::string(plan.tier()) == "scalar");
}

TEST_CASE("SetActiveTier refuses and changes nothing", "[tiers]") {
  const TierGuard guard;
  REQUIRE_THAT(SetActiveTier("scalar"), IsOk());
  CHECK_THAT(SetActiveTier("abacus"), IsError(StatusCode::kInvalidArgument, "abacus"));
  CHECK_THAT(SetActiveTier("Scalar"), IsError(StatusCode::kInvalidArgument, "Scalar"));
  const std::string endless(5000, 'x');
  CHECK(SetActiveTier(endless.c_str()).code() == StatusCode::kInvalidArgument);
  for (size_t i = 0; i < NumTiers(); ++i) {
    const TierInfo tier = GetTier(i);
    if (tier.supported) continue;
    const Status status = SetActiveTier(tier.name);
    INFO(tier.name);
    CHECK_THAT(status, IsError(StatusCode::kUnsupported, tier.name));
    CHECK(std::string(status.message()).find(tier.missing) != std::string::npos);
  }
  const char* active = nullptr;
  REQUIRE_THAT(GetActiveTier(&active), IsOk());
  CHECK(std::string(active) == "scalar");
}

// Passes for every value of SIGHTLINE_TIER, as what must happen depends on it.
TEST_CASE("SIGHTLINE_TIER", "[.environment]") {
  const std::string name = EnvironmentTier();
  REQUIRE_FALSE(name.empty());
  const TierInfo* tier = FindTier(name);
  const char* active = "left from before";
  const Status status = GetActiveTier(&active);
  const Problem problem(SmallCase(), 2);
  if (tier != nullptr && tier->supported) {
    REQUIRE_THAT(status, IsOk());
    CHECK(active == name);
    CHECK(DefaultTier() == name);
    CHECK_THAT(Attend(problem, {}), IsClose(Expect(problem, {})));
    return;
  }
  const StatusCode code = tier == nullptr ? StatusCode::kInvalidArgument : StatusCode::kUnsupported;
  const std::string named = tier == nullptr ? name : tier->missing;
  const TierGuard guard;
  CHECK(active == nullptr);
  Plan plan;
  CrossMemory memory;
  KvCacheDesc cache_desc;
  cache_desc.num_kv_heads = cache_desc.head_dim = cache_desc.capacity = 1;
  KvCache cache;
  for (const Status& refused :
       {status, Plan::Create(DescOf(problem.c, {}), &plan),
        CrossMemory::Create(problem.k.view(), problem.v.view(), {}, &memory),
        KvCache::Create(cache_desc, &cache)}) {
    CHECK_THAT(refused, IsError(code, "SIGHTLINE_TIER"));
    CHECK(std::string(refused.message()).find(named) != std::string::npos);
  }
  CHECK((plan.empty() && memory.empty() && cache.empty()));
  // A description that names its tier does not mind, and neither does an override.
  CHECK_THAT(Plan::Create(DescOf(problem.c, {BestTier()}), &plan), IsOk());
  REQUIRE_THAT(SetActiveTier(BestTier()), IsOk());
  CHECK(DefaultTier() == BestTier());
}

}  // namespace
}  // namespace testing
}  // namespace sightline
