// f16 and bf16 to f32 and back, by way of an attention that changes nothing: a query over a single
// key gets that key's value.
#include <stdint.h>
#include <string.h>

#include <catch2/catch_test_macros.hpp>
#include <cmath>
#include <vector>

#include "sightline/attention.h"
#include "support/check.h"
#include "support/numeric.h"
#include "support/tiers.h"

namespace sightline {
namespace testing {
namespace {

constexpr int64_t kHeads = 128;
constexpr int64_t kDim = 512;
constexpr size_t kElements = size_t{kHeads * kDim};  // one for each pattern of 16 bits

// Runs `values` (kElements of them) through attention into `out`.
void PassThrough(const char* tier, DType from, const void* values, DType to, void* out) {
  AttentionDesc desc;
  desc.num_heads = desc.num_kv_heads = kHeads;
  desc.head_dim = 1;
  desc.v_head_dim = kDim;
  desc.max_kv_len = 1;
  desc.tier = tier;
  Plan plan;
  REQUIRE_THAT(Plan::Create(desc, &plan), IsOk());
  const std::vector<float> ones(size_t{kHeads}, 1.0f);
  AttentionArgs args;
  args.q = ConstTensorView::Dense(ones.data(), DType::kF32, 1, 1, kHeads, 1);
  args.k = args.q;
  args.v = ConstTensorView::Dense(values, from, 1, 1, kHeads, kDim);
  args.out = TensorView::Dense(out, to, 1, 1, kHeads, kDim);
  REQUIRE_THAT(Run(plan, args), IsOk());
  RecordTierRun(plan.tier());
}

bool SameOrBothNan(float a, float b) { return a == b || (std::isnan(a) && std::isnan(b)); }

// Floats next to what f16 and bf16 can hold: each of their values, the halfway points between
// neighbours, and a float on either side of those.
std::vector<float> HardToRound(DType type, uint32_t offset_bits) {
  std::vector<float> values(kElements);
  const uint32_t dropped_bits = type == DType::kF16 ? 13 : 16;
  for (size_t i = 0; i < kElements; ++i) {
    const uint16_t pattern = static_cast<uint16_t>(i);
    values[i] = LoadElement(type, &pattern);
    if (!std::isfinite(values[i])) continue;
    uint32_t bits;
    memcpy(&bits, &values[i], sizeof(bits));
    bits += (uint32_t{1} << (dropped_bits - 1)) + offset_bits;
    memcpy(&values[i], &bits, sizeof(bits));
  }
  return values;
}

TEST_CASE("every f16 and bf16 is read as what it is", "[conversion]") {
  std::vector<uint16_t> values(kElements);
  for (size_t i = 0; i < kElements; ++i) values[i] = static_cast<uint16_t>(i);
  for (const char* tier : SupportedTiers()) {
    for (const DType type : {DType::kF16, DType::kBF16}) {
      std::vector<float> out(kElements);
      PassThrough(tier, type, values.data(), DType::kF32, out.data());
      size_t wrong = 0;
      for (size_t i = 0; i < kElements; ++i) {
        const float expected = LoadElement(type, &values[i]);
        if (SameOrBothNan(out[i], expected)) continue;
        UNSCOPED_INFO(Name(type) << " pattern " << i << ": " << out[i] << ", not " << expected);
        if (++wrong == 5) break;
      }
      INFO(tier);
      CHECK(wrong == 0);
    }
  }
}

TEST_CASE("results are rounded to nearest even", "[conversion]") {
  for (const char* tier : SupportedTiers()) {
    for (const DType type : {DType::kF16, DType::kBF16}) {
      for (const uint32_t offset_bits : {0u, 1u, ~0u}) {
        const std::vector<float> values = HardToRound(type, offset_bits);
        std::vector<uint16_t> out(kElements);
        PassThrough(tier, DType::kF32, values.data(), type, out.data());
        size_t wrong = 0;
        for (size_t i = 0; i < kElements; ++i) {
          const float actual = LoadElement(type, &out[i]);
          const float expected = RoundThrough(type, values[i]);
          if (SameOrBothNan(actual, expected)) continue;
          UNSCOPED_INFO(values[i] << " to " << Name(type) << ": " << actual << ", not "
                                  << expected);
          if (++wrong == 5) break;
        }
        INFO(tier);
        CHECK(wrong == 0);
      }
    }
  }
}

}  // namespace
}  // namespace testing
}  // namespace sightline
