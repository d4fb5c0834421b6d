// The error budget: how far each precision is from exact attention on the caller's own numbers, for
// the distributions that hurt. A loose, model-level bound beside the tight one of
// attention_test.cc: that one shows that kernels do what the scheme says, this one that the scheme
// is good enough.
//
// Budgets for int8 are 1.3 to 1.5 times the figures measured when the scheme was chosen (2048 keys,
// head_dim 64): Gaussian 1.3 %, K outliers 4.1 %, heavy tail 0.9 %, peaky 2.4 %. With rotated K the
// figures are those of i8 but for K outliers, 1.4 %. Tiers whose quanta of Q and P reach less far
// (kernels/ops/x86_maddubs-inl.h) have budgets of their own.
#include <math.h>
#include <stdio.h>
#include <string.h>

#include <catch2/catch_test_macros.hpp>
#include <map>
#include <string>
#include <vector>

#include "dispatch/tiers.h"
#include "support/check.h"
#include "support/problem.h"
#include "support/tiers.h"

namespace sightline {
namespace testing {
namespace {

struct Budget {
  Distribution distribution;
  double f32, f16, i8, i8_rotated, i8_fine;  // relative L2 error
};

constexpr Budget kBudgets[] = {
    {Distribution::kGaussian, 2e-6, 1e-3, 0.018, 0.018, 0.013},
    {Distribution::kKOutliers, 5e-6, 3e-3, 0.055, 0.020, 0.013},
    {Distribution::kKBias, 5e-6, 1e-3, 0.022, 0.020, 0.013},
    {Distribution::kHeavyTail, 5e-6, 1e-3, 0.013, 0.015, 0.013},
    {Distribution::kHeavyTailVMean, 5e-6, 1e-3, 0.013, 0.0075, 0.013},
    {Distribution::kPeaky, 5e-6, 2e-3, 0.034, 0.028, 0.013},
    // 2048 equal terms: f32 sums are off to the same side at every step; 1.6e-5 measured.
    {Distribution::kAllEqual, 3e-5, 1e-3, 1e-5, 1e-5, 1e-5},
    {Distribution::kOneHot, 2e-6, 1e-3, 0.018, 0.0095, 0.013},
};

constexpr Budget kShortBudgets[] = {
    {Distribution::kGaussian, 2e-6, 1e-3, 0.030, 0.030, 0.019},
    {Distribution::kKOutliers, 5e-6, 3e-3, 0.065, 0.028, 0.016},
    {Distribution::kKBias, 5e-6, 1e-3, 0.030, 0.030, 0.019},
    {Distribution::kHeavyTail, 5e-6, 1e-3, 0.018, 0.018, 0.013},
    {Distribution::kHeavyTailVMean, 5e-6, 1e-3, 0.0085, 0.0085, 0.006},
    {Distribution::kPeaky, 5e-6, 2e-3, 0.040, 0.042, 0.012},
    {Distribution::kAllEqual, 3e-5, 1e-3, 1e-5, 1e-5, 1e-5},
    {Distribution::kOneHot, 2e-6, 1e-3, 0.0095, 0.0095, 0.0095},
};

bool HasShortQuanta(const char* tier) {
  const internal::KernelTable* table = nullptr;
  REQUIRE_THAT(internal::FindKernels(tier, &table), IsOk());
  return table->kernels[static_cast<size_t>(Precision::kI8)].scheme->max_q < 127;
}

std::vector<const char*> TiersWith(bool short_quanta) {
  std::vector<const char*> tiers;
  for (const char* tier : SupportedTiers()) {
    const bool is_slow = strcmp(tier, "scalar") == 0 && tier != BestTier();  // and held elsewhere
    if (!is_slow && HasShortQuanta(tier) == short_quanta) tiers.push_back(tier);
  }
  return tiers;
}

template <size_t kCount>
void CheckBudgets(const Budget (&budgets)[kCount], const std::vector<const char*>& tiers) {
  if (tiers.empty()) return;
  std::string table = "relative L2 error (budget)";
  for (const char* tier : tiers) table += std::string(" ") + tier;
  table += "\n";
  for (const Budget& budget : budgets) {
    Case c;
    c.q_len = IsEmulated() ? 32 : 128;
    c.kv_len = 2048;  // budgets hold for this length: a heavy tail of fewer keys costs more
    c.head_dim = 64;
    c.distribution = budget.distribution;
    const Problem problem(c, 42);
    const std::vector<double> exact = ExactOutput(problem);
    char line[160];
    snprintf(line, sizeof(line), "  %-20s", Name(budget.distribution));
    table += line;
    const struct {
      const char* name;
      Precision precision;
      bool rotate_k;
      double allowed;
    } formats[] = {{"f32", Precision::kF32, false, budget.f32},
                   {"f16", Precision::kF16, false, budget.f16},
                   {"i8", Precision::kI8, false, budget.i8},
                   {"i8_rotated", Precision::kI8, true, budget.i8_rotated},
                   {"i8_fine", Precision::kI8Fine, false, budget.i8_fine}};
    std::map<std::string, double> worst_of;
    for (const auto& format : formats) {
      const double allowed = format.allowed;
      double worst = 0.0;
      for (const char* tier : tiers) {
        Setup setup = {tier, format.precision};
        setup.rotate_k = format.rotate_k;
        const Error error = ErrorOf(Attend(problem, setup), exact);
        INFO(Name(budget.distribution) << ", " << format.name << " on " << tier);
        CHECK(error.relative_l2 <= allowed);
        // |a| ~ |b|: cosine = 1 - error^2 / 2; f64 sums are good to 1e-12.
        CHECK(error.cosine >= 1.0 - allowed * allowed - 1e-12);
        worst = fmax(worst, error.relative_l2);
      }
      worst_of[format.name] = worst;
      snprintf(line, sizeof(line), "  %s %.2e (%.0e)", format.name, worst, allowed);
      table += line;
    }
    table += "\n";
    // Where there are no outliers to spread, rotation must not cost. (With the few queries of an
    // emulator the error of a heavy tail is the rounding of its one key: chance.)
    if (!IsEmulated()) CHECK(worst_of["i8_rotated"] <= 1.15 * worst_of["i8"]);
  }
  fprintf(stderr, "%s", table.c_str());
}

TEST_CASE("relative error stays in the budget", "[accuracy]") {
  CheckBudgets(kBudgets, TiersWith(false));
  CheckBudgets(kShortBudgets, TiersWith(true));
}

// int8 must not lose weight: one key has half of it, thousands share the rest. With one maximum for
// all tiles, or a denominator of rounded weights, that other half is lost.
TEST_CASE("weights too small for 8 bits are not lost", "[accuracy]") {
  Case c;
  c.q_len = 4;
  c.kv_len = IsEmulated() ? 1500 : 6000;
  c.head_dim = 32;
  c.distribution = Distribution::kHeavyTail;
  Problem problem(c, 43);
  // Even channels: 1 everywhere, so that the output is the sum of the weights. Odd channels: 1 in
  // the tile of the heavy key and -1 in all others, which centering does not remove.
  for (int64_t key = 0; key < c.kv_len; ++key) {
    for (int64_t d = 0; d < c.head_dim; ++d) {
      problem.v.Set(0, key, 0, d, d % 2 == 0 || key < 128 ? 1.0f : -1.0f);
    }
  }
  const std::vector<double> exact = ExactOutput(problem);
  for (const char* tier : SupportedTiers()) {
    INFO(tier);
    const Tensor out = Attend(problem, {tier, Precision::kI8});
    const Error error = ErrorOf(out, exact);
    // What may get lost are the 127 neighbours of the heavy key, each below half a step of P:
    // they hold 127 / (2 kv_len) of the weight, on values up to 2 from the center, in half of the
    // channels. Short quanta of Q also move the heavy key's own weight by half a per cent.
    const double lost = 127.0 / static_cast<double>(c.kv_len);
    CHECK(error.relative_l2 <= lost + (HasShortQuanta(tier) ? 0.01 : 0.0));
    CHECK(fabs(static_cast<double>(out.Get(0, 0, 0, 0)) - 1.0) <= 1e-5);
  }
}

}  // namespace
}  // namespace testing
}  // namespace sightline
