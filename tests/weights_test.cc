// Attention weights and their sums over queries, in every precision and on every tier, against the
// oracle (support/weights.h).
#include <math.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <functional>
#include <string>
#include <vector>

#include "dispatch/kernel_table.h"
#include "support/check.h"
#include "support/numeric.h"
#include "support/problem.h"
#include "support/threads.h"
#include "support/tiers.h"
#include "support/weights.h"

namespace sightline {
namespace testing {
namespace {

// ---- What comes out ---------------------------------------------------------------------------

void CheckWeights(ExpectedWeights* expected, const Ask& ask, Source source = Source::kTensors) {
  const Problem& problem = expected->problem();
  INFO(problem.c.ToString() << "; " << ask.ToString() << "; source " << static_cast<int>(source));
  for (const Precision precision : kPrecisions) {
    for (const char* tier : TiersOf(precision)) {
      if (!IsAffordable(problem.c, tier) || !TakesTurn(tier)) continue;
      INFO("precision " << Name(precision) << ", tier " << tier);
      const Setup setup = {tier, precision, source};
      const Answer answer = AnswerOf(problem, setup, ask);
      if (ask.weights) CHECK_THAT(answer.weights, IsClose(expected->Weights(setup, ask)));
      if (ask.mass) CHECK_THAT(answer.mass, IsClose(expected->Mass(setup, ask)));
    }
  }
}

void CheckWeights(const Problem& problem, const Ask& ask, Source source = Source::kTensors) {
  ExpectedWeights expected(problem);
  CheckWeights(&expected, ask, source);
}

// ---- Cases ------------------------------------------------------------------------------------

Case SmallCase(int64_t q_len, int64_t kv_len) {
  Case c;
  c.q_len = q_len;
  c.kv_len = kv_len;
  c.head_dim = 16;
  c.v_head_dim = 5;
  c.heads = 4;
  c.kv_heads = 2;
  c.features.lse = true;
  return c;
}

// The four shapes of mass in turn.
Ask WithMassShape(Ask ask, uint64_t turn) {
  ask.mass_by_kv_head = turn % 2 != 0;
  ask.mass_by_kv_batch = turn / 2 % 2 != 0;
  return ask;
}

TEST_CASE("weights around every tile size", "[weights]") {
  uint64_t seed = 11000;
  const auto check = [&](int64_t q_len, int64_t kv_len) {
    Case c = SmallCase(q_len, kv_len);
    c.placement = seed % 2 == 0 ? Placement::kAtEnd : Placement::kAtFront;
    c.causal = seed % 3 == 0;
    CheckWeights(Problem(c, seed), WithMassShape({}, seed));
    ++seed;
  };
  // Rows: one query, the blocks of few, many, more than a task of 192.
  for (const int64_t q_len : {1,  2,  3,  4,  5,  6,  7,  8,  9,   15,  16,  17,  31,  32,
                              33, 47, 63, 64, 65, 95, 96, 97, 127, 191, 192, 193, 250, 385}) {
    check(q_len, 130);
  }
  for (const int64_t kv_len : {1,   2,   3,   7,   8,   15,  16,  17,  31,   63,   64,  65,
                               127, 128, 129, 160, 255, 256, 257, 384, 1023, 1024, 1025}) {
    check(1, kv_len);
    check(3, kv_len);
    check(20, kv_len);
  }
}

TEST_CASE("weights of keys beyond a chunk of decode", "[weights]") {
  for (const int64_t kv_len : {2048, 2049, 4096, 4225}) {
    Case c = SmallCase(1, kv_len);
    c.heads = c.kv_heads = 1;
    CheckWeights(Problem(c, 11500), {});
  }
}

TEST_CASE("weights of any head_dim", "[weights]") {
  uint64_t seed = 11600;
  for (const int64_t head_dim : {1, 2, 3, 15, 16, 17, 40, 64, 80, 128, 129, 256, 511, 512}) {
    for (const int64_t q_len : {2, 40}) {
      Case c = SmallCase(q_len, 150);
      c.heads = c.kv_heads = 1;
      c.head_dim = head_dim;
      CheckWeights(Problem(c, ++seed), {});
    }
  }
}

TEST_CASE("weights over beams and groups", "[weights]") {
  uint64_t seed = 12000;
  for (const int64_t q_len : {1, 3, 30, 100}) {
    for (const int64_t beams : {1, 2, 5}) {
      for (const int64_t heads : {1, 3, 6}) {
        Case c = SmallCase(q_len, 140);
        c.kv_batch = 2;
        c.beams = beams;
        c.heads = heads;
        c.kv_heads = heads == 6 ? 3 : 1;
        c.causal = seed % 2 == 0;
        const Problem problem(c, ++seed);
        ExpectedWeights expected(problem);
        for (uint64_t turn = 0; turn < 4; ++turn) {
          Ask ask = WithMassShape({}, turn);
          ask.weights = turn == 0;
          CheckWeights(&expected, ask);
        }
      }
    }
  }
}

// Rows of one query alone are more than a task takes.
TEST_CASE("weights of hundreds of beams", "[weights]") {
  for (const int64_t beams : {191, 192, 193, 400}) {
    Case c = SmallCase(2, 40);
    c.beams = beams;
    c.heads = c.kv_heads = 1;
    Ask ask;
    ask.mass_by_kv_batch = beams == 400;
    CheckWeights(Problem(c, 12500), ask);
  }
}

TEST_CASE("weights of heads in any order", "[weights]") {
  uint64_t seed = 13000;
  const std::vector<std::vector<int32_t>> kLists = {
      {0}, {3}, {3, 0}, {2, 2}, {1, 3, 1, 0, 1, 2}, {3, 2, 1, 0}};
  for (const int64_t q_len : {1, 4, 50, 200}) {
    Case c = SmallCase(q_len, 135);
    c.beams = 2;
    c.causal = true;
    const Problem problem(c, ++seed);
    ExpectedWeights expected(problem);
    for (const bool average : {false, true}) {
      for (const std::vector<int32_t>& heads : kLists) {
        CheckWeights(&expected, OfHeads(heads, average));
      }
      Ask all;
      all.average = average;
      CheckWeights(&expected, all);
    }
  }
}

TEST_CASE("weights of some queries", "[weights]") {
  uint64_t seed = 14000;
  const auto range = [](int32_t begin, int32_t end, int32_t step) {
    std::vector<int32_t> x;
    for (int32_t i = begin; i < end; i += step) x.push_back(i);
    return x;
  };
  const int32_t q_len = 500;
  std::vector<std::vector<int32_t>> lists = {{},
                                             {0},
                                             {q_len - 1},
                                             {0, q_len - 1},
                                             {3, 4, 5, 9, 10, 100, 191, 192, 193, 194, 400},
                                             range(0, q_len, 1),
                                             range(7, q_len, 1),
                                             range(0, q_len, 2),
                                             range(1, q_len, 7),
                                             range(150, 400, 1)};
  // Runs of 1, 2, 3 … queries with one left out after each.
  lists.emplace_back();
  for (int32_t i = 0, run = 1; i < q_len; i += run + 1, ++run) {
    for (int32_t j = i; j < std::min(i + run, q_len); ++j) lists.back().push_back(j);
  }
  for (const int64_t beams : {1, 3}) {
    Case c = SmallCase(q_len, 140);
    c.heads = c.kv_heads = 1;
    c.beams = beams;
    c.causal = true;
    const Problem problem(c, ++seed);
    ExpectedWeights expected(problem);
    for (const std::vector<int32_t>& queries : lists) {
      Ask ask = OfQueries(queries);
      ask.mass = false;
      CheckWeights(&expected, ask);
    }
  }
  Case c = SmallCase(60, 140);
  const Problem problem(c, ++seed);
  ExpectedWeights expected(problem);
  for (const bool average : {false, true}) {
    Ask ask = OfHeads({2, 0, 2}, average);
    ask.lists_queries = true;
    ask.queries = {0, 1, 2, 17, 30, 31, 32, 33, 34, 35, 36, 37, 38, 59};
    CheckWeights(&expected, ask);
  }
}

TEST_CASE("weights of each type and layout, of more keys than there are", "[weights]") {
  uint64_t seed = 15000;
  for (const int64_t q_len : {3, 40}) {
    for (const Placement placement : {Placement::kAtEnd, Placement::kAtFront}) {
      Case c = SmallCase(q_len, 133);
      c.placement = placement;
      c.beams = 2;
      const Problem problem(c, ++seed);
      ExpectedWeights expected(problem);
      for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16}) {
        for (const Layout layout :
             {Layout::kDense, Layout::kHeadsFirst, Layout::kFused, Layout::kDimStrided,
              Layout::kDimFirst, Layout::kReversed, Layout::kPadded}) {
          Ask ask = OfHeads({2, 1}, false);
          ask.dtype = dtype;
          ask.layout = ask.mass_layout = layout;
          ask.extra_keys = static_cast<int64_t>(++seed % 4) * 41;
          ask.mass_extra_keys = static_cast<int64_t>(seed % 3) * 130;
          ask.average = dtype == DType::kF32 && seed % 2 == 0;
          CheckWeights(&expected, ask);
        }
      }
    }
  }
}

// Each mask and score modification alone, then all of them.
std::vector<Case> FeatureCases(int64_t q_len, int64_t kv_len) {
  std::vector<Case> cases;
  const auto add = [&](const std::function<void(Case*)>& change) {
    Case c = SmallCase(q_len, kv_len);
    change(&c);
    cases.push_back(c);
  };
  const auto causal = [](Case* c) { c->causal = true; };
  const auto window = [](Case* c) {
    c->features.window_left = 30;
    c->features.window_right = 11;
  };
  const auto padding = [](Case* c) {
    c->kv_batch = 2;
    c->features.kv_lens = {static_cast<int32_t>(c->kv_len / 2), static_cast<int32_t>(c->kv_len)};
  };
  const auto prefix = [](Case* c) {
    c->causal = true;
    c->features.window_left = 20;
    c->features.prefix_lens.assign(static_cast<size_t>(c->kv_batch), 9);
  };
  const auto mask = [](Case* c) {
    c->features.mask.on = true;
    c->features.mask.extra_keys = 3;
  };
  const auto blocks = [](Case* c) {
    c->features.blocks.on = true;
    c->features.q_block = 5;
    c->features.kv_block = 17;
  };
  const auto softcap = [](Case* c) { c->features.softcap = 2.0f; };
  const auto bias = [](Case* c) {
    c->features.bias.on = true;
    c->features.bias.density = 0.8;
    c->features.bias_dtype = DType::kBF16;
  };
  const auto buckets = [](Case* c) { c->features.relative_buckets = {32, 128, true}; };
  const auto alibi = [](Case* c) { c->features.alibi_slopes = {0.5f, 0.25f, 0.125f, 0.0625f}; };
  const auto sinks = [](Case* c) { c->features.sinks = {0.0f, 3.0f, -HUGE_VALF, 9.0f}; };
  add([](Case*) {});
  add(causal);
  add(window);
  add(padding);
  add(prefix);
  add(mask);
  add(blocks);
  add(softcap);
  add(bias);
  add(buckets);
  add(alibi);
  add(sinks);
  add([](Case* c) {
    c->features.q_start = 3;
    c->causal = true;
  });
  add([&](Case* c) {
    padding(c);
    prefix(c);
    mask(c);
    blocks(c);
    softcap(c);
    bias(c);
    buckets(c);
    alibi(c);
    sinks(c);
    c->features.mask.density = c->features.blocks.density = 0.9;
    c->beams = 2;
  });
  return cases;
}

TEST_CASE("weights behind masks and of modified scores", "[weights]") {
  uint64_t seed = 16000;
  for (const int64_t q_len : {1, 7, 60, 210}) {
    for (const int64_t kv_len : {20, 128, 300}) {
      for (const Case& c : FeatureCases(q_len, kv_len)) {
        ++seed;
        CheckWeights(Problem(c, seed), WithMassShape({}, seed));
      }
    }
  }
}

TEST_CASE("weights over a memory and a cache", "[weights]") {
  uint64_t seed = 17000;
  const Source source = GENERATE(Source::kMemory, Source::kCache);
  for (const int64_t q_len : {1, 50}) {
    for (const int64_t kv_len : {60, 260, 1030}) {
      for (const Case& c : FeatureCases(q_len, kv_len)) {
        Ask ask = WithMassShape({}, ++seed);
        ask.extra_keys = 5;
        CheckWeights(Problem(c, seed), ask, source);
      }
    }
  }
}

// Sequences of these queries, and of 150 keys: together if packed, each otherwise.
Case RaggedQueries(const std::vector<int32_t>& q_indptr, bool packed, bool has_features) {
  Case c = SmallCase(q_indptr.back(), 150);
  c.causal = has_features;
  c.features.q_indptr = q_indptr;
  const int32_t num_sequences = static_cast<int32_t>(c.NumEntries());
  c.kv_batch = packed ? 1 : num_sequences;
  for (int32_t s = 0; packed && s <= num_sequences; ++s) {
    c.features.kv_indptr.push_back(s * s * 150 / (num_sequences * num_sequences));
  }
  if (!has_features) return c;
  for (const KvRun& run : c.Runs()) {
    c.features.kv_lens.push_back(static_cast<int32_t>(run.kv_len - run.kv_len / 4));
  }
  c.features.mask.on = c.features.blocks.on = c.features.bias.on = true;
  c.features.blocks.density = 0.9;
  c.features.q_block = 7;
  c.features.kv_block = 12;
  c.features.sinks = {0.0f, 1.0f, 2.0f, 3.0f};
  return c;
}

TEST_CASE("weights of ragged batches", "[weights]") {
  const bool packed = GENERATE(true, false);
  const Source source = GENERATE(Source::kTensors, Source::kMemory, Source::kCache);
  if (packed && source != Source::kTensors) return;
  uint64_t seed = 18000;
  const std::vector<std::vector<int32_t>> kSplits = {
      {0, 40}, {0, 1, 2, 3, 20}, {0, 0, 17, 17, 80, 80}, {0, 200, 201, 230}};
  for (const std::vector<int32_t>& q_indptr : kSplits) {
    for (const bool has_features : {false, true}) {
      const Case c = RaggedQueries(q_indptr, packed, has_features);
      Ask ask = WithMassShape(OfHeads({3, 1}, has_features), ++seed);
      ask.extra_keys = 2;
      ask.mass_by_kv_batch = false;
      CheckWeights(Problem(c, seed), ask, source);
    }
  }
}

TEST_CASE("weights of some queries of ragged batches", "[weights]") {
  const bool packed = GENERATE(true, false);
  const Source source = GENERATE(Source::kTensors, Source::kMemory, Source::kCache);
  if (packed && source != Source::kTensors) return;
  uint64_t seed = 18300;
  // Sequences of 200, 0, 1, 0, 29 and 70 queries.
  const std::vector<int32_t> q_indptr = {0, 200, 200, 201, 201, 230, 300};
  std::vector<std::vector<int32_t>> lists = {{},
                                             {0},
                                             {200},  // of a sequence of one
                                             {299},
                                             {199, 200, 229, 299},  // the last of each
                                             {0, 200, 201, 230},    // the first of each
                                             {3, 4, 5, 9, 191, 192, 193, 194}};
  lists.resize(lists.size() + 3);
  for (int32_t i = 0; i < 300; ++i) {
    lists[lists.size() - 3].push_back(i);
    if (i >= 190 && i < 250) lists[lists.size() - 2].push_back(i);  // neighbours of four sequences
    if (i % 3 != 1) lists.back().push_back(i);
  }
  for (const bool has_features : {false, true}) {
    const Problem problem(RaggedQueries(q_indptr, packed, has_features), ++seed);
    ExpectedWeights expected(problem);
    for (const std::vector<int32_t>& queries : lists) {
      Ask ask = OfHeads({3, 1}, ++seed % 2 == 0);
      ask.lists_queries = true;
      ask.queries = queries;
      ask.extra_keys = static_cast<int64_t>(seed % 3);
      ask.mass = false;
      CheckWeights(&expected, ask, source);
    }
  }
}

TEST_CASE("weights of rotated keys", "[weights]") {
  uint64_t seed = 18500;
  for (const int64_t q_len : {1, 33, 200}) {
    Case c = SmallCase(q_len, 290);
    c.head_dim = 48;
    c.distribution = Distribution::kKOutliers;
    c.causal = true;
    const Problem problem(c, ++seed);
    ExpectedWeights expected(problem);
    for (const char* tier : SupportedTiers()) {
      for (const Source source : {Source::kTensors, Source::kCache}) {
        Setup setup = {tier, Precision::kI8, source};
        setup.rotate_k = true;
        INFO(c.ToString() << " on " << tier);
        const Answer answer = AnswerOf(problem, setup, {});
        CHECK_THAT(answer.weights, IsClose(expected.Weights(setup, {})));
        CHECK_THAT(answer.mass, IsClose(expected.Mass(setup, {})));
      }
    }
  }
}

TEST_CASE("weights of each distribution", "[weights]") {
  uint64_t seed = 18600;
  for (const Distribution distribution : kDistributions) {
    for (const int64_t q_len : {2, 70}) {
      for (const float q_gain : {1.0f, 30.0f}) {
        Case c = SmallCase(q_len, 300);
        c.head_dim = 64;
        c.q_gain = q_gain;
        c.distribution = distribution;
        CheckWeights(Problem(c, ++seed), {});
      }
    }
  }
}

TEST_CASE("weights of int8 tensors", "[weights]") {
  uint64_t seed = 18700;
  for (const unsigned scales : {+kPerTensor, +kPerToken, +kPerChannel}) {
    for (const int64_t q_len : {2, 70}) {
      Case c = SmallCase(q_len, 200);
      c.q_dtype = c.k_dtype = c.v_dtype = c.out_dtype = DType::kI8;
      c.q_scales = c.k_scales = scales;
      CheckWeights(Problem(c, ++seed), {});
    }
  }
}

// ---- Sums -------------------------------------------------------------------------------------

// How far the denominator of a precision may be from the sum of the weights, relatively: P rounded
// to bf16 or straight from sums in steps of 1/128 octave; P in fixed point from scores in steps of
// 1/64 octave and a table of 16 bits.
double DenominatorError(Precision precision) {
  if (HasQuantizedV(precision)) return exp2(1.0 / 128.0) - 1.0 + 4e-4;
  if (precision == Precision::kBF16 || precision == Precision::kMixed16) {
    return exp2(1.0 / 256.0) - 1.0 + kBF16Unit;
  }
  return 1e-5;
}

TEST_CASE("weights of a row sum to 1, or to what its sink leaves", "[weights]") {
  uint64_t seed = 19000;
  for (const int64_t q_len : {1, 4, 80}) {
    for (const int64_t kv_len : {1, 100, 128, 1025}) {
      for (const bool has_sinks : {false, true}) {
        Case c = SmallCase(q_len, kv_len);
        c.causal = true;
        c.features.q_start = std::max<int64_t>(kv_len - q_len, -3);  // some rows see nothing
        if (has_sinks) c.features.sinks = {0.0f, 3.0f, -5.0f, 1.0f};
        const Problem problem(c, ++seed);
        ExpectedWeights expected(problem);
        for (const Precision precision : kPrecisions) {
          for (const char* tier : TiersOf(precision)) {
            if (!TakesTurn(tier)) continue;
            INFO(c.ToString() << ", " << Name(precision) << " on " << tier);
            const Setup setup = {tier, precision};
            const Answer answer = AnswerOf(problem, setup, {});
            double worst = 0.0;
            std::vector<double> mass(static_cast<size_t>(c.heads * kv_len), 0.0);
            for (int64_t i = 0; i < q_len; ++i) {
              for (int64_t h = 0; h < c.heads; ++h) {
                double sum = 0.0;
                for (int64_t j = 0; j < kv_len; ++j) {
                  const double w = static_cast<double>(answer.weights.Get(0, i, h, j));
                  sum += w;
                  mass[static_cast<size_t>(h * kv_len + j)] += w;
                }
                worst = std::max(worst, fabs(sum - expected.KeyShare(setup, 0, i, h)));
              }
            }
            CHECK(worst <= DenominatorError(precision));
            // Mass is the sum of the same weights.
            double worst_mass = 0.0;
            for (int64_t h = 0; h < c.heads; ++h) {
              for (int64_t j = 0; j < kv_len; ++j) {
                const double sum = mass[static_cast<size_t>(h * kv_len + j)];
                const double excess = fabs(static_cast<double>(answer.mass.Get(0, 0, h, j)) - sum);
                worst_mass = std::max(worst_mass, sum == 0.0 ? excess : excess / sum);
              }
            }
            CHECK(worst_mass <= (static_cast<double>(q_len) + 4.0) * kF32Unit);
          }
        }
      }
    }
  }
}

// ---- Nothing to see ---------------------------------------------------------------------------

bool AllZero(const Tensor& t) {
  const std::vector<double> x = t.ToDoubles();
  return std::all_of(x.begin(), x.end(), [](double w) { return w == 0.0; });
}

TEST_CASE("weights of rows that see nothing are 0", "[weights]") {
  const float q_value = GENERATE(1.0f, NAN);
  for (const int64_t q_len : {1, 3, 50}) {
    for (const int64_t kv_len : {0, 1, 130, 1025}) {
      for (const bool has_sinks : {false, true}) {
        for (const bool by_bias : {false, true}) {
          if (by_bias && isnan(q_value)) continue;  // NaN - inf
          Case c = SmallCase(q_len, kv_len);
          if (has_sinks) c.features.sinks = {-3.5f, 50.0f, 0.0f, -HUGE_VALF};
          if (by_bias) {
            c.features.bias.on = true;
          } else if (kv_len > 0) {
            c.features.kv_lens = {0};
          }
          Problem problem(c, 20000);
          for (int64_t i = 0; by_bias && i < q_len; ++i) {
            for (int64_t h = 0; h < c.heads; ++h) {
              for (int64_t j = 0; j < kv_len; ++j) problem.bias.Set(0, i, h, j, -HUGE_VALF);
            }
          }
          problem.q.Set(0, 0, 0, 0, q_value);
          Ask ask;
          ask.extra_keys = 3;
          ask.mass_extra_keys = 140;
          for (const Precision precision : kPrecisions) {
            for (const char* tier : TiersOf(precision)) {
              INFO(c.ToString() << ", " << Name(precision) << " on " << tier);
              const Answer answer = AnswerOf(problem, {tier, precision}, ask);
              CHECK(AllZero(answer.weights));
              CHECK(AllZero(answer.mass));
            }
          }
        }
      }
    }
  }
}

TEST_CASE("NaN and infinities of hidden keys reach no weight", "[weights]") {
  const float poison = GENERATE(NAN, HUGE_VALF, -HUGE_VALF);
  uint64_t seed = 21000;
  for (const int64_t q_len : {1, 5, 70}) {
    for (const int kind : {0, 1, 2, 3}) {
      Case c = SmallCase(q_len, 300);
      if (kind == 0) c.features.kv_lens = {70};
      if (kind == 1) c.features.mask.on = true;
      if (kind == 2) {  // the window's first keys are behind the poison
        c.features.q_start = 280;
        c.features.window_left = 5;
      }
      if (kind == 3) {
        c.causal = true;
        c.features.q_start = -10;
      }
      Problem problem(c, ++seed);
      for (const int64_t key : {70, 71, 127, 128, 191, 250}) {
        for (int64_t h = 0; h < c.kv_heads; ++h) {
          for (int64_t d = 0; d < c.head_dim; ++d) problem.k.Set(0, key, h, d, poison);
        }
        if (kind != 1) continue;
        for (int64_t i = 0; i < q_len; ++i) {
          for (int64_t h = 0; h < c.heads; ++h) problem.mask.SetQuantum(0, i, h, key, 0);
        }
      }
      ExpectedWeights expected(problem);
      for (const Precision precision : {Precision::kF32, Precision::kF16, Precision::kBF16}) {
        for (const char* tier : SupportedTiers()) {
          INFO(c.ToString() << ", " << poison << ", " << Name(precision) << " on " << tier);
          const Setup setup = {tier, precision};
          const Answer answer = AnswerOf(problem, setup, {});
          CHECK_THAT(answer.weights, IsClose(expected.Weights(setup, {})));
          CHECK_THAT(answer.mass, IsClose(expected.Mass(setup, {})));
        }
      }
    }
  }
}

// A row of NaN is NaN where it sees, and 0 elsewhere like any other.
TEST_CASE("NaN in a query stays where the query sees", "[weights]") {
  for (const int64_t q_len : {1, 5, 70, 200}) {
    Case c = SmallCase(q_len, 300);
    c.heads = c.kv_heads = 1;
    c.causal = true;
    c.features.window_left = 150;
    c.features.q_start = 60;
    Problem problem(c, 21500);
    const int64_t poisoned = q_len / 2;
    problem.q.Set(0, poisoned, 0, 3, NAN);
    const Masks masks = MasksOf(problem);
    const Sequence sequence = SequencesOf(c).front();
    for (const Precision precision : {Precision::kF32, Precision::kF16, Precision::kBF16}) {
      for (const char* tier : SupportedTiers()) {
        INFO(c.ToString() << ", " << Name(precision) << " on " << tier);
        const Answer answer = AnswerOf(problem, {tier, precision}, {});
        bool in_place = true;
        bool mass_in_place = true;
        for (int64_t j = 0; j < c.kv_len; ++j) {
          const bool sees = Sees(masks, sequence, poisoned, 0, j);
          for (int64_t i = 0; i < q_len; ++i) {
            in_place = in_place && isnan(answer.weights.Get(0, i, 0, j)) == (i == poisoned && sees);
          }
          mass_in_place = mass_in_place && isnan(answer.mass.Get(0, 0, 0, j)) == sees;
        }
        CHECK(in_place);
        CHECK(mass_in_place);
      }
    }
  }
}

// ---- Bits -------------------------------------------------------------------------------------

TEST_CASE("the number of workers changes no bit of weights", "[weights][workers]") {
  uint64_t seed = 22000;
  for (const int64_t q_len : {1, 20, 300}) {
    for (const bool average : {false, true}) {
      Case c = SmallCase(q_len, 290);
      c.kv_batch = 2;
      c.beams = 2;
      c.causal = true;
      const Problem problem(c, ++seed);
      Ask ask = WithMassShape(OfHeads({3, 1, 1, 0}, average), seed);
      for (const Precision precision : kPrecisions) {
        for (const char* tier : TiersOf(precision)) {
          if (!TakesTurn(tier)) continue;
          const Answer alone = AnswerOf(problem, {tier, precision}, ask);
          for (const ParallelFor& parallel :
               {OneThreadPerWorker(3), TwoThreads(4), BackwardsOnThisThread(2)}) {
            INFO(c.ToString() << ", " << Name(precision) << " on " << tier << ", "
                              << parallel.num_workers << " workers");
            const Answer answer =
                AnswerOf(problem, {tier, precision, Source::kTensors, parallel}, ask);
            CHECK_THAT(answer.weights, Equals(alone.weights));
            CHECK_THAT(answer.mass, Equals(alone.mass));
          }
        }
      }
    }
  }
}

// K and V given as tensors are packed by turns of 128 KiB for each worker, which begin in the
// middle of a sequence's heads: in the same memory where no second pass may ask for all of them.
TEST_CASE("turns of packing change no bit of a ragged batch", "[weights][workers]") {
  Case c;
  c.heads = c.kv_heads = 3;
  c.head_dim = 64;
  c.q_len = 77;
  c.kv_len = 2991;
  c.features.q_indptr = {0, 1, 13, 18, 34, 74, 77};
  c.features.kv_indptr = {0, 30, 1130, 1387, 2027, 2091, 2991};
  c.features.lse = true;
  const Problem problem(c, 22500);
  Ask ask;
  ask.mass = false;
  for (const Precision precision : {Precision::kF32, Precision::kI8}) {
    for (const char* tier : SupportedTiers()) {
      if (!IsAffordable(c, tier)) continue;
      const Setup setup = {tier, precision};
      const Answer parts = {problem.NewOut(), problem.NewLse(),
                            Tensor(DType::kF32, WeightsDims(c, ask)), Tensor()};
      AttentionDesc desc = DescOf(c, setup);
      desc.owns_workspace = true;
      Plan plan;
      REQUIRE_THAT(Plan::Create(desc, &plan), IsOk());
      for (const KvRun& run : c.Runs()) {
        const int64_t q_end = run.q_begin + run.q_len;
        AttentionArgs args = TensorArgs(problem, parts.out);
        args.num_sequences = 0;
        args.q_indptr = args.kv_indptr = nullptr;
        args.q = problem.q.Slice(run.q_begin, q_end);
        args.k = problem.k.Slice(run.kv_begin, run.kv_begin + run.kv_len);
        args.v = problem.v.Slice(run.kv_begin, run.kv_begin + run.kv_len);
        args.out = parts.out.Slice(run.q_begin, q_end);
        args.lse = parts.lse.Slice(run.q_begin, q_end);
        args.weights.out = parts.weights.Slice(run.q_begin, q_end);
        REQUIRE_THAT(Run(plan, args), IsOk());
      }
      for (const ParallelFor& parallel : {ParallelFor{}, TwoThreads(2), OneThreadPerWorker(3)}) {
        INFO(c.ToString() << ", " << Name(precision) << " on " << tier << ", "
                          << parallel.num_workers << " workers");
        const Answer answer = AnswerOf(problem, {tier, precision, Source::kTensors, parallel}, ask);
        CHECK_THAT(answer.out, Equals(parts.out));
        CHECK_THAT(answer.lse, Equals(parts.lse));
        CHECK_THAT(answer.weights, Equals(parts.weights));
        Tensor lse;
        CHECK_THAT(Attend(problem, {tier, precision, Source::kTensors, parallel}, &lse),
                   Equals(parts.out));
        CHECK_THAT(lse, Equals(parts.lse));
      }
    }
  }
}

// Heads with keys of their own, of which the first pass may leave the weights on the way.
std::vector<Problem> ProblemsOnTheWay(int64_t q_len, uint64_t seed) {
  std::vector<Problem> problems;
  const auto add = [&](const auto& amend) {
    Case c = SmallCase(q_len, 290);
    c.heads = c.kv_heads = 2;
    amend(&c);
    problems.emplace_back(c, seed++);
  };
  add([](Case*) {});
  add([](Case* c) { c->causal = true; });
  add([](Case* c) {
    c->features.window_left = 50;
    c->features.window_right = 20;
  });
  add([](Case* c) {  // some rows see nothing
    c->causal = true;
    c->features.q_start = -20;
    c->features.sinks = {1.0f, -0.5f};
  });
  add([](Case* c) {
    c->kv_batch = 2;
    c->beams = 3;
    c->features.kv_lens = {290, 129};
    c->features.prefix_lens = {10, 20};
    c->features.window_right = 0;
  });
  add([](Case* c) {
    c->features.softcap = 5.0f;
    c->features.bias.on = true;
    c->features.relative_buckets = {32, 128, true};
    c->features.alibi_slopes = {0.5f, 0.0625f};
  });
  add([](Case* c) {  // steep
    c->q_gain = 40.0f;
    c->v_head_dim = 40;
  });
  add([&](Case* c) {
    const int32_t end = static_cast<int32_t>(c->q_len);
    c->features.q_indptr = {0, std::min(3, end), end};
    c->features.kv_indptr = {0, 140, 290};
  });
  // NaN in hidden keys: padding, and of floats what a mask hides.
  for (const bool is_padding : {true, false}) {
    add([&](Case* c) {
      if (is_padding) c->features.kv_lens = {170};
      if (!is_padding) c->features.mask.on = true;
    });
    Problem& problem = problems.back();
    for (const int64_t key : {170, 171, 255, 289}) {
      for (int64_t h = 0; h < 2; ++h) {
        for (int64_t d = 0; d < problem.c.head_dim; ++d) problem.k.Set(0, key, h, d, NAN);
        for (int64_t d = 0; d < problem.c.value_dim(); ++d) problem.v.Set(0, key, h, d, NAN);
        for (int64_t i = 0; i < q_len && !is_padding; ++i) {
          problem.mask.SetQuantum(0, i, h, key, 0);
        }
      }
    }
  }
  return problems;
}

// A list of all queries says what no list says.
Ask ListingAll(Ask ask, int64_t q_len) {
  ask.lists_queries = true;
  ask.queries.clear();
  for (int32_t i = 0; i < q_len; ++i) ask.queries.push_back(i);
  return ask;
}

// Of a head that is listed twice the second pass makes the second copy, and all where some queries
// are listed. (The last rows of a task must not be few: the second pass sums their products
// otherwise.)
TEST_CASE("weights left by prefill are those of the second pass", "[weights]") {
  for (const int64_t q_len : {33, 250}) {
    for (const Problem& problem : ProblemsOnTheWay(q_len, 22600)) {
      const Case& c = problem.c;
      Ask twice = OfHeads({1, 0, 0, 1}, false);
      twice.extra_keys = c.causal ? 133 : 0;
      twice.mass = false;
      Ask some = twice;
      some.lists_queries = true;
      for (int32_t i = 0; i + 1 < q_len; ++i) some.queries.push_back(i);
      Expectations expected(problem);
      for (const Precision precision :
           {Precision::kF32, Precision::kF16, Precision::kBF16, Precision::kMixed16}) {
        const bool has_nan_in_k = c.features.mask.on;
        if (has_nan_in_k && HasQuantizedK(precision)) continue;
        for (const char* tier : SupportedTiers()) {
          if (!IsAffordable(c, tier) || !TakesTurn(tier)) continue;
          INFO(c.ToString() << ", " << Name(precision) << " on " << tier);
          const Setup setup = {tier, precision};
          const Answer answer = AnswerOf(problem, setup, twice);
          const Answer second = AnswerOf(problem, setup, some);
          const Dims& dims = answer.weights.dims();
          int64_t num_wrong = 0;
          for (int64_t b = 0; b < dims.batch; ++b) {
            for (int64_t i = 0; i < q_len; ++i) {
              for (int64_t j = 0; j < dims.dim; ++j) {
                for (int64_t h = 0; h < 4; ++h) {
                  const float first = answer.weights.Get(b, i, h, j);
                  num_wrong += first == answer.weights.Get(b, i, 3 - h, j) ? 0 : 1;
                  num_wrong += i + 1 == q_len || first == second.weights.Get(b, i, h, j) ? 0 : 1;
                }
              }
            }
          }
          CHECK(num_wrong == 0);
          CHECK_THAT(AnswerOf(problem, setup, ListingAll(twice, q_len)).weights,
                     Equals(answer.weights));
          CHECK_THAT(answer.lse, IsClose(expected(setup).Lse()));
          CHECK_THAT(answer.out, IsClose(expected(setup)));
          CHECK_THAT(Attend(problem, setup), Equals(answer.out));
        }
      }
    }
  }
}

// Few queries: those of a head that is listed once are left on the way.
TEST_CASE("weights left by decode", "[weights]") {
  for (const int64_t q_len : {1, 3, 8}) {
    for (const Problem& problem : ProblemsOnTheWay(q_len, 22650)) {
      const Case& c = problem.c;
      Ask ask = OfHeads({1, 0, 1}, false);
      ask.extra_keys = c.causal ? 133 : 0;
      ask.mass = false;
      const bool has_nan_in_k = c.features.mask.on;
      ExpectedWeights expected(problem);
      for (const Precision precision : kPrecisions) {
        if (has_nan_in_k && HasQuantizedK(precision)) continue;
        for (const char* tier : TiersOf(precision)) {
          if (!IsAffordable(c, tier) || !TakesTurn(tier)) continue;
          INFO(c.ToString() << ", " << Name(precision) << " on " << tier);
          const Setup setup = {tier, precision};
          const Answer answer = AnswerOf(problem, setup, ask);
          CHECK_THAT(answer.weights, IsClose(expected.Weights(setup, ask)));
          CHECK_THAT(Attend(problem, setup), Equals(answer.out));
          CHECK_THAT(AnswerOf(problem, setup, ListingAll(ask, q_len)).weights,
                     Equals(answer.weights));
        }
      }
    }
  }
}

// Decode goes from head to head with the keys of the first, whether their weights are wanted or
// not; a prefix behind which most keys are skipped, and a mask that hides whole tiles.
TEST_CASE("weights left by decode of some heads, from any source", "[weights]") {
  uint64_t seed = 22700;
  for (const Source source : {Source::kTensors, Source::kMemory, Source::kCache}) {
    for (const int64_t kv_len : {300, 2305}) {
      Case c = SmallCase(2, kv_len);
      c.heads = c.kv_heads = 4;
      c.placement = ++seed % 2 == 0 ? Placement::kAtEnd : Placement::kAtFront;
      Ask ask = OfHeads({3, 0, 3}, false);
      ask.mass = false;
      ask.extra_keys = static_cast<int64_t>(seed % 3) * 65;
      CheckWeights(Problem(c, seed), ask, source);
      c.causal = true;
      c.features.window_left = 140;
      c.features.prefix_lens = {5};
      CheckWeights(Problem(c, seed), ask, source);
      c.features = {};
      c.features.lse = true;
      c.features.mask.on = true;
      Problem problem(c, seed);
      for (int64_t i = 0; i < c.q_len; ++i) {
        for (int64_t h = 0; h < c.heads; ++h) {
          for (int64_t j = 128; j < 256; ++j) problem.mask.SetQuantum(0, i, h, j, 0);
        }
      }
      CheckWeights(problem, ask, source);
    }
  }
}

// Where V is quantised, softmax has scores in fixed point, and its weights are of these; a second
// pass makes those of rows that are too steep for it, and of modified scores. Returns the ways
// that were taken.
FixedPointPaths CheckFixedPoint(const Problem& problem, const char* tier, Precision precision,
                                int64_t extra_keys) {
  const Case& c = problem.c;
  INFO(c.ToString() << " + " << extra_keys << ", " << Name(precision) << " on " << tier);
  const Setup setup = {tier, precision};
  Ask ask;
  ask.mass = false;
  ask.extra_keys = extra_keys;
  ExpectedWeights expected(problem);
  const Answer answer = AnswerOf(problem, setup, ask);
  CHECK_THAT(answer.weights,
             IsClose(c.features.modifies_scores() ? expected.Weights(setup, ask)
                                                  : expected.SoftmaxWeights(setup, ask)));
  CHECK_THAT(answer.lse, IsClose(expected.Output(setup).Lse()));
  CHECK_THAT(Attend(problem, setup), Equals(answer.out));
  CHECK_THAT(AnswerOf(problem, setup, ListingAll(ask, c.q_len)).weights, Equals(answer.weights));
  return expected.Output(setup).paths;
}

// The same in both precisions and on every tier.
FixedPointPaths CheckFixedPoint(const Problem& problem, int64_t extra_keys) {
  FixedPointPaths paths;
  for (const Precision precision : {Precision::kI8, Precision::kI8Fine}) {
    for (const char* tier : TiersOf(precision)) {
      if (!IsAffordable(problem.c, tier) || !TakesTurn(tier)) continue;
      paths.Add(CheckFixedPoint(problem, tier, precision, extra_keys));
    }
  }
  return paths;
}

TEST_CASE("weights left by prefill are of the scores in fixed point", "[weights]") {
  for (const int64_t q_len : {33, 250}) {
    for (const Problem& problem : ProblemsOnTheWay(q_len, 22800)) {
      const bool has_nan_in_k = problem.c.features.mask.on;
      if (!has_nan_in_k) CheckFixedPoint(problem, problem.c.causal ? 133 : 0);
    }
  }
  uint64_t seed = 22900;
  for (const int64_t kv_len : {1, 8, 31, 33, 64, 65, 128, 160, 193}) {
    Case c = SmallCase(50, kv_len);
    c.kv_heads = c.heads;
    c.placement = ++seed % 2 == 0 ? Placement::kAtEnd : Placement::kAtFront;
    CheckFixedPoint(Problem(c, seed), 0);
  }
}

// Rows that fixed point is too narrow for, among others of the same tile.
TEST_CASE("weights of steep rows beside others", "[weights]") {
  Case c = SmallCase(100, 200);
  c.heads = c.kv_heads = 1;
  Problem problem(c, 22950);
  for (const int64_t l : {0, 17, 18, 40, 95}) {
    for (int64_t d = 0; d < c.head_dim; ++d) {
      problem.q.Set(0, l, 0, d, 1e4f * problem.q.Get(0, l, 0, d));
    }
  }
  const FixedPointPaths paths = CheckFixedPoint(problem, 3);
  // Neither on tiers without fixed point.
  CHECK((paths.plain == 0) == (paths.wide_steep + paths.wide_clamped == 0));
}

// More than caches keep is written past them, in lines: rows begin at every distance from one.
TEST_CASE("weights past the caches", "[weights]") {
  constexpr size_t kRows = 2 * 34;
  constexpr int64_t kLength = static_cast<int64_t>(internal::kKeptBytes / sizeof(float) / kRows);
  for (const int64_t kv_len : {int64_t{70}, kLength + 4}) {
    for (const int64_t length : {kLength + 5, kLength + 22}) {
      Case c = SmallCase(34, kv_len);
      c.heads = c.kv_heads = 2;
      c.placement = kv_len % 4 == 0 ? Placement::kAtEnd : Placement::kAtFront;
      CheckFixedPoint(Problem(c, 22960), length - kv_len);
    }
  }
}

TEST_CASE("asking for weights, mass and lse changes no bit of the output", "[weights]") {
  uint64_t seed = 23000;
  for (const int64_t q_len : {1, 20, 300}) {
    for (Case c : FeatureCases(q_len, 290)) {
      const Problem problem(c, ++seed);
      c.features.lse = false;
      const Problem plain(c, seed);
      for (const Precision precision : kPrecisions) {
        for (const char* tier : TiersOf(precision)) {
          if (!IsAffordable(c, tier) || !TakesTurn(tier)) continue;
          const Setup setup = {tier, precision};
          INFO(problem.c.ToString() << ", " << Name(precision) << " on " << tier);
          Tensor lse;
          const Tensor with_lse = Attend(problem, setup, &lse);
          const Answer answer = AnswerOf(problem, setup, {});
          CHECK_THAT(with_lse, Equals(Attend(plain, setup)));
          CHECK_THAT(answer.out, Equals(with_lse));
          CHECK_THAT(answer.lse, Equals(lse));
        }
      }
    }
  }
}

// ---- Anything at once -------------------------------------------------------------------------

TEST_CASE("random weights", "[weights]") {
  Rng rng(24000);
  const auto chance = [&](double p) { return rng.Uniform() < p; };
  const auto between = [&](int64_t first, int64_t last) {
    return first + rng.Below(last - first + 1);
  };
  constexpr Layout kLayouts[] = {Layout::kDense,   Layout::kHeadsFirst, Layout::kFused,
                                 Layout::kPadded,  Layout::kDimStrided, Layout::kDimFirst,
                                 Layout::kReversed};
  const auto layout = [&] { return chance(0.5) ? Layout::kDense : kLayouts[rng.Below(7)]; };
  const int num_cases = IsEmulated() ? 30 : IsSanitized() ? 60 : 200;
  for (int n = 0; n < num_cases; ++n) {
    const int64_t q_len = chance(0.3) ? 1 : between(2, chance(0.3) ? 220 : 40);
    const int64_t kv_len = between(1, chance(0.3) ? 300 : 140);
    std::vector<Case> cases = FeatureCases(q_len, kv_len);
    Case c = cases[static_cast<size_t>(rng.Below(static_cast<int64_t>(cases.size())))];
    c.head_dim = between(1, 70);
    c.placement = chance(0.5) ? Placement::kAtEnd : Placement::kAtFront;
    if (chance(0.3)) c.beams = between(1, 4);
    c.features.lse_layout = layout();
    if (chance(0.2)) c.q_dtype = c.k_dtype = DType::kF16;
    if (chance(0.2)) c.scale = -0.3f;
    Ask ask;
    ask.lists_heads = chance(0.5);
    for (int64_t i = between(1, 6); ask.lists_heads && i > 0; --i) {
      ask.heads.push_back(static_cast<int32_t>(rng.Below(c.heads)));
    }
    ask.lists_queries = chance(0.5);
    const double density = rng.Uniform();
    for (int32_t i = 0; ask.lists_queries && i < q_len; ++i) {
      if (chance(density)) ask.queries.push_back(i);
    }
    ask.average = chance(0.3);
    if (!ask.average && chance(0.5)) ask.dtype = chance(0.5) ? DType::kF16 : DType::kBF16;
    ask.layout = layout();
    ask.mass_layout = layout();
    if (chance(0.3)) ask.extra_keys = between(1, 200);
    if (chance(0.3)) ask.mass_extra_keys = between(1, 200);
    ask = WithMassShape(ask, rng.Next() % 4);
    ask.mass = chance(0.7);
    ask.weights = !ask.mass || chance(0.8);
    const Problem problem(c, 24000 + static_cast<uint64_t>(n));
    ExpectedWeights expected(problem);
    const std::vector<const char*> tiers = SupportedTiers();
    for (const Precision precision : kPrecisions) {
      Setup setup = {tiers[static_cast<size_t>(rng.Below(static_cast<int64_t>(tiers.size())))],
                     precision};
      setup.source = chance(0.5)   ? Source::kTensors
                     : chance(0.5) ? Source::kMemory
                                   : Source::kCache;
      if (!IsAffordable(c, setup.tier)) continue;
      INFO("case " << n << ": " << c.ToString() << "; " << ask.ToString() << "; " << Name(precision)
                   << " on " << setup.tier << ", source " << static_cast<int>(setup.source));
      const Answer answer = AnswerOf(problem, setup, ask);
      if (ask.weights) CHECK_THAT(answer.weights, IsClose(expected.Weights(setup, ask)));
      if (ask.mass) CHECK_THAT(answer.mass, IsClose(expected.Mass(setup, ask)));
    }
  }
}

}  // namespace
}  // namespace testing
}  // namespace sightline
