// Score modifications: softcap, additive bias, T5's relative-position bias, ALiBi and sinks; and
// lse. Each alone in prefill and decode, T5's buckets against a table of their own, and numbers at
// the edge: infinite biases, sinks that take all or nothing, scores far beyond the cap.
#include <math.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>
#include <functional>
#include <vector>

#include "support/check.h"
#include "support/problem.h"
#include "support/tiers.h"

namespace sightline {
namespace testing {
namespace {

// Two heads that share K and V: biases by distance are added row by row, but by tiles where each
// head has its own, see OfOwnKeys.
Case ModifiedCase(int64_t q_len, int64_t kv_len) {
  Case c;
  c.q_len = q_len;
  c.kv_len = kv_len;
  c.heads = 2;
  c.head_dim = 12;
  c.v_head_dim = 20;
  c.distribution = Distribution::kKBias;  // integers of K have lost a mean that scores have to have
  c.features.lse = true;
  return c;
}

Case OfOwnKeys(Case c) {
  c.kv_heads = c.heads;
  return c;
}

// Where biases by distance and softcaps have arithmetic of their own in the quantised precisions,
// beside f32.
void CheckFixedPoint(const Problem& problem) {
  Expectations expectations(problem);
  for (const Precision precision : {Precision::kI8, Precision::kI8Fine, Precision::kF32}) {
    for (const char* tier : SupportedTiers()) {
      if (!IsAffordable(problem.c, tier) || !TakesTurn(tier)) continue;
      INFO(problem.c.ToString() << ", " << Name(precision) << " on " << tier);
      const Setup setup = {tier, precision};
      const Expected& expected = expectations(setup);
      Tensor lse;
      CHECK_THAT(Attend(problem, setup, &lse), IsClose(expected));
      CHECK_THAT(lse, IsClose(expected.Lse()));
    }
  }
}

void AddSoftcap(Features* f) { f->softcap = 1.5f; }
void AddBias(Features* f) {
  f->bias.on = true;
  f->bias.density = 0.9;
}
void AddBuckets(Features* f) { f->relative_buckets = {32, 128, true}; }
void AddOneWayBuckets(Features* f) { f->relative_buckets = {32, 128, false}; }
void AddAlibi(Features* f) { f->alibi_slopes = {0.5f, 0.0625f}; }
void AddSinks(Features* f) { f->sinks = {1.0f, -0.5f}; }
void AddAll(Features* f) {
  AddSoftcap(f);
  AddBias(f);
  AddBuckets(f);
  AddAlibi(f);
  AddSinks(f);
}
using Modification = void (*)(Features*);
constexpr Modification kModifications[] = {AddSoftcap, AddBias,  AddBuckets, AddOneWayBuckets,
                                           AddAlibi,   AddSinks, AddAll};

TEST_CASE("each score modification around every tile size", "[modifications]") {
  const Modification modification = GENERATE(from_range(kModifications));
  constexpr int64_t kQueries[] = {1, 3, 15, 17, 48, 49, 192, 193};
  uint64_t seed = 0;
  for (const int64_t kv_len : {1, 16, 63, 64, 65, 127, 128, 129, 192, 1023, 1025}) {
    for (const int64_t step : {0, 3, 6}) {
      Case c = ModifiedCase(kQueries[(seed + static_cast<uint64_t>(step)) % 8], kv_len);
      modification(&c.features);
      c.causal = ++seed % 2 == 0;
      if (seed / 2 % 2 == 0) c = OfOwnKeys(c);
      CheckEverywhere(Problem(c, seed));
    }
  }
}

TEST_CASE("lse alone", "[modifications]") {
  const Source source = GENERATE(Source::kTensors, Source::kMemory, Source::kCache);
  uint64_t seed = 1000;
  for (const Layout layout : {Layout::kDense, Layout::kHeadsFirst, Layout::kPadded,
                              Layout::kReversed, Layout::kDimStrided}) {
    for (const int64_t q_len : {1, 4, 50}) {
      for (const int64_t kv_len : {0, 1, 129, 300}) {
        Case c = ModifiedCase(q_len, kv_len);
        if (kv_len == 0) c.distribution = Distribution::kGaussian;
        c.kv_heads = 2;
        c.heads = 4;
        c.kv_batch = 2;
        c.beams = 2;
        c.causal = ++seed % 2 == 0;
        c.features.lse_layout = layout;
        CheckEverywhere(Problem(c, seed), source);
      }
    }
  }
}

TEST_CASE("modifications beside masks, over a memory and a cache", "[modifications]") {
  const Source source = GENERATE(Source::kMemory, Source::kCache);
  uint64_t seed = 1500;
  for (const Modification modification : kModifications) {
    for (const int64_t q_len : {1, 4, 40}) {
      Case c = ModifiedCase(q_len, 200);
      modification(&c.features);
      c.features.window_left = 70;
      c.features.kv_lens = {170};
      c.features.mask.on = true;
      if (++seed % 2 == 0) c = OfOwnKeys(c);
      CheckEverywhere(Problem(c, seed), source);
    }
  }
}

// ---- Bias -------------------------------------------------------------------------------------

TEST_CASE("a bias of each type, layout and along each axis", "[modifications]") {
  constexpr Layout kLayouts[] = {Layout::kDense,      Layout::kHeadsFirst, Layout::kFused,
                                 Layout::kDimStrided, Layout::kDimFirst,   Layout::kReversed,
                                 Layout::kPadded,     Layout::kSharedHeads};
  constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};
  uint64_t seed = 2000;
  for (unsigned varies = 0; varies < kNumGranularities; ++varies) {
    for (const Layout layout : kLayouts) {
      Case c = ModifiedCase(++seed % 2 == 0 ? 2 : 21, 137);
      c.kv_batch = 2;
      c.beams = 2;
      c.kv_heads = seed / 2 % 2 == 0 ? 1 : 2;
      c.placement = seed / 4 % 2 == 0 ? Placement::kAtEnd : Placement::kAtFront;
      AddBias(&c.features);
      c.features.bias_dtype = kDTypes[seed % 3];
      c.features.bias.varies = varies;
      c.features.bias.layout = layout;
      c.features.bias.extra_keys = static_cast<int64_t>(seed % 4) * 5;
      CheckEverywhere(Problem(c, seed));
    }
  }
}

// Sets the bias of both heads.
void SetBias(Problem* problem, int64_t i, int64_t j, float x) {
  for (int64_t h = 0; h < 2; ++h) problem->bias.Set(0, i, h, j, x);
}

TEST_CASE("a bias of -inf hides keys, tiles and rows", "[modifications]") {
  uint64_t seed = 3000;
  for (const int64_t q_len : {1, 4, 50}) {
    for (const int64_t kv_len : {1, 130, 300, 1100}) {
      for (const bool has_sinks : {false, true}) {
        Case c = ModifiedCase(q_len, kv_len);
        AddBias(&c.features);
        if (has_sinks) AddSinks(&c.features);
        Problem problem(c, ++seed);
        for (int64_t i = 0; i < q_len; ++i) {
          for (int64_t j = 0; j < kv_len; ++j) {
            const bool patterns[] = {j < 64, j >= 64 && j < 256, true, j % 128 != 127, j != 0};
            if (patterns[(i + static_cast<int64_t>(seed)) % 5]) {
              SetBias(&problem, i, j, -HUGE_VALF);
            }
          }
        }
        CheckEverywhere(problem);
      }
    }
  }
}

TEST_CASE("a bias of +inf makes its row NaN, unless it is hidden", "[modifications]") {
  for (const int64_t q_len : {1, 4, 50}) {
    for (const int64_t key : {0, 63, 64, 200, 299}) {
      Case c = ModifiedCase(q_len, 300);
      AddBias(&c.features);
      c.features.bias.density = 1.0;
      c.features.kv_lens = {299};
      c.features.mask.on = true;
      Problem problem(c, 4000);
      // Seen by every other query.
      for (int64_t i = 0; i < q_len; ++i) {
        SetBias(&problem, i, key, HUGE_VALF);
        for (int64_t h = 0; h < 2; ++h) problem.mask.SetQuantum(0, i, h, key, i % 2 == 0 ? 1 : 0);
      }
      for (const Precision precision : kPrecisions) {
        for (const char* tier : TiersOf(precision)) {
          INFO(c.ToString() << ", key " << key << ", " << Name(precision) << " on " << tier);
          Tensor lse;
          const Tensor out = Attend(problem, {tier, precision}, &lse);
          int64_t num_wrong = 0;
          for (int64_t i = 0; i < q_len; ++i) {
            const bool is_lost = i % 2 == 0 && key < 299;
            for (int64_t h = 0; h < 2; ++h) {
              num_wrong += isnan(lse.Get(0, i, h, 0)) == is_lost ? 0 : 1;
              for (int64_t d = 0; d < c.v_head_dim; ++d) {
                num_wrong += isnan(out.Get(0, i, h, d)) == is_lost ? 0 : 1;
              }
            }
          }
          CHECK(num_wrong == 0);
        }
      }
    }
  }
}

TEST_CASE("biases hundreds apart", "[modifications]") {
  uint64_t seed = 4500;
  for (const float gain : {30.0f, 1000.0f, 1e6f}) {
    for (const int64_t q_len : {1, 4, 50}) {
      Case c = ModifiedCase(q_len, 300);
      AddBias(&c.features);
      c.features.bias.density = 1.0;
      Problem problem(c, ++seed);
      for (int64_t i = 0; i < q_len; ++i) {
        for (int64_t h = 0; h < 2; ++h) {
          for (int64_t j = 0; j < 300; ++j) {
            problem.bias.Set(0, i, h, j, gain * problem.bias.Get(0, i, h, j));
          }
        }
      }
      CheckEverywhere(problem);
    }
  }
}

// ---- Sinks ------------------------------------------------------------------------------------

TEST_CASE("sinks of any size", "[modifications]") {
  uint64_t seed = 5000;
  for (const float sink : {-HUGE_VALF, -1e30f, -1e4f, -200.0f, -50.0f, 0.0f, 20.0f, 50.0f, 88.0f,
                           200.0f, 1e4f, 1e30f}) {
    for (const int64_t q_len : {1, 4, 50}) {
      for (const int64_t kv_len : {1, 129, 300}) {
        for (const bool has_bias : {false, true}) {
          Case c = ModifiedCase(q_len, kv_len);
          c.features.sinks = {sink, 1.0f};
          if (has_bias) AddBias(&c.features);
          CheckEverywhere(Problem(c, ++seed));
        }
      }
    }
  }
}

// ---- Softcap ----------------------------------------------------------------------------------

TEST_CASE("softcap of scores far beyond it, and far below", "[modifications]") {
  uint64_t seed = 6000;
  for (const float softcap : {1e-3f, 0.5f, 50.0f, 1e6f}) {
    for (const float q_gain : {1e-6f, 1.0f, 100.0f, 1e8f}) {
      for (const int64_t q_len : {1, 4, 50}) {
        Case c = ModifiedCase(q_len, 150);
        c.q_gain = q_gain;
        c.features.softcap = softcap;
        CheckEverywhere(Problem(c, ++seed));
      }
    }
  }
}

// Signs of four channels, and magnitudes that are the same in all of them: so int8 has scores up to
// the cap and a little beyond of rows that fixed point takes. Caps around those whose coefficients
// fit 15 bits.
TEST_CASE("softcaps of hundreds of octaves", "[modifications]") {
  uint64_t seed = 6300;
  for (const float softcap : {176.0f, 178.0f, 203.0f, 205.0f, 207.0f, 209.0f, 243.0f}) {
    Case c = ModifiedCase(96, 256);
    c.head_dim = 4;
    c.distribution = Distribution::kGaussian;
    c.features.softcap = softcap;
    c.features.mask.on = true;
    Problem problem(c, ++seed);
    const auto sign = [](int64_t pattern, int64_t d) {
      return (pattern >> d) % 2 == 0 ? 1.0f : -1.0f;
    };
    for (int64_t d = 0; d < c.head_dim; ++d) {
      for (int64_t j = 0; j < c.kv_len; ++j) {
        const float magnitude = static_cast<float>(j % 16 + 1) / 16.0f;
        problem.k.Set(0, j, 0, d, magnitude * sign(j / 16, d));
      }
      for (int64_t i = 0; i < c.q_len; ++i) {
        for (int64_t h = 0; h < c.heads; ++h) {  // scores up to 0.35 to 1.05 times the cap
          const float part = static_cast<float>(i / 2 % 15 + 7) / 20.0f;
          problem.q.Set(0, i, h, d, 0.5f * softcap * part * sign(i, d));
        }
      }
    }
    // Odd queries see none but negative scores.
    for (int64_t i = 0; i < c.q_len; ++i) {
      for (int64_t h = 0; h < c.heads; ++h) {
        for (int64_t j = 0; j < c.kv_len; ++j) {
          const bool is_opposite = ((j / 16) ^ i) % 16 == 15;
          problem.mask.SetQuantum(0, i, h, j, i % 2 == 0 || (is_opposite && j % 16 >= 8) ? 1 : 0);
        }
      }
    }
    CheckFixedPoint(problem);
  }
}

// Above the cap nothing but a bias gets there.
TEST_CASE("the cap comes before the biases", "[modifications]") {
  for (const int64_t q_len : {1, 4, 50}) {
    Case c = ModifiedCase(q_len, 70);
    c.features.softcap = 2.0f;
    AddBias(&c.features);
    c.features.bias.density = 1.0;
    Problem problem(c, 6500);
    for (int64_t i = 0; i < q_len; ++i) {
      for (int64_t j = 0; j < 70; ++j) SetBias(&problem, i, j, j == 42 ? 100.0f : 0.0f);
    }
    for (const Precision precision : kPrecisions) {
      for (const char* tier : TiersOf(precision)) {
        INFO(c.ToString() << ", " << Name(precision) << " on " << tier);
        Tensor lse;
        Attend(problem, {tier, precision}, &lse);
        for (int64_t i = 0; i < q_len; ++i) {
          // Scores in steps of 1/64 octave are half a step off, and P in bf16 is by 2^-8.
          CHECK(fabsf(lse.Get(0, i, 0, 0) - 100.0f) <= 2.01f);
        }
      }
    }
  }
}

// ---- Relative positions -----------------------------------------------------------------------

struct Buckets {
  int64_t bucket;
  int64_t count;
};

// Buckets of key position - query position from -200 to 200, with 32 buckets up to 128, and with 16
// up to 20: computed with fractions. Where each side has n buckets, a distance d >= m = n / 2 is in
// bucket m + i for the largest i with (d / m)^m >= (max_distance / m)^i, and never beyond the last;
// these agree with what T5 in Hugging Face Transformers computes in f32. With 128 some borders are
// at distances themselves (16, 32 and 64 both ways), with 20 none but the last is.
constexpr RelativeBuckets kBothWays = {32, 128, true};
constexpr Buckets kRunsOfBothWays[] = {
    {15, 110}, {14, 27}, {13, 18}, {12, 14}, {11, 9},  {10, 7},  {9, 4},   {8, 4},
    {7, 1},    {6, 1},   {5, 1},   {4, 1},   {3, 1},   {2, 1},   {1, 1},   {0, 1},
    {17, 1},   {18, 1},  {19, 1},  {20, 1},  {21, 1},  {22, 1},  {23, 1},  {24, 4},
    {25, 4},   {26, 7},  {27, 9},  {28, 14}, {29, 18}, {30, 27}, {31, 110}};
constexpr RelativeBuckets kOneWay = {32, 128, false};
constexpr Buckets kRunsOfOneWay[] = {
    {31, 88}, {30, 14}, {29, 12}, {28, 10}, {27, 10}, {26, 8}, {25, 7}, {24, 6},
    {23, 6},  {22, 5},  {21, 4},  {20, 4},  {19, 3},  {18, 3}, {17, 2}, {16, 3},
    {15, 1},  {14, 1},  {13, 1},  {12, 1},  {11, 1},  {10, 1}, {9, 1},  {8, 1},
    {7, 1},   {6, 1},   {5, 1},   {4, 1},   {3, 1},   {2, 1},  {1, 1},  {0, 201}};

constexpr RelativeBuckets kNearBothWays = {16, 20, true};
constexpr Buckets kRunsOfNearBothWays[] = {{7, 187}, {6, 5},  {5, 3},  {4, 2},  {3, 1},
                                           {2, 1},   {1, 1},  {0, 1},  {9, 1},  {10, 1},
                                           {11, 1},  {12, 2}, {13, 3}, {14, 5}, {15, 187}};
constexpr RelativeBuckets kNearOneWay = {16, 20, false};
constexpr Buckets kRunsOfNearOneWay[] = {{15, 183}, {14, 2}, {13, 1}, {12, 2}, {11, 1}, {10, 1},
                                         {9, 2},    {8, 1},  {7, 1},  {6, 1},  {5, 1},  {4, 1},
                                         {3, 1},    {2, 1},  {1, 1},  {0, 201}};

struct BucketTable {
  RelativeBuckets of;
  std::vector<int64_t> expected;  // of the distances from -200 to 200
};

std::vector<BucketTable> BucketTables() {
  std::vector<BucketTable> tables;
  const auto add = [&](const RelativeBuckets& of, const auto& runs) {
    tables.push_back({of, {}});
    std::vector<int64_t>& expected = tables.back().expected;
    for (const Buckets& run : runs) {
      expected.insert(expected.end(), static_cast<size_t>(run.count), run.bucket);
    }
    REQUIRE(expected.size() == 401);
  };
  add(kBothWays, kRunsOfBothWays);
  add(kOneWay, kRunsOfOneWay);
  add(kNearBothWays, kRunsOfNearBothWays);
  add(kNearOneWay, kRunsOfNearOneWay);
  return tables;
}

TEST_CASE("the oracle's buckets are those of the reference", "[modifications]") {
  for (const BucketTable& table : BucketTables()) {
    for (int64_t relative = -200; relative <= 200; ++relative) {
      INFO(table.of.num_buckets << " buckets up to " << table.of.max_distance << ", distance "
                                << relative);
      CHECK(RelativeBucket(table.of, relative) ==
            table.expected[static_cast<size_t>(relative + 200)]);
    }
  }
}

// Query i of 401 sees one key: lse is what that key's bucket says, but for steps of fixed point.
TEST_CASE("the kernels' buckets are those of the reference", "[modifications]") {
  for (const BucketTable& table : BucketTables()) {
    for (const int64_t key : {200, 0}) {
      Case c;
      c.q_len = 401;
      c.kv_len = 201;
      c.head_dim = 4;
      c.features.q_start = key - 200;
      c.features.mask.on = true;
      c.features.lse = true;
      c.features.relative_buckets = table.of;
      Problem problem(c, 7000);
      for (int64_t i = 0; i < c.q_len; ++i) {
        for (int64_t d = 0; d < c.head_dim; ++d) problem.q.Set(0, i, 0, d, 0.0f);
        for (int64_t j = 0; j < c.kv_len; ++j) {
          problem.mask.SetQuantum(0, i, 0, j, j == key ? 1 : 0);
        }
      }
      for (int64_t bucket = 0; bucket < table.of.num_buckets; ++bucket) {
        problem.relative_bias.Set(0, bucket, 0, 0, static_cast<float>(bucket));
      }
      for (const Precision precision : kPrecisions) {
        for (const char* tier : TiersOf(precision)) {
          INFO(table.of.num_buckets << " buckets up to " << table.of.max_distance << ", "
                                    << Name(precision) << " on " << tier << ", key " << key);
          Tensor lse;
          Attend(problem, {tier, precision}, &lse);
          int64_t num_wrong = 0;
          for (int64_t i = 0; i < c.q_len; ++i) {
            const float bucket = static_cast<float>(table.expected[static_cast<size_t>(400 - i)]);
            num_wrong += fabsf(lse.Get(0, i, 0, 0) - bucket) < 0.1f ? 0 : 1;
          }
          CHECK(num_wrong == 0);
        }
      }
    }
  }
}

TEST_CASE("buckets of any number and reach", "[modifications]") {
  uint64_t seed = 8000;
  for (const int64_t num_buckets : {2, 4, 32, 64, 256, 4096}) {
    for (const int64_t max_distance : {3, 33, 129, 2049, 65536}) {
      for (const bool bidirectional : {false, true}) {
        const int64_t max_exact = num_buckets / (bidirectional ? 4 : 2);
        if (max_distance <= max_exact || max_exact == 0) continue;
        for (const int64_t q_len : {1, 4, 50}) {
          Case c = ModifiedCase(q_len, 200);
          c.features.relative_buckets = {num_buckets, max_distance, bidirectional};
          if (++seed % 3 == 0) c.features.q_start = 70000;  // far beyond
          if (seed % 3 == 1) c.features.q_start = 100;
          if (seed / 3 % 2 == 0) c = OfOwnKeys(c);
          CheckEverywhere(Problem(c, seed));
        }
      }
    }
  }
}

TEST_CASE("ALiBi before, at and behind the query", "[modifications]") {
  uint64_t seed = 9000;
  for (const int64_t q_start :
       {AttentionArgs::kBottomRight, int64_t{0}, int64_t{-40}, int64_t{90}, int64_t{5000}}) {
    for (const int64_t q_len : {1, 4, 50}) {
      for (const float slope : {0.0f, 1.0f, 0.00390625f, -0.25f}) {
        Case c = ModifiedCase(q_len, 180);
        c.features.q_start = q_start;
        c.features.alibi_slopes = {slope, 0.5f};
        if (++seed % 2 == 0) c = OfOwnKeys(c);
        CheckEverywhere(Problem(c, seed));
      }
    }
  }
}

// Prefill in fixed point makes words of a table once, if its places are at most 1024, padding
// included: max_distance <= 319.
TEST_CASE("buckets around the longest table in fixed point", "[modifications]") {
  uint64_t seed = 9500;
  for (const int64_t max_distance : {319, 320, 450}) {
    for (const bool bidirectional : {false, true}) {
      for (const int64_t q_start : {AttentionArgs::kBottomRight, int64_t{300}, int64_t{-250}}) {
        for (const int64_t q_len : {50, 193}) {
          Case c = OfOwnKeys(ModifiedCase(q_len, 900));
          c.features.q_start = q_start;
          c.features.relative_buckets = {32, max_distance, bidirectional};
          CheckFixedPoint(Problem(c, ++seed));
        }
      }
    }
  }
}

TEST_CASE("tiles beyond the last bucket on either side", "[modifications]") {
  uint64_t seed = 9600;
  for (const int64_t max_distance : {33, 128}) {
    for (const int64_t q_start : {70000, -500, 500}) {
      for (const bool has_softcap : {false, true}) {
        Case c = OfOwnKeys(ModifiedCase(51, 1025));
        c.features.q_start = q_start;
        c.features.relative_buckets = {32, max_distance, true};
        if (has_softcap) AddSoftcap(&c.features);
        CheckFixedPoint(Problem(c, ++seed));
      }
    }
  }
}

// Sets the bias of a bucket of both heads, in octaves.
void SetBucket(Problem* problem, int64_t bucket, double octaves) {
  for (int64_t h = 0; h < 2; ++h) {
    problem->relative_bias.Set(0, bucket, h, 0, static_cast<float>(octaves * log(2.0)));
  }
}

// Fixed point holds biases up to 128 octaves from their middle.
TEST_CASE("buckets hundreds of octaves apart", "[modifications]") {
  uint64_t seed = 9700;
  for (const double spread : {127.9, 128.1, 600.0}) {
    for (const double middle : {0.0, 1000.25}) {
      for (const float q_gain : {1.0f, 60.0f}) {
        for (const bool far_is_high : {false, true}) {
          Case c = OfOwnKeys(ModifiedCase(70, 500));
          c.q_gain = q_gain;
          c.features.q_start = 200;
          c.features.relative_buckets = {32, 128, true};
          Problem problem(c, ++seed);
          for (int64_t bucket = 0; bucket < 32; ++bucket) {
            const bool is_far = bucket % 16 >= 12;
            SetBucket(&problem, bucket, is_far == far_is_high ? middle + spread : middle - spread);
          }
          CheckFixedPoint(problem);
        }
      }
    }
  }
}

TEST_CASE("buckets that are all the same", "[modifications]") {
  for (const double octaves : {0.0, 7.3, -3000.0}) {
    for (const int64_t max_distance : {128, 400}) {
      Case c = OfOwnKeys(ModifiedCase(60, 500));
      c.features.q_start = 200;
      c.features.relative_buckets = {32, max_distance, true};
      Problem problem(c, 9800);
      for (int64_t bucket = 0; bucket < 32; ++bucket) SetBucket(&problem, bucket, octaves);
      CheckFixedPoint(problem);
    }
  }
}

// Of keys far behind the query: the first queries see some, later ones do not, or a mask hides them
// from all.
TEST_CASE("NaN and infinities in a bucket reach the rows that see it", "[modifications]") {
  uint64_t seed = 9900;
  for (const double special : {static_cast<double>(NAN), HUGE_VAL, -HUGE_VAL}) {
    for (const bool causal : {false, true}) {
      for (const int64_t max_distance : {128, 400}) {
        Case c = OfOwnKeys(ModifiedCase(190, 500));
        c.causal = causal;
        c.features.q_start = 300 + 100 - max_distance / 2;
        c.features.relative_buckets = {32, max_distance, true};
        Problem problem(c, ++seed);
        SetBucket(&problem, 31, special);
        CheckFixedPoint(problem);
      }
    }
  }
}

TEST_CASE("buckets and ALiBi together", "[modifications]") {
  uint64_t seed = 10000;
  for (const int64_t q_start : {AttentionArgs::kBottomRight, int64_t{0}, int64_t{-600}}) {
    for (const bool bidirectional : {false, true}) {
      for (const float slope : {0.03125f, 1.5f}) {
        Case c = OfOwnKeys(ModifiedCase(53, 450));
        c.features.q_start = q_start;
        c.features.relative_buckets = {32, 128, bidirectional};
        c.features.alibi_slopes = {slope, -0.0625f};
        CheckFixedPoint(Problem(c, ++seed));
      }
    }
  }
}

// Distances on both sides of 2^31.
TEST_CASE("ALiBi as far away as can be", "[modifications]") {
  constexpr int64_t kFarthest = INT32_MAX - 255;  // what the library takes
  uint64_t seed = 10100;
  for (const int64_t q_start : {-kFarthest, kFarthest}) {
    for (const bool has_buckets : {false, true}) {
      for (const int64_t kv_heads : {1, 2}) {
        Case c = ModifiedCase(300, 330);
        c.kv_heads = kv_heads;
        c.features.q_start = q_start;
        c.features.alibi_slopes = {ldexpf(1.0f, -20), -ldexpf(1.0f, -25)};
        if (has_buckets) AddBuckets(&c.features);
        CheckFixedPoint(Problem(c, ++seed));
      }
    }
  }
}

}  // namespace
}  // namespace testing
}  // namespace sightline
