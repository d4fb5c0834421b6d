// f16, bf16 and i8 to f32 and back, by way of an attention that changes nothing: a query over a
// single key gets that key's value.
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

// kElements of them.
ConstTensorView Values(const void* data, DType type, const ScaleView& scale = {}) {
  return ConstTensorView::Dense(data, type, 1, 1, kHeads, kDim, scale);
}
TensorView Results(void* data, DType type, const ScaleView& scale = {}) {
  return TensorView::Dense(data, type, 1, 1, kHeads, kDim, scale);
}

// Runs `values` through attention into `out`.
void PassThrough(const char* tier, const ConstTensorView& values, const TensorView& out) {
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
  args.v = values;
  args.out = out;
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
      PassThrough(tier, Values(values.data(), type), Results(out.data(), DType::kF32));
      size_t wrong = 0;
      for (size_t i = 0; i < kElements; ++i) {
        const float expected = AsTierSees(tier, LoadElement(type, &values[i]));
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
        PassThrough(tier, Values(values.data(), DType::kF32), Results(out.data(), type));
        size_t wrong = 0;
        for (size_t i = 0; i < kElements; ++i) {
          const float actual = LoadElement(type, &out[i]);
          const float expected = RoundThrough(type, AsTierSees(tier, values[i]));
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

// A query over a single key has its score as lse. Of queries that are subnormal numbers, and of the
// smallest that are not, in f16 and bf16; the scale makes what scores may be of them.
TEST_CASE("the smallest f16 and bf16 of Q are read as what they are", "[conversion]") {
  constexpr int64_t kPatterns = 0x1000;
  const float scale = ldexpf(1.0f, 60);
  std::vector<uint16_t> q;
  for (uint16_t magnitude = 0; magnitude < kPatterns / 2; ++magnitude) {
    q.push_back(magnitude);
    q.push_back(static_cast<uint16_t>(0x8000 | magnitude));
  }
  const std::vector<float> ones(size_t{kHeads}, 1.0f);
  for (const char* tier : SupportedTiers()) {
    for (const DType type : {DType::kF16, DType::kBF16}) {
      for (const Precision precision : {Precision::kF32, Precision::kF16}) {
        for (const bool few_rows : {false, true}) {
          const int64_t batch = few_rows ? kPatterns / kHeads : 1;  // with a key each
          const int64_t q_len = kPatterns / kHeads / batch;
          AttentionDesc desc;
          desc.num_heads = kHeads;
          desc.num_kv_heads = few_rows ? kHeads : 1;
          desc.head_dim = desc.v_head_dim = 1;
          desc.max_batch = batch;
          desc.max_q_len = q_len;
          desc.max_kv_len = 1;
          desc.scale = scale;
          desc.precision = precision;
          desc.tier = tier;
          Plan plan;
          REQUIRE_THAT(Plan::Create(desc, &plan), IsOk());
          std::vector<float> out(q.size());
          std::vector<float> lse(q.size());
          AttentionArgs args;
          args.q = ConstTensorView::Dense(q.data(), type, batch, q_len, kHeads, 1);
          args.k = ConstTensorView::Dense(ones.data(), DType::kF32, batch, 1, desc.num_kv_heads, 1);
          args.k.batch_stride = 0;
          args.v = args.k;
          args.out = TensorView::Dense(out.data(), DType::kF32, batch, q_len, kHeads, 1);
          args.lse = TensorView::Dense(lse.data(), DType::kF32, batch, q_len, kHeads, 1);
          REQUIRE_THAT(Run(plan, args), IsOk());
          RecordTierRun(plan.tier());
          size_t wrong = 0;
          for (size_t i = 0; i < q.size(); ++i) {
            const double expected =
                static_cast<double>(AsTierSees(tier, LoadElement(type, &q[i]))) *
                static_cast<double>(scale);
            const double error = std::fabs(static_cast<double>(lse[i]) - expected);
            if (error <= 8.0 * kF32Unit * std::fabs(expected)) continue;
            UNSCOPED_INFO(Name(type)
                          << " pattern " << q[i] << ": " << lse[i] << ", not " << expected);
            if (++wrong == 5) break;
          }
          INFO(Name(precision) << (few_rows ? ", few rows, on " : ", many rows, on ") << tier);
          CHECK(wrong == 0);
        }
      }
    }
  }
}

// Scales that the heads take in turn, laid out in every way that kernels tell apart: one for each
// head, for each element, and for each element with a gap behind it.
struct HeadScales {
  std::vector<float> per_head, per_element, with_gaps;

  explicit HeadScales(const std::vector<float>& scales) {
    for (size_t h = 0; h < size_t{kHeads}; ++h) {
      per_head.push_back(scales[h % scales.size()]);
      per_element.insert(per_element.end(), size_t{kDim}, per_head.back());
    }
    for (const float scale : per_element) with_gaps.insert(with_gaps.end(), {scale, 1e9f});
  }

  std::vector<ScaleView> Views() const {
    ScaleView gaps = ScaleView::PerChannel(with_gaps.data(), 2 * kDim);
    gaps.dim_stride *= 2;
    return {ScaleView::PerHead(per_head.data()), ScaleView::PerChannel(per_element.data(), kDim),
            gaps};
  }
};

TEST_CASE("every quantum is read as what it is worth", "[conversion]") {
  const HeadScales scales({1.0f, 0.1f, 3.14159265f / 127.0f, -0.37f, 1e-38f, 1e-45f, 2e36f, 3e38f,
                           0.0f, -0.0f, HUGE_VALF, -HUGE_VALF, NAN});
  std::vector<int8_t> quanta(kElements);
  for (size_t i = 0; i < kElements; ++i) {
    quanta[i] = static_cast<int8_t>(static_cast<int>(i % 256) - 128);
  }
  for (const char* tier : SupportedTiers()) {
    for (const ScaleView& scale : scales.Views()) {
      std::vector<float> out(kElements);
      PassThrough(tier, Values(quanta.data(), DType::kI8, scale), Results(out.data(), DType::kF32));
      size_t wrong = 0;
      for (size_t i = 0; i < kElements; ++i) {
        const float factor = AsTierSees(tier, scales.per_element[i]);
        const float expected = AsTierSees(tier, F32FromI8(quanta[i], factor));
        if (SameOrBothNan(out[i], expected)) continue;
        UNSCOPED_INFO(int{quanta[i]} << " times " << scales.per_element[i] << ": " << out[i]
                                     << ", not " << expected);
        if (++wrong == 5) break;
      }
      INFO(tier << ", head stride " << scale.head_stride << ", dim stride " << scale.dim_stride);
      CHECK(wrong == 0);
    }
  }
}

// Halves of quanta from -256 to 255.5, a float on either side of each, and what no quantum can be.
TEST_CASE("results become the nearest quantum, saturated", "[conversion]") {
  const HeadScales scales({1.0f, 0.25f, 0.1f, 3.14159265f / 127.0f, 1e-38f, 2e36f, 7.0f, 1e-40f});
  const float special[] = {NAN, HUGE_VALF, -HUGE_VALF, 3e38f, -3e38f, 1e-45f, -0.0f, 0.0f};
  const size_t heads_per_scale = 8;
  std::vector<float> values(kElements);
  for (size_t i = 0; i < kElements; ++i) {
    // Heads of one scale lie `heads_per_scale` apart and count on.
    const size_t head = i / size_t{kDim};
    const size_t n = head / heads_per_scale * size_t{kDim} + i % size_t{kDim};
    const float half_quanta = static_cast<float>(n / 4 % 1024) - 512.0f;
    const float value = 0.5f * half_quanta * scales.per_element[i];
    const float beside[] = {value, std::nextafter(value, HUGE_VALF),
                            std::nextafter(value, -HUGE_VALF), special[n / 4 % 8]};
    values[i] = beside[n % 4];
  }
  for (const char* tier : SupportedTiers()) {
    for (const ScaleView& scale : scales.Views()) {
      std::vector<int8_t> out(kElements);
      PassThrough(tier, Values(values.data(), DType::kF32), Results(out.data(), DType::kI8, scale));
      size_t wrong = 0;
      for (size_t i = 0; i < kElements; ++i) {
        const int8_t expected = I8FromF32(AsTierSees(tier, values[i]), scales.per_element[i]);
        if (out[i] == expected) continue;
        UNSCOPED_INFO(values[i] << " by " << scales.per_element[i] << ": " << int{out[i]}
                                << ", not " << int{expected});
        if (++wrong == 5) break;
      }
      INFO(tier << ", head stride " << scale.head_stride << ", dim stride " << scale.dim_stride);
      CHECK(wrong == 0);
    }
  }
}

}  // namespace
}  // namespace testing
}  // namespace sightline
