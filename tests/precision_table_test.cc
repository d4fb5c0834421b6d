// The table of docs/precision.md for the tiers of this machine: `./run precision` runs this and
// puts what it prints into the document. Not a test of its own; budgets are held in
// accuracy_test.cc.
#include <stdio.h>

#include <catch2/catch_test_macros.hpp>
#include <iterator>
#include <map>
#include <string>
#include <utility>
#include <vector>

#include "support/check.h"
#include "support/problem.h"
#include "support/tiers.h"

namespace sightline {
namespace testing {
namespace {

constexpr int64_t kKeys = 2048;

struct Format {
  const char* name;
  Precision precision;
  bool rotate_k;
};
constexpr Format kFormats[] = {
    {"f32", Precision::kF32, false},        {"f16", Precision::kF16, false},
    {"i8", Precision::kI8, false},          {"i8, rotate_k", Precision::kI8, true},
    {"i8_fine", Precision::kI8Fine, false}, {"bf16", Precision::kBF16, false},
    {"mixed16", Precision::kMixed16, false}};

// The same numbers for many rows and for one: 128 queries of one head, and one query of 32 heads.
struct Problems {
  explicit Problems(Distribution distribution)
      : prefill(CaseOf(distribution, 128, 1), 42), decode(CaseOf(distribution, 1, 32), 43) {}

  static Case CaseOf(Distribution distribution, int64_t q_len, int64_t heads) {
    Case c;
    c.q_len = q_len;
    c.heads = c.kv_heads = heads;
    c.kv_len = kKeys;
    c.head_dim = 64;
    c.distribution = distribution;
    return c;
  }

  Problem prefill;
  Problem decode;
};

std::string Percent(const Problem& problem, const std::vector<double>& exact, const Setup& setup) {
  char text[32];
  const double percent = 100.0 * ErrorOf(Attend(problem, setup), exact).relative_l2;
  const char* format = percent == 0.0 ? "%g" : percent < 0.01 ? "%.0e" : "%.2g";
  snprintf(text, sizeof(text), format, percent);
  return text;
}

// Columns are tiers; those that do not differ in any row share one.
void PrintTable(const Format& format, const std::map<std::string, std::vector<std::string>>& cells,
                const std::vector<const char*>& tiers) {
  std::vector<std::pair<std::string, const std::vector<std::string>*>> columns;
  for (const char* tier : tiers) {
    const std::vector<std::string>& column = cells.at(tier);
    bool shared = false;
    for (auto& [title, other] : columns) {
      if (*other != column) continue;
      title += ", " + std::string(tier);
      shared = true;
      break;
    }
    if (!shared) columns.emplace_back(tier, &column);
  }
  printf("\n| %s |", format.name);
  for (const auto& [title, column] : columns) printf(" %s |", title.c_str());
  printf("\n|---|");
  for (size_t i = 0; i < columns.size(); ++i) printf("---|");
  for (size_t row = 0; row < std::size(kDistributions); ++row) {
    printf("\n| %s |", Name(kDistributions[row]));
    for (const auto& [title, column] : columns) printf(" %s |", (*column)[row].c_str());
  }
  printf("\n");
}

TEST_CASE("table of errors", "[.precision]") {
  const std::vector<const char*> tiers = SupportedTiers();
  std::map<std::string, std::vector<std::string>> cells[std::size(kFormats)];
  for (const Distribution distribution : kDistributions) {
    const Problems problems(distribution);
    const std::vector<double> exact_prefill = ExactOutput(problems.prefill);
    const std::vector<double> exact_decode = ExactOutput(problems.decode);
    for (size_t i = 0; i < std::size(kFormats); ++i) {
      for (const char* tier : tiers) {
        Setup setup = {tier, kFormats[i].precision};
        setup.rotate_k = kFormats[i].rotate_k;
        cells[i][tier].push_back(Percent(problems.prefill, exact_prefill, setup) + " · " +
                                 Percent(problems.decode, exact_decode, setup));
      }
    }
  }
  for (size_t i = 0; i < std::size(kFormats); ++i) PrintTable(kFormats[i], cells[i], tiers);
}

}  // namespace
}  // namespace testing
}  // namespace sightline
