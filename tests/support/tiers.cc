#include "support/tiers.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <atomic>
#include <catch2/catch_test_case_info.hpp>
#include <catch2/reporters/catch_reporter_event_listener.hpp>
#include <catch2/reporters/catch_reporter_registrars.hpp>
#include <cmath>
#include <mutex>
#include <set>

#include "dispatch/tiers.h"
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

// SIGHTLINE_TESTS_TIER, or null.
const char* RequestedTier() {
  const char* name = getenv("SIGHTLINE_TESTS_TIER");
  return name != nullptr && *name != '\0' ? name : nullptr;
}

// A tier's kernels for a precision are those of a plainer one.
bool TakesKernelsOver(const char* tier, Precision precision) {
  const size_t index = static_cast<size_t>(precision);
  const internal::KernelTable* table = nullptr;
  if (!internal::FindKernels(tier, &table).ok()) return false;
  for (size_t i = 0; i < NumTiers() && strcmp(GetTier(i).name, tier) != 0; ++i) {
    const internal::KernelTable* below = nullptr;
    if (!internal::FindKernels(GetTier(i).name, &below).ok()) continue;
    if (table->kernels[index].prefill == below->kernels[index].prefill) return true;
  }
  return false;
}

class TierReport : public Catch::EventListenerBase {
 public:
  using EventListenerBase::EventListenerBase;

  void testRunStarting(const Catch::TestRunInfo&) override {
    if (RequestedTier() == nullptr || !SupportedTiers().empty()) return;
    fprintf(stderr, "tiers: [%s: no such tier, or not on this CPU]\n", RequestedTier());
    constexpr int kAllSkipped = 4;
    _Exit(kAllSkipped);
  }

  void testRunEnded(const Catch::TestRunStats&) override {
    std::lock_guard<std::mutex> lock(*TiersRunMutex());
    if (TiersRun()->empty() && RequestedTier() == nullptr) return;
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
    if (RequestedTier() != nullptr && TiersRun()->count(RequestedTier()) == 0) {
      fprintf(stderr, "tier %s passed without having run\n", RequestedTier());
      _Exit(EXIT_FAILURE);
    }
  }
};

CATCH_REGISTER_LISTENER(TierReport)

}  // namespace

std::vector<const char*> SupportedTiers() {
  std::vector<const char*> names;
  for (size_t i = 0; i < NumTiers(); ++i) {
    const TierInfo tier = GetTier(i);
    const bool wanted = RequestedTier() == nullptr || strcmp(RequestedTier(), tier.name) == 0;
    if (tier.supported && wanted) names.push_back(tier.name);
  }
  return names;
}

const char* BestTier() { return SupportedTiers().back(); }

std::vector<const char*> TiersOf(Precision precision) {
  std::vector<const char*> tiers;
  for (const char* tier : SupportedTiers()) {
    if (!TakesKernelsOver(tier, precision)) tiers.push_back(tier);
  }
  return tiers;
}

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

bool IsSanitized() {
#if defined(SIGHTLINE_TESTS_SANITIZED)
  return true;
#else
  return false;
#endif
}

float AsTierSees(const char* tier, float x) {
  const bool flushes = strcmp(tier, "neon32") == 0 && std::fpclassify(x) == FP_SUBNORMAL;
  return flushes ? std::copysign(0.0f, x) : x;
}

bool TakesTurn(const char* tier) {
  static std::atomic<uint32_t> count{0};
  if (!IsSanitized() && !IsEmulated() && strcmp(tier, "scalar") != 0) return true;
  const uint32_t turns = IsSanitized() ? 6 : 3;
  return (count++ * 0x9e3779b1u >> 16) % turns == 0;  // a hash, to be out of step with any loop
}

bool IsAffordable(const Case& c, const char* tier) {
  const bool scalar = strcmp(tier, "scalar") == 0;
  if (IsEmulated()) return c.MultiplyAdds() <= (scalar ? 500000 : 1000000);
  return !scalar || c.MultiplyAdds() <= (IsSanitized() ? 2000000 : 8000000);
}

}  // namespace testing
}  // namespace sightline
