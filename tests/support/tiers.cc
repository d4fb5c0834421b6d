#include "support/tiers.h"

#include <stdio.h>
#include <string.h>

#include <catch2/catch_test_case_info.hpp>
#include <catch2/reporters/catch_reporter_event_listener.hpp>
#include <catch2/reporters/catch_reporter_registrars.hpp>
#include <mutex>
#include <set>

#include "sightline/tier.h"

namespace sightline {
namespace testing {
namespace {

std::set<std::string>* TiersRun() {
  static std::set<std::string> tiers;
  return &tiers;
}

std::mutex* TiersRunMutex() {
  static std::mutex mutex;
  return &mutex;
}

class TierReport : public Catch::EventListenerBase {
 public:
  using EventListenerBase::EventListenerBase;

  void testRunEnded(const Catch::TestRunStats&) override {
    std::lock_guard<std::mutex> lock(*TiersRunMutex());
    if (TiersRun()->empty()) return;
    fprintf(stderr, "tiers:");
    for (size_t i = 0; i < NumTiers(); ++i) {
      const TierInfo tier = GetTier(i);
      if (!tier.supported) {
        fprintf(stderr, " [%s: cpu lacks %s]", tier.name, tier.missing);
      } else {
        fprintf(stderr, " [%s: %s]", tier.name,
                TiersRun()->count(tier.name) != 0 ? "ran" : "not run");
      }
    }
    fprintf(stderr, "\n");
  }
};

CATCH_REGISTER_LISTENER(TierReport)

}  // namespace

std::vector<const char*> SupportedTiers() {
  std::vector<const char*> names;
  for (size_t i = 0; i < NumTiers(); ++i) {
    if (GetTier(i).supported) names.push_back(GetTier(i).name);
  }
  return names;
}

const char* BestTier() { return SupportedTiers().back(); }

void RecordTierRun(const char* tier) {
  std::lock_guard<std::mutex> lock(*TiersRunMutex());
  TiersRun()->insert(tier);
}

bool IsEmulated() {
#if defined(SIGHTLINE_TESTS_EMULATED)
  return true;
#else
  return false;
#endif
}

bool IsAffordable(const Case& c, const char* tier) {
  const bool scalar = strcmp(tier, "scalar") == 0;
  if (IsEmulated()) return c.MultiplyAdds() <= (scalar ? 500000 : 2000000);
  return !scalar || c.MultiplyAdds() <= 8000000;
}

}  // namespace testing
}  // namespace sightline
