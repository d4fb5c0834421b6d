// The figures of the benchmark are right: operations are counted as they should be, errors are
// errors, roofs are roofs, and what is slower shows.
#include <math.h>

#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "bench/contender.h"
#include "bench/machine.h"
#include "bench/measure.h"
#include "bench/problem.h"
#include "bench/roof_kernels.h"
#include "bench/roofs.h"
#include "bench/row.h"
#include "bench/sightline_contender.h"
#include "sightline/tier.h"
#include "support/oracle.h"

namespace sightline {
namespace bench {
namespace {

using Catch::Approx;
using Catch::Matchers::ContainsSubstring;

Case SmallCase(Op op) {
  Case c;
  c.op = op;
  c.model = "small";
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = c.v_head_dim = 64;
  c.q_len = IsDecode(op) || IsStore(op) ? 1 : 96;
  c.kv_len = 160;
  c.beams = op == Op::kDecodeCross ? 5 : 1;
  return c;
}

std::vector<std::string> Tiers() {
  std::vector<std::string> tiers;
  for (size_t i = 0; i < NumTiers(); ++i) {
    if (GetTier(i).supported) tiers.push_back(GetTier(i).name);
  }
  return tiers;
}

// A contender that hands on to Sightline and falsifies one thing.
class Falsified : public Contender {
 public:
  Falsified(int slower, float wrong)
      : real_(MakeSightline(Tiers().back())), slower_(slower), wrong_(wrong) {}
  std::string name() const override { return "falsified"; }
  std::string version() const override { return "1"; }
  const std::vector<Offer>& offers() const override { return real_->offers(); }

  std::unique_ptr<Entry> Enter(const Problem& problem, const std::string& precision, int threads,
                               std::string* why_not) override {
    struct FalsifiedEntry : Entry {
      std::unique_ptr<Entry> real;
      int slower;
      float wrong;
      void Run() override {
        for (int i = 0; i < slower; ++i) real->Run();
      }
      std::vector<float> Output() override {
        std::vector<float> out = real->Output();
        for (float& x : out) x *= 1.0f + wrong;
        return out;
      }
      double kv_bytes() const override { return real->kv_bytes(); }
    };
    auto entry = std::make_unique<FalsifiedEntry>();
    entry->real = real_->Enter(problem, precision, threads, why_not);
    entry->slower = slower_;
    entry->wrong = wrong_;
    return entry;
  }

 private:
  std::unique_ptr<Contender> real_;
  int slower_;
  float wrong_;
};

const Effort kShort = {0.002, 0.05};

TEST_CASE("Pairs are the keys that the queries see", "[counters]") {
  for (const Op op : {Op::kSelf, Op::kSelfCausal, Op::kCross, Op::kDecodeSelf}) {
    for (const auto& [q_len, kv_len] : std::vector<std::pair<int64_t, int64_t>>{
             {1, 1}, {1, 77}, {64, 64}, {65, 64}, {17, 100}, {100, 17}}) {
      Case c = SmallCase(op);
      c.q_len = q_len;
      c.kv_len = kv_len;
      int64_t pairs = 0;
      for (int64_t i = 0; i < q_len; ++i) {
        pairs += testing::VisibleKeys(c.mask(), q_len, kv_len, i);
      }
      INFO(Name(op) << " " << c.Shape());
      CHECK(c.Pairs() == static_cast<double>(pairs * c.heads));
    }
  }
}

TEST_CASE("Causal operations are half of the square plus half of the diagonal", "[counters]") {
  Case full = SmallCase(Op::kSelf);
  full.q_len = full.kv_len = 1024;
  Case causal = full;
  causal.op = Op::kSelfCausal;
  // By hand: 2 for multiply and add, 2 for Q K^T and P V, 4 heads, 64 channels.
  CHECK(full.Operations() == 4.0 * 4 * 64 * 1024 * 1024);
  CHECK(causal.Operations() == 4.0 * 4 * 64 * (1024 * 1024 / 2 + 1024 / 2));

  Case wide = full;
  wide.v_head_dim = 128;
  CHECK(wide.Operations() == full.Operations() * (64 + 128) / (64 + 64));
  Case beams = SmallCase(Op::kDecodeCross);
  CHECK(beams.Operations() == 5.0 * 4 * 4 * 64 * 160);
  CHECK(SmallCase(Op::kPrepare).Operations() == 160.0 * 2 * (64 + 64));
  CHECK(SmallCase(Op::kAppend).Operations() == 1.0 * 2 * (64 + 64));
}

TEST_CASE("Row names keep to the grammar", "[counters]") {
  Case c = SmallCase(Op::kDecodeCross);
  c.v_head_dim = 32;
  CHECK(c.Shape() == "b1.h4.kv2.d64.q1.k160.dv32.beams5");
  CHECK(RowName(*MakeSightline("scalar"), c, "i8", 2) ==
        "decode_cross/small/i8/b1.h4.kv2.d64.q1.k160.dv32.beams5/tier:scalar/threads:2");
  CHECK(RowName(Falsified(1, 0), SmallCase(Op::kSelf), "f32", 1) ==
        "peer:falsified/self/small/f32/b1.h4.kv2.d64.q96.k160/tier:own/threads:1");
}

TEST_CASE("The relative error is that of the output", "[counters]") {
  Case c = SmallCase(Op::kSelfCausal);
  c.batch = 2;
  const Problem problem(c);
  REQUIRE_FALSE(problem.exact.empty());
  std::vector<float> out(static_cast<size_t>(c.q_batch() * c.q_len * c.heads * c.v_head_dim));
  for (const Problem::Row& row : problem.exact) {
    for (size_t d = 0; d < row.value.size(); ++d) {
      out[static_cast<size_t>(((row.batch * c.q_len + row.query) * c.heads + row.head) *
                              c.v_head_dim) +
          d] = static_cast<float>(row.value[d]);
    }
  }
  CHECK(RelativeL2(problem, out) < 1e-7);
  for (float& x : out) x *= 1.01f;
  CHECK(RelativeL2(problem, out) == Approx(0.01).epsilon(1e-3));

  // The sample holds the corners, and NaN there does not go unnoticed.
  const auto has = [&](int64_t batch, int64_t query, int64_t head) {
    for (const Problem::Row& row : problem.exact) {
      if (row.batch == batch && row.query == query && row.head == head) return true;
    }
    return false;
  };
  CHECK(has(0, 0, 0));
  CHECK(has(1, c.q_len - 1, c.heads - 1));
  for (const float wrong : {NAN, INFINITY}) {
    out.back() = wrong;
    CHECK(isnan(RelativeL2(problem, out)));
  }
}

TEST_CASE("A sample of a large case is affordable", "[counters]") {
  Case c = SmallCase(Op::kSelfCausal);
  c.heads = c.kv_heads = 1;
  c.q_len = c.kv_len = 16384;
  const Problem problem(c);
  CHECK(problem.exact.front().query == 0);
  CHECK(problem.exact.back().query == c.q_len - 1);
  CHECK(problem.exact.size() <= 64);
  CHECK(problem.exact.size() >= 8);
}

TEST_CASE("The median's spread is its confidence interval", "[counters]") {
  CHECK(EstimateMedian({}).median == 0.0);
  CHECK(EstimateMedian({3.0}).median == 3.0);
  CHECK(EstimateMedian({4.0, 1.0}).median == 2.5);
  // 5 samples: all of them. 20 samples: numbers 5 and 16 (floor((20 - 8.77) / 2), ceil(1 + (20
  // + 8.77) / 2)).
  CHECK(EstimateMedian({10, 11, 12, 8, 9}).spread == Approx(0.4));
  std::vector<double> twenty;
  for (int i = 1; i <= 20; ++i) twenty.push_back(i);
  CHECK(EstimateMedian(twenty).median == 10.5);
  CHECK(EstimateMedian(twenty).spread == Approx((16.0 - 5.0) / 10.5));
  // One wild sample of many does not count, as it would in a standard deviation.
  std::vector<double> wild(19, 1.0);
  wild.push_back(1000.0);
  CHECK(EstimateMedian(wild).spread == 0.0);
}

TEST_CASE("Every tier has roofs", "[counters]") {
  for (const std::string& tier : Tiers()) {
    CAPTURE(tier);
    const RoofKernels* kernels = FindRoofKernels(tier.c_str());
    REQUIRE(kernels != nullptr);
    Roofs roofs(tier, 1);
    CHECK(roofs.Arithmetic("fp32_fma") > 0.0);
    CHECK((roofs.Arithmetic("int8_dot") > 0.0) == (tier != "scalar"));
    CHECK((roofs.Arithmetic("bf16_dot") > 0.0) == (tier == "avx512_bf16"));
    CHECK(roofs.Arithmetic("no_such_unit") == 0.0);
    CHECK(roofs.UnitOf("f32") == "fp32_fma");
    CHECK(roofs.UnitOf("f16") == "fp32_fma");
    CHECK(roofs.UnitOf("bf16") == (tier == "avx512_bf16" ? "bf16_dot" : "fp32_fma"));
    CHECK(roofs.UnitOf("mixed16") == (tier == "avx512_bf16" ? "bf16_dot"
                                      : tier == "scalar"    ? "fp32_fma"
                                                            : "int16_dot"));
    CHECK(roofs.UnitOf("i8") == (tier == "scalar" ? "fp32_fma" : "int8_dot"));
    CHECK(roofs.ReadBandwidth(10e3) > 0.0);
  }
  CHECK(FindRoofKernels("no_such_tier") == nullptr);
}

TEST_CASE("Every op runs in every precision on every tier, exactly, and below the roof",
          "[counters]") {
  for (const std::string& tier : Tiers()) {
    Roofs roofs(tier, 1);
    const std::unique_ptr<Contender> sightline = MakeSightline(tier);
    REQUIRE(sightline->offers().size() >= 3);
    for (const Op op : kAllOps) {
      const Problem problem(SmallCase(op));
      for (const Offer& offer : sightline->offers()) {
        Row row;
        std::string why_not;
        REQUIRE(MeasureRow(sightline.get(), problem, offer, &roofs, kShort, &row, &why_not));
        INFO(row.name << " " << row.error);
        CHECK(row.error.empty());
        CHECK(row.rel_l2 > 0.0);
        CHECK(row.rel_l2 <= offer.max_rel_l2);
        CHECK(row.kv_bytes > 0.0);
        CHECK(row.timing.repetitions >= 3);
        CHECK(row.ops * row.timing.seconds == Approx(problem.c.Operations()));
#if !defined(SIGHTLINE_TESTS_EMULATED)
        CHECK(row.roof > 0.0);
        CHECK(row.roof < 1.0);
#endif
      }
    }
  }
}

TEST_CASE("A prefill near the roof stays below it", "[counters]") {
#if !defined(SIGHTLINE_TESTS_EMULATED)
  Case c = SmallCase(Op::kSelf);
  c.q_len = c.kv_len = 768;
  c.head_dim = c.v_head_dim = 128;
  const Problem problem(c);
  for (const std::string& tier : Tiers()) {
    if (tier == "scalar") continue;
    Roofs roofs(tier, 1);
    const std::unique_ptr<Contender> sightline = MakeSightline(tier);
    for (const Offer& offer : sightline->offers()) {
      Row row;
      std::string why_not;
      REQUIRE(MeasureRow(sightline.get(), problem, offer, &roofs, kShort, &row, &why_not));
      INFO(row.name);
      CHECK(row.roof < 1.0);
      CHECK(row.roof > 0.02);
    }
  }
#endif
}

TEST_CASE("Two threads have roofs and rows of their own", "[counters]") {
  if (NumCpus() < 2) SKIP("needs two CPUs");
  // How their roof compares with that of one is not checked: CPUs may be threads of one core, or of
  // one that other programs use as well.
  Roofs two(Tiers().back(), 2);
  CHECK(two.threads() == 2);
  CHECK(two.Arithmetic("fp32_fma") > 0.0);
  const std::unique_ptr<Contender> sightline = MakeSightline(Tiers().back());
  for (const Op op : kAllOps) {
    const Problem problem(SmallCase(op));
    Row row;
    std::string why_not;
    REQUIRE(
        MeasureRow(sightline.get(), problem, sightline->offers()[0], &two, kShort, &row, &why_not));
    INFO(row.name << " " << row.error);
    CHECK_THAT(row.name, ContainsSubstring("threads:2"));
    CHECK(row.error.empty());
    CHECK(row.timing.seconds == row.timing.real_seconds);
  }
}

TEST_CASE("Measuring roofs again never lowers them", "[counters]") {
  Roofs roofs(Tiers().back(), 1);
  const double peak = roofs.Arithmetic("fp32_fma");
  const double bandwidth = roofs.ReadBandwidth(10e3);
  const double drift = roofs.Remeasure();
  CHECK(roofs.Arithmetic("fp32_fma") >= peak);
  CHECK(roofs.ReadBandwidth(10e3) >= bandwidth);
  CHECK(drift > -1.0);
}

TEST_CASE("The machine is described", "[counters]") {
  CHECK_FALSE(CpuModel().empty());
  CHECK_FALSE(Compiler().empty());
  CHECK(NumCpus() >= 1);
  const std::vector<Roofs::Level> levels = Roofs::Levels(FindCaches(0));
  REQUIRE_FALSE(levels.empty());
  for (size_t i = 1; i < levels.size(); ++i) {
    CHECK(levels[i - 1].footprint_bytes < levels[i].footprint_bytes);
  }
  CHECK(PinToFastestCpus(1 << 20).empty());
}

TEST_CASE("What goes wrong while it is timed does not count", "[counters]") {
  struct Failing : Falsified {
    Failing() : Falsified(1, 0.0f) {}
    std::unique_ptr<Entry> Enter(const Problem& problem, const std::string& precision, int threads,
                                 std::string* why_not) override {
      struct FailingEntry : Entry {
        std::unique_ptr<Entry> real;
        int runs = 0;
        bool says_so = false;
        void Run() override { real->Run(), ++runs; }
        std::vector<float> Output() override {
          std::vector<float> out = real->Output();
          if (runs > 3 && !says_so) out.back() = NAN;
          return out;
        }
        double kv_bytes() const override { return real->kv_bytes(); }
        std::string error() const override { return runs > 3 && says_so ? "broke down" : ""; }
      };
      auto entry = std::make_unique<FailingEntry>();
      entry->real = Falsified::Enter(problem, precision, threads, why_not);
      entry->says_so = says_so;
      return entry;
    }
    bool says_so = false;
  };
  const Problem problem(SmallCase(Op::kCross));
  Roofs roofs(Tiers().back(), 1);
  for (const bool says_so : {false, true}) {
    Failing failing;
    failing.says_so = says_so;
    Row row;
    std::string why_not;
    REQUIRE(MeasureRow(&failing, problem, failing.offers()[0], &roofs, kShort, &row, &why_not));
    CHECK_THAT(row.error, ContainsSubstring(says_so ? "broke down" : "error is nan"));
    CHECK(row.ops == 0.0);
  }
}

TEST_CASE("A slowed kernel shows", "[counters]") {
  const Problem problem(SmallCase(Op::kSelf));
  Falsified fast(1, 0.0f);
  Falsified slow(4, 0.0f);
  Roofs roofs(Tiers().back(), 1);
  Row fast_row;
  Row slow_row;
  std::string why_not;
  const Offer& offer = fast.offers()[0];
  REQUIRE(MeasureRow(&fast, problem, offer, &roofs, kShort, &fast_row, &why_not));
  REQUIRE(MeasureRow(&slow, problem, offer, &roofs, kShort, &slow_row, &why_not));
  // A quarter, give or take what a busy machine does to either.
  CHECK(slow_row.ops / fast_row.ops < 0.4);
  CHECK(slow_row.ops / fast_row.ops > 0.15);
  CHECK(slow_row.roof < fast_row.roof);
}

TEST_CASE("What computes something else is not timed", "[counters]") {
  const Problem problem(SmallCase(Op::kCross));
  Falsified wrong(1, 0.2f);
  Roofs roofs(Tiers().back(), 1);
  for (const Offer& offer : wrong.offers()) {
    Row row;
    std::string why_not;
    REQUIRE(MeasureRow(&wrong, problem, offer, &roofs, kShort, &row, &why_not));
    CHECK_THAT(row.error, ContainsSubstring("its relative L2 error is 0.2"));
    CHECK(row.rel_l2 == Approx(0.2).margin(0.02));
    CHECK(row.ops == 0.0);
  }
}

TEST_CASE("A row with a large spread says so", "[counters]") {
  struct Unsteady : Entry {
    int calls = 0;
    void Run() override {
      // Repetitions take one or three units in turn.
      volatile double x = 1.0;
      const int work = calls++ % 2 == 0 ? 2000000 : 6000000;
      for (int i = 0; i < work; ++i) x = x * 1.0000001;
    }
    std::vector<float> Output() override { return {}; }
    double kv_bytes() const override { return 1.0; }
  };
  Unsteady entry;
  const Timing timing = Measure(&entry, 1, {1e-9, 0.05});
  CHECK(timing.spread > kMaxSpread);
  CHECK(timing.repetitions >= 6);

  Case c = SmallCase(Op::kSelf);
  c.left_out = "relative bias";
  struct UnsteadyContender : Falsified {
    UnsteadyContender() : Falsified(1, 0.0f) {}
    std::unique_ptr<Entry> Enter(const Problem& problem, const std::string& precision, int threads,
                                 std::string* why_not) override {
      struct Both : Unsteady {
        std::unique_ptr<Entry> real;
        std::vector<float> Output() override {
          real->Run();
          return real->Output();
        }
      };
      auto entry = std::make_unique<Both>();
      entry->real = Falsified::Enter(problem, precision, threads, why_not);
      return entry;
    }
  };
  UnsteadyContender contender;
  Roofs roofs(Tiers().back(), 1);
  Row row;
  std::string why_not;
  REQUIRE(MeasureRow(&contender, Problem(c), contender.offers()[0], &roofs, {1e-9, 0.05}, &row,
                     &why_not));
  CHECK_THAT(row.label, ContainsSubstring("without its relative bias; "));
  CHECK_THAT(row.label, ContainsSubstring("spread "));
}

}  // namespace
}  // namespace bench
}  // namespace sightline
