// NaN, infinity, huge scores and rows that see nothing.
#include <math.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>
#include <vector>

#include "support/check.h"
#include "support/problem.h"
#include "support/threads.h"
#include "support/tiers.h"

namespace sightline {
namespace testing {
namespace {

constexpr Precision kFloats[] = {Precision::kF32, Precision::kF16, Precision::kBF16};

Case CausalCase(int64_t q_len, int64_t kv_len) {
  Case c;
  c.q_len = q_len;
  c.kv_len = kv_len;
  c.heads = 2;
  c.kv_heads = 1;
  c.head_dim = 24;
  c.v_head_dim = 20;
  c.causal = true;
  return c;
}

constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16};

void SetDTypes(DType dtype, Case* c) {
  c->q_dtype = c->k_dtype = c->v_dtype = c->out_dtype = dtype;
}

bool AllZero(const Tensor& out) {
  const std::vector<double> values = out.ToDoubles();
  return std::all_of(values.begin(), values.end(), [](double x) { return x == 0.0; });
}

// The oracle neither reads what is hidden nor forgives what is seen: a NaN in K makes every channel
// of the rows that see it NaN, a NaN in V its own channel.
TEST_CASE("a NaN reaches the rows that see it and no other", "[adversarial]") {
  const int64_t poisoned = GENERATE(1, 62, 63, 64, 100, 127, 128, 129, 199);
  const Source source = GENERATE(Source::kTensors, Source::kMemory, Source::kCache);
  for (const bool in_k : {true, false}) {
    for (const int64_t q_len : {200, 65, 3}) {
      Case c = CausalCase(q_len, 200);
      SetDTypes(kDTypes[(poisoned + q_len) % 3], &c);
      Problem problem(c, 1);
      if (in_k) {
        problem.k.Set(0, poisoned, 0, 5, NAN);
      } else {
        problem.v.Set(0, poisoned, 0, 5, NAN);
        problem.v.Set(0, poisoned, 0, 19, NAN);
      }
      Expectations expectations(problem);
      for (const Precision precision : kFloats) {
        for (const char* tier : SupportedTiers()) {
          if (!TakesTurn(tier)) continue;
          const Expected& expected = expectations({tier, precision, source});
          const bool any_nan = std::any_of(expected.value.begin(), expected.value.end(),
                                           [](double x) { return isnan(x); });
          REQUIRE(any_nan);  // the last query sees everything
          INFO(problem.c.ToString()
               << ", NaN in " << (in_k ? "K" : "V") << " of key " << poisoned << ", "
               << Name(precision) << " on " << tier << ", source " << static_cast<int>(source));
          CHECK_THAT(Attend(problem, {tier, precision, source}), IsClose(expected));
        }
      }
    }
  }
}

// Few rows take up to 2048 keys at a time, of int8 4096: what is hidden in the second chunk, by the
// mask of some rows only. Where K or V is floats it does not reach those rows. Integers take NaN as
// 0 and bound infinities, which then take part in means and scales, whoever sees them.
TEST_CASE("hidden keys of the second chunk", "[adversarial]") {
  const float poison = GENERATE(NAN, HUGE_VALF, -HUGE_VALF);
  for (const bool in_k : {true, false}) {
    for (const int64_t q_len : {3, 4, 70}) {
      Case c = CausalCase(q_len, 4400);
      const int64_t first_to_see = q_len / 2;
      const int64_t poisoned = c.kv_len - q_len + first_to_see;
      REQUIRE(poisoned >= 4096 + 128);
      Problem problem(c, 13);
      (in_k ? problem.k : problem.v).Set(0, poisoned, 0, 7, poison);
      Expectations expectations(problem);
      for (const Precision precision : kPrecisions) {
        for (const char* tier : TiersOf(precision)) {
          if (!IsAffordable(c, tier)) continue;
          INFO(c.ToString() << ", " << poison << " in " << (in_k ? "K" : "V") << " of key "
                            << poisoned << ", " << Name(precision) << " on " << tier);
          const Setup setup = {tier, precision};
          Expected expected = expectations(setup);
          const bool quantised = in_k ? HasQuantizedK(precision) : HasQuantizedV(precision);
          const bool anything_goes = isinf(poison) && !quantised;
          for (int64_t i = 0; i < q_len; ++i) {
            const bool sees = i >= first_to_see;
            for (int64_t at = 0; at < c.heads * c.v_head_dim; ++at) {
              const size_t index = expected.dims.Index(0, i, 0, 0) + static_cast<size_t>(at);
              if (sees && anything_goes) expected.tolerance[index] = HUGE_VAL;
              if (!sees || quantised) REQUIRE(isfinite(expected.value[index]));
            }
          }
          const Tensor out = Attend(problem, setup);
          CHECK_THAT(out, IsClose(expected));
          const bool finite = isfinite(out.Get(0, first_to_see, 1, 7));
          if (!in_k) CHECK(finite == quantised);
        }
      }
    }
  }
}

// Its elements are NaN, those of quantum 0 too; what pads rows to whole vectors is not. As an
// output, i8 has 0 for NaN.
TEST_CASE("a scale of NaN makes its elements NaN", "[adversarial]") {
  const Source source = GENERATE(Source::kTensors, Source::kMemory, Source::kCache);
  const unsigned granularity = GENERATE(kPerToken, kPerToken + kPerChannel, kPerTensor);
  for (const bool in_k : {true, false}) {
    for (const int64_t q_len : {65, 3}) {
      Case c = CausalCase(q_len, 70);
      c.head_dim = 5;
      c.v_head_dim = 13;
      SetDTypes(DType::kI8, &c);
      c.out_dtype = q_len == 3 ? DType::kF32 : DType::kI8;
      c.k_scales = c.v_scales = granularity;
      Problem problem(c, 12);
      problem.k.Set(0, 66, 0, 4, 0.0f);
      problem.v.Set(0, 66, 0, 12, 0.0f);
      (in_k ? problem.k : problem.v).SetScale(0, 66, 0, in_k ? 4 : 12, NAN);
      Expectations expected(problem);
      for (const Precision precision : kPrecisions) {
        for (const char* tier : TiersOf(precision)) {
          INFO(problem.c.ToString()
               << ", NaN in the scales of " << (in_k ? "K, " : "V, ") << Name(precision) << " on "
               << tier << ", source " << static_cast<int>(source));
          const Setup setup = {tier, precision, source};
          CHECK_THAT(Attend(problem, setup), IsClose(expected(setup)));
        }
      }
    }
  }
}

// The weight of a NaN value may be so small that it is rounded to 0. It is NaN all the same.
TEST_CASE("a NaN value with no weight is still NaN", "[adversarial]") {
  Problem problem(CausalCase(5, 150), 2);
  problem.v.Set(0, 17, 0, 3, NAN);
  for (int64_t d = 0; d < 24; ++d) {
    // Key 17 scores about -2000 below the others for every query.
    problem.k.Set(0, 17, 0, d, -400.0f);
    for (int64_t i = 0; i < 5; ++i) {
      for (int64_t h = 0; h < 2; ++h) problem.q.Set(0, i, h, d, 1.0f);
    }
  }
  for (const Precision precision : kFloats) {
    for (const char* tier : SupportedTiers()) {
      INFO(Name(precision) << " on " << tier);
      const Tensor out = Attend(problem, {tier, precision});
      for (int64_t i = 0; i < 5; ++i) {
        CHECK(isnan(out.Get(0, i, 0, 3)));
        CHECK_FALSE(isnan(out.Get(0, i, 0, 4)));
      }
    }
  }
}

TEST_CASE("infinities stay hidden behind the mask", "[adversarial]") {
  const float infinity = GENERATE(HUGE_VALF, -HUGE_VALF);
  const DType dtype = GENERATE(DType::kF32, DType::kF16, DType::kBF16);
  constexpr int64_t kFirstHidden = 150;
  for (const int64_t q_len : {200, 130}) {
    Case c = CausalCase(q_len, 200);
    SetDTypes(dtype, &c);
    Problem problem(c, 3);
    for (int64_t key = kFirstHidden; key < 200; ++key) {
      for (int64_t d = 0; d < 24; ++d) problem.k.Set(0, key, 0, d, infinity);
      for (int64_t d = 0; d < 20; ++d) problem.v.Set(0, key, 0, d, -infinity);
    }
    Expectations expectations(problem);
    for (const Precision precision : kFloats) {
      for (const char* tier : SupportedTiers()) {
        Expected expected = expectations({tier, precision});
        size_t num_checked = 0;
        for (int64_t i = 0; i < q_len; ++i) {
          const bool sees_infinity = 200 - q_len + i >= kFirstHidden;
          for (int64_t at = 0; at < 2 * 20; ++at) {
            const size_t index = expected.dims.Index(0, i, 0, 0) + static_cast<size_t>(at);
            if (sees_infinity) expected.tolerance[index] = HUGE_VAL;
            if (!sees_infinity) REQUIRE(isfinite(expected.tolerance[index]));
            num_checked += sees_infinity ? 0 : 1;
          }
        }
        REQUIRE(num_checked >= 80 * 40);
        INFO(problem.c.ToString() << ", " << Name(precision) << " on " << tier);
        CHECK_THAT(Attend(problem, {tier, precision}), IsClose(expected));
      }
    }
  }
}

TEST_CASE("a visible infinite value gives no finite number in its channel", "[adversarial]") {
  Case c = CausalCase(70, 200);
  SetDTypes(GENERATE(DType::kF32, DType::kF16, DType::kBF16), &c);
  Problem problem(c, 4);
  problem.v.Set(0, 140, 0, 7, HUGE_VALF);  // query 10 is the first to see it
  for (const Precision precision : kFloats) {
    for (const char* tier : SupportedTiers()) {
      INFO(Name(precision) << " on " << tier);
      const Tensor out = Attend(problem, {tier, precision});
      for (int64_t i = 0; i < 70; ++i) {
        CHECK(isfinite(out.Get(0, i, 1, 7)) == (i < 10));
        CHECK(isfinite(out.Get(0, i, 1, 8)));
      }
    }
  }
}

TEST_CASE("an output that its type cannot hold is infinite", "[adversarial]") {
  Case c = CausalCase(20, 60);
  c.out_dtype = DType::kF16;
  Problem problem(c, 12);
  for (int64_t key = 0; key < 60; ++key) {
    problem.v.Set(0, key, 0, 1, 65519.0f);  // rounds to the largest f16, a little more to infinity
    problem.v.Set(0, key, 0, 2, 65530.0f);
    problem.v.Set(0, key, 0, 3, -3e38f);
  }
  for (const char* tier : SupportedTiers()) {
    INFO(tier);
    const Tensor out = Attend(problem, {tier, Precision::kF32});
    for (int64_t i = 0; i < 20; ++i) {
      CHECK(out.Get(0, i, 0, 1) == 65504.0f);
      CHECK(out.Get(0, i, 0, 2) == HUGE_VALF);
      CHECK(out.Get(0, i, 0, 3) == -HUGE_VALF);
    }
  }
}

// int8 has no NaN: the element counts as 0, an infinity as +-1e27.
TEST_CASE("int8 takes NaN as 0 and bounds infinities", "[adversarial]") {
  const Source source = GENERATE(Source::kTensors, Source::kMemory);
  const DType dtype = GENERATE(DType::kF32, DType::kF16, DType::kBF16);
  Case c = CausalCase(30, 200);
  c.q_dtype = dtype;
  Problem clean(c, 5);  // K and V in f32, which can hold 1e27
  c.k_dtype = c.v_dtype = dtype;
  Problem dirty(c, 5);
  for (int64_t key = 0; key < 200; ++key) {
    for (int64_t d = 0; d < 24; ++d) clean.k.Set(0, key, 0, d, dirty.k.Get(0, key, 0, d));
    for (int64_t d = 0; d < 20; ++d) clean.v.Set(0, key, 0, d, dirty.v.Get(0, key, 0, d));
  }
  for (int64_t key = 0; key < 200; key += 9) {
    dirty.k.Set(0, key, 0, key % 24, NAN);
    clean.k.Set(0, key, 0, key % 24, 0.0f);
    dirty.v.Set(0, key, 0, key % 20, NAN);
    clean.v.Set(0, key, 0, key % 20, 0.0f);
  }
  dirty.q.Set(0, 11, 1, 3, NAN);
  clean.q.Set(0, 11, 1, 3, 0.0f);
  dirty.k.Set(0, 33, 0, 2, HUGE_VALF);
  clean.k.Set(0, 33, 0, 2, 1e27f);
  dirty.v.Set(0, 44, 0, 6, -HUGE_VALF);
  clean.v.Set(0, 44, 0, 6, -1e27f);
  Expectations expected(dirty);
  for (const Precision precision : {Precision::kI8, Precision::kI8Fine}) {
    for (const char* tier : SupportedTiers()) {
      INFO(Name(precision) << " on " << tier);
      const Setup setup = {tier, precision, source};
      for (const double value : expected(setup).value) REQUIRE(isfinite(value));
      const Tensor out = Attend(dirty, setup);
      CHECK_THAT(out, Equals(Attend(clean, setup)));
      CHECK_THAT(out, IsClose(expected(setup)));
    }
  }
}

// A hidden token gets no weight, but it has its part in the means, and in the scale of V of its
// tile: rows that do not see it may move, within what the precision promises.
TEST_CASE("int8 rows hardly notice what is hidden", "[adversarial]") {
  const float last = GENERATE(-3.0f, 4.0f, NAN, HUGE_VALF, -HUGE_VALF);
  for (const int64_t q_len : {4, 150}) {
    const Case c = CausalCase(q_len, 299);
    const Problem before(c, 14);
    Problem after(c, 14);
    for (int64_t d = 0; d < c.head_dim; ++d) after.k.Set(0, c.kv_len - 1, 0, d, last);
    for (int64_t d = 0; d < c.v_head_dim; ++d) after.v.Set(0, c.kv_len - 1, 0, d, last);
    const size_t earlier = static_cast<size_t>((q_len - 1) * c.heads * c.v_head_dim);
    for (const Precision precision : {Precision::kI8, Precision::kI8Fine}) {
      for (const char* tier : SupportedTiers()) {
        INFO(c.ToString() << ", last key " << last << ", " << Name(precision) << " on " << tier);
        const std::vector<double> a = Attend(before, {tier, precision}).ToDoubles();
        const std::vector<double> b = Attend(after, {tier, precision}).ToDoubles();
        CHECK(std::all_of(b.begin(), b.end(), [](double x) { return isfinite(x); }));
        double moved = 0.0;
        double norm = 0.0;
        for (size_t i = 0; i < earlier; ++i) {
          moved += (b[i] - a[i]) * (b[i] - a[i]);
          norm += a[i] * a[i];
        }
        CHECK(moved > 0.0);  // quanta are others: the key is one of those whose mean is taken
        // Twice the error of the precision, on the tiers that are less exact.
        const double allowed = precision == Precision::kI8 ? 0.042 : 0.02;
        if (!isinf(last)) CHECK(sqrt(moved / norm) <= allowed);
      }
    }
  }
}

TEST_CASE("a NaN in Q stays in its row", "[adversarial]") {
  for (const int64_t row : {0, 15, 16, 47, 48, 69}) {
    Case c = CausalCase(70, 130);
    SetDTypes(kDTypes[row % 3], &c);
    Problem problem(c, 6);
    problem.q.Set(0, row, 0, 3, NAN);
    Expectations expectations(problem);
    for (const Precision precision : kFloats) {
      for (const char* tier : SupportedTiers()) {
        INFO("row " << row << ", " << Name(precision) << " on " << tier);
        CHECK_THAT(Attend(problem, {tier, precision}), IsClose(expectations({tier, precision})));
      }
    }
  }
}

// More queries than keys: the first q_len - kv_len see nothing.
TEST_CASE("rows that see no key are exactly 0", "[adversarial]") {
  for (const int64_t q_len : {2, 17, 33, 66, 200}) {
    for (const int64_t kv_len : {1, 5, 65}) {
      if (kv_len >= q_len) continue;
      Problem problem(CausalCase(q_len, kv_len), 7);
      const int64_t num_empty = q_len - kv_len;
      // Not even a NaN in Q makes a difference where there is nothing to weigh.
      for (int64_t d = 0; d < 24; ++d) problem.q.Set(0, 0, 0, d, NAN);
      for (const Precision precision : kPrecisions) {
        for (const char* tier : TiersOf(precision)) {
          const Tensor out = Attend(problem, {tier, precision});
          INFO(problem.c.ToString() << ", " << Name(precision) << " on " << tier);
          bool all_zero = true;
          for (int64_t i = 0; i < num_empty; ++i) {
            for (int64_t d = 0; d < 20; ++d) {
              all_zero = all_zero && out.Get(0, i, 0, d) == 0.0f && out.Get(0, i, 1, d) == 0.0f;
            }
          }
          CHECK(all_zero);
          CHECK(out.Get(0, num_empty, 1, 0) != 0.0f);
        }
      }
    }
  }
}

TEST_CASE("no keys at all give 0", "[adversarial]") {
  const Source source = GENERATE(Source::kTensors, Source::kMemory, Source::kCache);
  Case c = CausalCase(20, 0);
  c.causal = GENERATE(false, true);
  c.out_dtype = GENERATE(DType::kF32, DType::kF16, DType::kBF16, DType::kI8);
  const Problem problem(c, 8);
  for (const Precision precision : kPrecisions) {
    for (const char* tier : TiersOf(precision)) {
      INFO(Name(precision) << " on " << tier << ", source " << static_cast<int>(source));
      CHECK(AllZero(Attend(problem, {tier, precision, source})));
    }
  }
}

// A plan for no keys has no room in its workspace for packed ones: not even for the centers and
// scales of so many heads.
TEST_CASE("tensors of length 0 need no memory", "[adversarial]") {
  constexpr struct {
    int64_t q_len, kv_batch, heads, v_head_dim;
  } kShapes[] = {{17, 1, 1, 8}, {17, 4, 64, 512}, {1, 64, 256, 512}};
  const Precision precision = GENERATE(from_range(kPrecisions));
  for (const auto& shape : kShapes) {
    Case c;
    c.q_len = shape.q_len;
    c.kv_len = 0;
    c.kv_batch = shape.kv_batch;
    c.heads = c.kv_heads = shape.heads;
    c.head_dim = 2;
    c.v_head_dim = shape.v_head_dim;
    if (IsEmulated() && c.batch() > 4) continue;
    const Problem problem(c, 11);
    for (const char* tier : TiersOf(precision)) {
      const Setup setup = {tier, precision};
      REQUIRE(DescOf(c, setup).max_kv_len == 0);
      INFO(c.ToString() << ", " << Name(precision) << " on " << tier);
      CHECK(AllZero(Attend(problem, setup)));
    }
  }
}

// Whatever the other sizes are, and whatever the strides: there is nothing that they lead to.
TEST_CASE("calls without queries do nothing", "[adversarial]") {
  constexpr struct {
    const char* what;
    int64_t batch, length;
    bool strange_strides;
  } kShapes[] = {{"no queries", 2, 0, false},
                 {"no queries, many sequences", 64, 0, false},
                 {"no queries, strange strides", 2, 0, true},
                 {"no batch", 0, 3, false},
                 {"no batch, strange strides", 0, 3, true},
                 {"neither", 0, 0, false},
                 {"neither, strange strides", 0, 0, true}};
  Case c = CausalCase(3, 20);
  c.kv_batch = 2;
  c.beams = 32;
  const Problem problem(c, 9);
  for (const Source source : {Source::kTensors, Source::kMemory, Source::kCache}) {
    for (const Precision precision : kPrecisions) {
      for (const char* tier : TiersOf(precision)) {
        const Setup setup = {tier, precision, source};
        AttentionDesc desc = DescOf(c, setup);
        desc.owns_workspace = true;
        Plan plan;
        REQUIRE_THAT(Plan::Create(desc, &plan), IsOk());
        const CrossMemory memory = MemoryOf(problem, setup);
        const KvCache cache = CacheOf(problem, setup);
        const Tensor out = problem.NewOut();
        for (const auto& shape : kShapes) {
          AttentionArgs args = TensorArgs(problem, out);
          args.q = ConstTensorView::Dense(args.q.data, DType::kF32, shape.batch, shape.length,
                                          c.heads, c.head_dim);
          args.out = TensorView::Dense(args.out.data, DType::kF32, shape.batch, shape.length,
                                       c.heads, c.value_dim());
          if (shape.strange_strides) {
            args.q.batch_stride = args.out.batch_stride = INT64_MIN;
            args.q.length_stride = args.out.length_stride = INT64_MAX - 3;
            args.q.head_stride = args.out.head_stride = 0;
            args.q.dim_stride = args.out.dim_stride = -4;
          }
          if (source != Source::kTensors) args.k = args.v = ConstTensorView();
          if (source == Source::kMemory) args.memory = &memory;
          if (source == Source::kCache) args.cache = &cache;
          INFO(shape.what << ", " << Name(precision) << " on " << tier << ", source "
                          << static_cast<int>(source));
          CHECK_THAT(Run(plan, args), IsOk());
          CHECK(out.IsWiped());
        }
      }
    }
  }
}

TEST_CASE("no queries and no batch are no error", "[adversarial]") {
  for (const Precision precision : kPrecisions) {
    for (const char* tier : TiersOf(precision)) {
      INFO(Name(precision) << " on " << tier);
      const Problem no_queries(CausalCase(0, 20), 9);
      const Setup setup = {tier, precision};
      CHECK_THAT(Attend(no_queries, setup), IsClose(Expect(no_queries, setup)));

      // Views of nothing may have no memory at all.
      AttentionDesc desc = DescOf(CausalCase(4, 20), {tier, precision});
      desc.owns_workspace = true;
      Plan plan;
      REQUIRE_THAT(Plan::Create(desc, &plan), IsOk());
      AttentionArgs args;
      args.q = ConstTensorView::Dense(nullptr, DType::kF32, 0, 4, 2, 24);
      args.k = ConstTensorView::Dense(nullptr, DType::kF32, 0, 20, 1, 24);
      args.v = ConstTensorView::Dense(nullptr, DType::kF32, 0, 20, 1, 20);
      args.out = TensorView::Dense(nullptr, DType::kF32, 0, 4, 2, 20);
      CHECK_THAT(Run(plan, args), IsOk());
    }
  }
}

// Scores and values at the edge of f16's range (65504): neither may overflow on the way.
TEST_CASE("scores and values near the f16 maximum", "[adversarial]") {
  constexpr struct {
    float q, k, k_step, v;
  } kCases[] = {{250.0f, 261.0f, 0.125f, 1.0f},  // scores 65250 and less, some steps of 31 apart
                {1.0f, 65000.0f, 32.0f, 1.0f},   // K itself at the edge
                {0.001f, 65504.0f, 64.0f, 65504.0f},  // and V
                {-250.0f, 261.0f, 0.125f, -65504.0f}};
  for (const auto& numbers : kCases) {
    Case c = CausalCase(9, 140);
    c.head_dim = 1;
    c.scale = 1.0f;
    c.k_dtype = c.v_dtype = DType::kF16;
    Problem problem(c, 10);
    for (int64_t i = 0; i < 9; ++i) {
      for (int64_t h = 0; h < 2; ++h) problem.q.Set(0, i, h, 0, numbers.q);
    }
    for (int64_t key = 0; key < 140; ++key) {
      problem.k.Set(0, key, 0, 0, numbers.k - numbers.k_step * static_cast<float>(key % 11));
      for (int64_t d = 0; d < 20; ++d) {
        problem.v.Set(0, key, 0, d, key % 2 == 0 ? numbers.v : -numbers.v);
      }
    }
    Expectations expected(problem);
    for (const Precision precision : kPrecisions) {
      for (const char* tier : TiersOf(precision)) {
        INFO("Q " << numbers.q << ", K " << numbers.k << ", V " << numbers.v << ", "
                  << Name(precision) << " on " << tier);
        const Setup setup = {tier, precision};
        CHECK_THAT(Attend(problem, setup), IsClose(expected(setup)));
      }
    }
  }
}

// Scores that f16 has no numbers for, in precisions that have f32 for them. They are so far apart
// that every row sees one key alone, however scores are rounded: its value is the output.
TEST_CASE("scores beyond the range of f16", "[adversarial]") {
  constexpr struct {
    int64_t head_dim;
    float q, k, k_step;
  } kCases[] = {{1, 400.0f, 250.0f, 0.125f},   // scores of 1e5 and less, 50 apart
                {1, -400.0f, 250.0f, 0.125f},  // -1e5 and more
                {1, 16000.0f, 1250.0f, 1.0f},  // 2e7, 16000 apart
                {64, 500.0f, 312.5f, 0.25f},   // 1e7, as a sum
                {64, -500.0f, 312.5f, 0.25f}};
  for (const auto& numbers : kCases) {
    for (const int64_t q_len : {1, 9, 40}) {
      Case c = CausalCase(q_len, 140);
      c.head_dim = numbers.head_dim;
      c.scale = 1.0f;
      c.q_dtype = c.k_dtype = c.v_dtype = DType::kF16;
      c.features.lse = true;
      Problem problem(c, 14);
      for (int64_t d = 0; d < c.head_dim; ++d) {
        for (int64_t i = 0; i < q_len; ++i) {
          for (int64_t h = 0; h < c.heads; ++h) problem.q.Set(0, i, h, d, numbers.q);
        }
        for (int64_t key = 0; key < c.kv_len; ++key) {
          const float k = numbers.k - numbers.k_step * static_cast<float>(37 * key % c.kv_len);
          problem.k.Set(0, key, 0, d, k);
          REQUIRE(problem.k.Get(0, key, 0, d) == k);
        }
      }
      const std::vector<double> exact = ExactOutput(problem);
      Expectations expected(problem);
      for (const Precision precision : {Precision::kF32, Precision::kF16}) {
        for (const char* tier : TiersOf(precision)) {
          INFO(c.head_dim << " times " << numbers.q << " * " << numbers.k << ", " << q_len
                          << " queries, " << Name(precision) << " on " << tier);
          const Setup setup = {tier, precision};
          Tensor lse;
          CHECK(ErrorOf(Attend(problem, setup, &lse), exact).relative_l2 <= 1e-6);
          CHECK_THAT(lse, IsClose(expected(setup).Lse()));
        }
      }
    }
  }
}

}  // namespace
}  // namespace testing
}  // namespace sightline
