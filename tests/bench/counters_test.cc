// The figures of the benchmark are right: operations are counted as they should be, errors are
// errors, roofs are roofs, and what is slower shows.
#include <math.h>

#include <algorithm>
#include <catch2/catch_approx.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <filesystem>
#include <initializer_list>
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
  c.q_len = IsAttention(op) && !IsDecode(op) ? 96 : 1;
  c.kv_len = 160;
  c.beams = op == Op::kDecodeCross ? 5 : 1;
  if (op == Op::kReorder) c.batch = 3;
  return c;
}

std::vector<std::string> Tiers() {
  std::vector<std::string> tiers;
  for (size_t i = 0; i < NumTiers(); ++i) {
    if (GetTier(i).supported) tiers.push_back(GetTier(i).name);
  }
  return tiers;
}

// Those on which attentions are computed: in an emulator, which is thirty times slower, the best.
// What tiers compute has tests of its own.
std::vector<std::string> TiersToRun() {
#if defined(SIGHTLINE_TESTS_EMULATED)
  return {Tiers().back()};
#else
  return Tiers();
#endif
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
      testing::Masks masks;
      masks.causal = c.causal();
      testing::Sequence sequence;
      sequence.q_len = q_len;
      sequence.kv_len = kv_len;
      int64_t pairs = 0;
      for (int64_t i = 0; i < q_len; ++i) {
        for (int64_t j = 0; j < kv_len; ++j) {
          pairs += testing::Sees(masks, sequence, i, 0, j) ? 1 : 0;
        }
      }
      INFO(Name(op) << " " << c.Shape());
      CHECK(c.Pairs() == static_cast<double>(pairs * c.heads));
    }
  }
}

constexpr Op kAttentionOps[] = {Op::kSelf, Op::kSelfCausal, Op::kCross, Op::kDecodeSelf,
                                Op::kDecodeCross};

// Each feature alone, then some that meet.
std::vector<Features> FeatureSets(Op op) {
  const bool is_self = op == Op::kSelf || op == Op::kSelfCausal;
  std::vector<Features> sets;
  const auto add = [&sets](std::initializer_list<std::pair<int64_t Features::*, int64_t>> values) {
    Features features;
    for (const auto& [feature, value] : values) features.*feature = value;
    sets.push_back(features);
  };
  using F = Features;
  for (const auto feature : {&F::mask, &F::bias, &F::alibi, &F::sinks, &F::lse, &F::mass}) {
    add({{feature, 1}});
  }
  add({{&F::padding, 20}});
  add({{&F::block_mask, 16}});
  add({{&F::softcap, 50}});
  add({{&F::t5, 8}});
  add({{&F::weights, 3}});
  add({{&F::mask, 1}, {&F::block_mask, 24}, {&F::padding, 10}, {&F::weights, 1}, {&F::mass, 1}});
  add({{&F::softcap, 3}, {&F::bias, 1}, {&F::t5, 32}, {&F::alibi, 1}, {&F::sinks, 1}});
  if (op == Op::kSelfCausal) {
    add({{&F::prefix, 90}});
    add({{&F::prepared, 1}});
    add({{&F::prepared, 1}, {&F::window, 12}, {&F::padding, 20}, {&F::lse, 1}});
  }
  if (is_self || op == Op::kDecodeSelf) {
    add({{&F::window, 33}});
    add({{&F::window, 2}});
    add({{&F::window, 1000}});
    add({{&F::window, 20}, {&F::prefix, 7}, {&F::padding, 30}, {&F::mask, 1}});
  }
  for (const int64_t segments : {1, 3, 16}) {
    if (op == Op::kCross || op == Op::kDecodeCross) add({{&F::segments, segments}});
  }
  if (op == Op::kDecodeSelf) {
    add({{&F::pages, 128}});
    add({{&F::pages, 256}});
    add({{&F::continuous, 1}});
  }
  for (const auto ragged : {&F::ragged, &F::parts}) {
    if (!is_self) break;
    add({{ragged, 1}});
    add({{ragged, 1}, {&F::window, 12}, {&F::t5, 32}, {&F::softcap, 5}, {&F::lse, 1}});
  }
  return sets;
}

TEST_CASE("Pairs are what masks show", "[counters]") {
  for (const Op op : kAttentionOps) {
    for (const Features& features : FeatureSets(op)) {
      for (const int64_t q_len : {1, 17, 96}) {
        if (IsDecode(op) && q_len != 1) continue;
        Case c = SmallCase(op);
        c.features = features;
        c.batch = 3;
        c.q_len = q_len;
        c.kv_len = c.ragged() ? q_len : 101;
        INFO(c.OpName() << " " << c.Shape());

        // As the API understands the arguments, pair by pair.
        testing::Masks masks;
        masks.causal = op == Op::kSelfCausal;
        if (features.window != 0) {
          masks.window_left = op == Op::kSelf ? features.window / 2 : features.window - 1;
          if (op == Op::kSelf) masks.window_right = features.window / 2;
        }
        if (features.padding != 0 && !IsDecode(op)) masks.q_start = 101 - q_len;
        if (features.mask != 0) {
          masks.mask = [&c](int64_t, int64_t l, int64_t, int64_t j) { return c.MaskShows(l, j); };
        }
        if (features.block_mask != 0) {
          masks.q_block = masks.kv_block = features.block_mask;
          masks.blocks = [&c](int64_t, int64_t q_block, int64_t h, int64_t kv_block) {
            return c.BlockMaskShows(h, q_block, kv_block);
          };
        }
        int64_t pairs = 0;
        for (int64_t s = 0; s < 3; ++s) {
          testing::Sequence sequence;
          sequence.q_len = c.QLen(s);
          // Of 101 keys, none, once and twice the padding.
          sequence.kv_len = c.is_mixed() ? c.KvLen(s) : 101 - 101 * features.padding * s / 100;
          sequence.prefix_len = std::min(features.prefix, sequence.kv_len);
          for (int64_t i = 0; i < sequence.q_len; ++i) {
            int64_t in_reach = 0;
            for (int64_t j = 0; j < sequence.kv_len; ++j) {
              for (int64_t h = 0; h < c.heads; ++h) {
                pairs += testing::Sees(masks, sequence, i, h, j) ? c.beams : 0;
              }
              testing::Masks positions = masks;
              positions.mask = nullptr;
              positions.blocks = nullptr;
              in_reach += testing::Sees(positions, sequence, i, 0, j) ? 1 : 0;
            }
            if (c.KeysInReach(s, i) != in_reach) CHECK(c.KeysInReach(s, i) == in_reach);
          }
        }
        CHECK(c.Pairs() == static_cast<double>(pairs));
        CHECK(c.Operations() == 2.0 * static_cast<double>(pairs) * (64 + 64));
      }
    }
  }
}

TEST_CASE("Ragged sequences have lengths from a sixteenth to all", "[counters]") {
  Case c = SmallCase(Op::kSelf);
  c.features.ragged = 1;
  c.batch = 16;
  c.q_len = c.kv_len = 512;
  std::vector<int64_t> lengths;
  int64_t total = 0;
  for (int64_t s = 0; s < 16; ++s) {
    lengths.push_back(c.QLen(s));
    CHECK(c.KvLen(s) == c.QLen(s));
    CHECK(c.Indptr()[static_cast<size_t>(s)] == total);
    total += c.QLen(s);
  }
  CHECK(c.Indptr().back() == total);
  CHECK(c.q_length() == total);
  CHECK(c.kv_length() == total);
  CHECK(c.q_batch() == 1);
  CHECK(c.KvElements() == total * 2 * (64 + 64));
  CHECK_FALSE(std::is_sorted(lengths.begin(), lengths.end()));
  std::sort(lengths.begin(), lengths.end());
  CHECK(lengths.front() == 32);
  CHECK(lengths.back() == 512);
  CHECK(std::adjacent_find(lengths.begin(), lengths.end()) == lengths.end());
  // Their parts are the same work.
  CHECK(c.Plain().Pairs() == c.Pairs());
}

TEST_CASE("A continuous batch has caches from a 32nd to all", "[counters]") {
  Case c = SmallCase(Op::kDecodeSelf);
  c.features.continuous = 1;
  c.batch = 32;
  c.kv_len = 2048;
  std::vector<int64_t> lengths;
  int64_t total = 0;
  for (int64_t s = 0; s < 32; ++s) {
    lengths.push_back(c.KvLen(s));
    total += c.KvLen(s);
    CHECK(c.QLen(s) == 1);
  }
  CHECK(c.q_batch() == 32);
  CHECK(c.kv_length() == 2048);
  CHECK(c.Pairs() == static_cast<double>(total * c.heads));
  CHECK_FALSE(std::is_sorted(lengths.begin(), lengths.end()));
  std::sort(lengths.begin(), lengths.end());
  CHECK(lengths.front() == 64);
  CHECK(lengths.back() == 2048);
  CHECK(std::adjacent_find(lengths.begin(), lengths.end()) == lengths.end());
}

TEST_CASE("A mask hides an eighth, a block mask three quarters", "[counters]") {
  Case c = SmallCase(Op::kSelf);
  c.q_len = c.kv_len = 1024;
  const double all = c.Pairs();
  c.features.mask = 1;
  CHECK(c.Pairs() / all == Approx(7.0 / 8).margin(0.01));
  c.features = {};
  c.features.block_mask = 16;
  CHECK(c.Pairs() / all == Approx(0.25 + 0.75 / 64).margin(0.02));
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
  Case chunk = SmallCase(Op::kAppend);
  chunk.q_len = 128;
  CHECK(chunk.Operations() == 128.0 * 2 * (64 + 64));
  CHECK(SmallCase(Op::kReorder).Operations() == 1.0);
}

TEST_CASE("Row names keep to the grammar", "[counters]") {
  Case window = SmallCase(Op::kSelfCausal);
  window.features.window = 512;
  window.features.softcap = 50;
  CHECK(RowName(*MakeSightline("scalar"), window, "f32", 1) ==
        "self_causal_window_softcap/small/f32/b1.h4.kv2.d64.q96.k160.w512.cap50/"
        "tier:scalar/threads:1");
  Case c = SmallCase(Op::kDecodeCross);
  c.v_head_dim = 32;
  CHECK(c.Shape() == "b1.h4.kv2.d64.q1.k160.dv32.beams5");
  CHECK(RowName(*MakeSightline("scalar"), c, "i8", 2) ==
        "decode_cross/small/i8/b1.h4.kv2.d64.q1.k160.dv32.beams5/tier:scalar/threads:2");
  Case segments = SmallCase(Op::kCross);
  segments.features.segments = 16;
  CHECK(RowName(*MakeSightline("scalar"), segments, "i8", 1) ==
        "cross_segments/small/i8/b1.h4.kv2.d64.q96.k160.seg16/tier:scalar/threads:1");
  Case pages = SmallCase(Op::kDecodeSelf);
  pages.features.pages = 256;
  CHECK(RowName(*MakeSightline("scalar"), pages, "f32", 1) ==
        "decode_self_pages/small/f32/b1.h4.kv2.d64.q1.k160.page256/tier:scalar/threads:1");
  Case reorder = SmallCase(Op::kReorder);
  reorder.features.append = 1;
  CHECK(RowName(*MakeSightline("scalar"), reorder, "f32", 1) ==
        "reorder_append/small/f32/b3.h4.kv2.d64.q1.k160/tier:scalar/threads:1");
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
    const bool has_bf16_dot = tier == "avx512_bf16" || tier == "neon_i8mm";
    Roofs roofs(tier, 1);
    CHECK(roofs.Arithmetic("fp32_fma") > 0.0);
    CHECK((roofs.Arithmetic("int8_dot") > 0.0) == (tier != "scalar"));
    CHECK((roofs.Arithmetic("bf16_dot") > 0.0) == has_bf16_dot);
    CHECK(roofs.Arithmetic("no_such_unit") == 0.0);
    CHECK(roofs.UnitOf("f32") == "fp32_fma");
    CHECK(roofs.UnitOf("f16") == "fp32_fma");
    CHECK(roofs.UnitOf("bf16") == (has_bf16_dot ? "bf16_dot" : "fp32_fma"));
    CHECK(roofs.UnitOf("mixed16") == (has_bf16_dot       ? "bf16_dot"
                                      : tier == "scalar" ? "fp32_fma"
                                                         : "int16_dot"));
    CHECK(roofs.UnitOf("i8") == (tier == "scalar" ? "fp32_fma" : "int8_dot"));
    CHECK(roofs.ReadBandwidth(10e3) > 0.0);
  }
  CHECK(FindRoofKernels("no_such_tier") == nullptr);
}

TEST_CASE("Every op runs in every precision on every tier, exactly, and below the roof",
          "[counters]") {
  for (const std::string& tier : TiersToRun()) {
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
        CHECK((row.token_bytes > 0.0) == (op != Op::kSelf && op != Op::kSelfCausal));
#if !defined(SIGHTLINE_TESTS_EMULATED)
        CHECK((row.roof > 0.0) == !IsShare(op));
        CHECK(row.roof < 1.0);
#endif
      }
    }
  }
}

TEST_CASE("Every feature is computed in every precision on every tier", "[tiers]") {
  std::vector<std::unique_ptr<Contender>> contenders;
  for (const std::string& tier : TiersToRun()) contenders.push_back(MakeSightline(tier));
  for (const Op op : kAttentionOps) {
    for (const Features& features : FeatureSets(op)) {
      Case c = SmallCase(op);
      c.features = features;
      c.batch = 2;
      if (c.ragged()) c.kv_len = c.q_len;
      const Problem problem(c);
      for (const std::unique_ptr<Contender>& sightline : contenders) {
        for (const Offer& offer : sightline->offers()) {
          INFO(RowName(*sightline, c, offer.precision, 1));
          std::string why_not;
          const std::unique_ptr<Entry> entry =
              sightline->Enter(problem, offer.precision, 1, &why_not);
          INFO(why_not);
          REQUIRE(entry != nullptr);
          entry->Run();
          CHECK(entry->error().empty());
          const std::vector<float> out = entry->Output();
          CHECK(RelativeL2(problem, out) <= offer.max_rel_l2);
          CHECK(FurtherRelativeL2(problem, out, entry->Further()) <= offer.max_rel_l2);
          CHECK(entry->kv_bytes() > 0.0);
          if (entry->beside().empty()) continue;
          entry->RunBeside();
          CHECK(entry->error().empty());
          CHECK(RelativeL2(problem, entry->Output()) <= offer.max_rel_l2);
        }
      }
    }
  }
}

TEST_CASE("Every feature has rows", "[counters]") {
  Roofs roofs(Tiers().back(), 1);
  const std::unique_ptr<Contender> sightline = MakeSightline(Tiers().back());
  for (const Op op : kAttentionOps) {
    for (const Features& features : FeatureSets(op)) {
      Case c = SmallCase(op);
      c.features = features;
      if (c.ragged()) c.kv_len = c.q_len;
      Row row;
      std::string why_not;
      REQUIRE(MeasureRow(sightline.get(), Problem(c), sightline->offers()[0], &roofs, {1e-9, 1e-9},
                         &row, &why_not));
      INFO(row.name << " " << row.error);
      CHECK(row.error.empty());
      CHECK(row.op_name == c.OpName());
      CHECK(row.rel_l2 > 0.0);
      CHECK(row.roof > 0.0);
      CHECK(row.ops * row.timing.seconds == Approx(c.Operations()));
      const bool in_turns = features.segments + features.pages + features.continuous != 0;
      CHECK(row.plain == (features.continuous != 0 ? "a call for each"
                          : in_turns               ? "one memory"
                                                   : ""));
      CHECK((row.time_ratio > 0.0) == in_turns);
      CHECK(row.pair_ratio == row.time_ratio);
    }
  }
}

TEST_CASE("Forks and beams hold what they should", "[tiers]") {
  // Lengths at and around the ends of tiles and pages, and a copy of an open page.
  for (const std::string& tier : TiersToRun()) {
    const std::unique_ptr<Contender> sightline = MakeSightline(tier);
    for (const Op op : {Op::kAppend, Op::kFork, Op::kReorder}) {
      for (const int64_t kv_len : {1, 127, 128, 129, 256, 257, 300}) {
        Case c = SmallCase(op);
        c.kv_len = kv_len;
        c.features.append = op == Op::kAppend ? 0 : 1;
        if (op == Op::kAppend) c.q_len = std::min<int64_t>(kv_len, 100);
        const Problem problem(c);
        for (const Offer& offer : sightline->offers()) {
          INFO(RowName(*sightline, c, offer.precision, 1));
          std::string why_not;
          const std::unique_ptr<Entry> entry =
              sightline->Enter(problem, offer.precision, 1, &why_not);
          REQUIRE(entry != nullptr);
          for (int i = 0; i < 2; ++i) {
            if (entry->needs_reset()) entry->Reset();
            entry->Run();
            CHECK(entry->error().empty());
            CHECK(RelativeL2(problem, entry->Output()) <= offer.max_rel_l2);
          }
        }
      }
    }
  }
}

TEST_CASE("Mapped files are verified or not, and gone afterwards", "[counters]") {
  namespace fs = std::filesystem;
  const auto num_files = [] {
    int num = 0;
    for (const fs::directory_entry& entry : fs::directory_iterator(fs::temp_directory_path())) {
      const std::string name = entry.path().filename().string();
      if (name.rfind("sightline_bench_", 0) == 0 && entry.is_regular_file()) ++num;
    }
    return num;
  };
  const int before = num_files();
  const std::unique_ptr<Contender> sightline = MakeSightline(Tiers().back());
  for (const int64_t full : {0, 1}) {
    Case c = SmallCase(Op::kMap);
    c.features.full = full;
    const Problem problem(c);
    std::string why_not;
    const std::unique_ptr<Entry> entry = sightline->Enter(problem, "f32", 1, &why_not);
    INFO(why_not);
    REQUIRE(entry != nullptr);
    CHECK(num_files() == before + 1);
    for (int i = 0; i < 3; ++i) entry->Run();
    CHECK(entry->error().empty());
    CHECK(RelativeL2(problem, entry->Output()) < 1e-5);
    CHECK(entry->kv_bytes() >= 160.0 * 2 * 128 * 4);
  }
  CHECK(num_files() == before);
}

TEST_CASE("A token takes what docs/benchmarking.md says", "[counters]") {
  const std::unique_ptr<Contender> sightline = MakeSightline(Tiers().back());
  const struct {
    const char* precision;
    double d64, d128;
  } table[] = {{"f32", 512, 1024},    {"f16", 256, 512}, {"bf16", 256, 512},
               {"mixed16", 260, 516}, {"i8", 134, 264},  {"i8_rotated", 134, 264},
               {"i8_fine", 198, 392}};
  for (const auto& line : table) {
    for (const int64_t dim : {64, 128}) {
      for (const Op op : {Op::kPrepare, Op::kDecodeSelf}) {
        Case c = SmallCase(op);
        c.heads = c.kv_heads = 1;
        c.head_dim = c.v_head_dim = dim;
        c.kv_len = 4096;
        std::string why_not;
        const std::unique_ptr<Entry> entry =
            sightline->Enter(Problem(c), line.precision, 1, &why_not);
        if (entry == nullptr) continue;  // a precision that this tier does not have
        INFO(line.precision << " " << Name(op) << " " << c.Shape());
        const double bytes = dim == 64 ? line.d64 : line.d128;
        CHECK(entry->token_bytes() >= bytes);
        // The rest: what all keys of a memory or of a page have in common, a cache's tile in f32.
        const double tile = op == Op::kPrepare ? 0.0 : 128.0 * 2 * 4 / 4096;
        const double centers = op == Op::kPrepare ? 0.0 : 3.5 * 4 / 256;
        CHECK(entry->token_bytes() < bytes * 1.02 + static_cast<double>(dim) * (tile + centers));
      }
    }
  }
}

TEST_CASE("Prepared K and V are in a memory", "[counters]") {
  const std::unique_ptr<Contender> sightline = MakeSightline("scalar");
  for (const int64_t prepared : {0, 1}) {
    Case c = SmallCase(Op::kSelfCausal);
    c.features.prepared = prepared;
    std::string why_not;
    const std::unique_ptr<Entry> entry = sightline->Enter(Problem(c), "i8", 1, &why_not);
    REQUIRE(entry != nullptr);
    CHECK((entry->token_bytes() > 0.0) == (prepared != 0));
  }
}

TEST_CASE("What is beside a row is measured in turns with it", "[counters]") {
  struct Halves : Entry {
    std::string order;
    static void Work(int units) {
      volatile double x = 1.0;
      for (int i = 0; i < units * 100000; ++i) x = x * 1.0000001;
    }
    void Run() override { order += "r", Work(3); }
    std::string beside() const override { return "a third"; }
    void RunBeside() override { order += "b", Work(1); }
    std::vector<float> Output() override { return {}; }
    double kv_bytes() const override { return 1.0; }
  };
  Halves entry;
  const Timing timing = Measure(&entry, 1, {1e-9, 1e-9});
  CHECK(entry.order == "rrbrbrbrbrbrb");  // the first one says how many fill a repetition
  CHECK(timing.beside_seconds > 0.0);
  CHECK(timing.seconds / timing.beside_seconds > 1.5);
  CHECK(timing.seconds / timing.beside_seconds < 6.0);
}

TEST_CASE("Without a feature, the output is another one", "[counters]") {
  // So that a contender which forgets it does not pass.
  const std::unique_ptr<Contender> sightline = MakeSightline("scalar");
  for (const Op op : kAttentionOps) {
    for (const Features& features : FeatureSets(op)) {
      Case c = SmallCase(op);
      c.features = features;
      c.batch = 2;
      // Further outputs and how keys and sequences lie do not change it, a window of all keys hides
      // none, and a softcap far above the scores hardly matters.
      const Features& f = features;
      if (f.lse + f.weights + f.mass + f.prepared + f.segments + f.pages != 0 || c.ragged()) {
        continue;
      }
      if (f.window == 1000 || f.softcap == 50) continue;
      INFO(c.OpName() << " " << c.Shape());
      std::string why_not;
      const std::unique_ptr<Entry> entry = sightline->Enter(Problem(c.Plain()), "f32", 1, &why_not);
      REQUIRE(entry != nullptr);
      entry->Run();
      CHECK(RelativeL2(Problem(c), entry->Output()) > 1e-3);
    }
  }
}

TEST_CASE("Wrong further outputs do not pass", "[counters]") {
  Case c = SmallCase(Op::kCross);
  c.features.lse = 1;
  c.features.weights = 3;
  c.features.mass = 1;
  c.batch = 2;
  const Problem problem(c);
  const std::unique_ptr<Contender> sightline = MakeSightline(Tiers().back());
  std::string why_not;
  const std::unique_ptr<Entry> entry = sightline->Enter(problem, "f32", 1, &why_not);
  REQUIRE(entry != nullptr);
  entry->Run();
  const std::vector<float> out = entry->Output();
  const FurtherOutputs right = entry->Further();
  CHECK(right.lse.size() == 2 * 96 * 4);
  CHECK(right.weights.size() == 2 * 96 * 3 * 160);
  CHECK(right.mass.size() == 2 * 4 * 160);
  CHECK(FurtherRelativeL2(problem, out, right) < 1e-5);

  for (const auto member :
       {&FurtherOutputs::lse, &FurtherOutputs::weights, &FurtherOutputs::mass}) {
    FurtherOutputs wrong = right;
    for (float& x : wrong.*member) x *= 1.01f;
    CHECK(FurtherRelativeL2(problem, out, wrong) > 5e-3);
    wrong = right;
    (wrong.*member)[0] = NAN;
    CHECK(isnan(FurtherRelativeL2(problem, out, wrong)));
    wrong = right;
    std::reverse((wrong.*member).begin(), (wrong.*member).end());
    CHECK(FurtherRelativeL2(problem, out, wrong) > 1e-2);
    (wrong.*member).clear();
    CHECK(isnan(FurtherRelativeL2(problem, out, wrong)));
  }
  // The row says so.
  struct Forgetful : Falsified {
    Forgetful() : Falsified(1, 0.0f) {}
    bool knows_features() const override { return true; }
  };
  Forgetful forgetful;
  Roofs roofs(Tiers().back(), 1);
  Row row;
  REQUIRE(MeasureRow(&forgetful, problem, forgetful.offers()[0], &roofs, kShort, &row, &why_not));
  CHECK_THAT(row.error, ContainsSubstring("error is nan"));
}

TEST_CASE("Who knows no features is not asked for them", "[counters]") {
  Falsified plain_only(1, 0.0f);
  Roofs roofs(Tiers().back(), 1);
  Case c = SmallCase(Op::kSelfCausal);
  c.features.softcap = 50;
  Row row;
  std::string why_not;
  CHECK_FALSE(
      MeasureRow(&plain_only, Problem(c), plain_only.offers()[0], &roofs, kShort, &row, &why_not));
  CHECK_THAT(why_not, ContainsSubstring("plain and causal attention only"));
  CHECK_FALSE(MeasureRow(&plain_only, Problem(SmallCase(Op::kFork)), plain_only.offers()[0], &roofs,
                         kShort, &row, &why_not));
}

TEST_CASE("A decode with a window reads the window", "[counters]") {
  const std::unique_ptr<Contender> sightline = MakeSightline(Tiers().back());
  const auto kv_bytes = [&](Op op, const Features& features) {
    Case c = SmallCase(op);
    c.kv_len = 1000;
    c.batch = 3;
    c.features = features;
    std::string why_not;
    return sightline->Enter(Problem(c), "f32", 1, &why_not)->kv_bytes();
  };
  const double all = kv_bytes(Op::kDecodeSelf, {});
  CHECK(all == 3 * 1000.0 * 2 * (64 + 64) * 4);
  Features f;
  f.window = 100;
  CHECK(kv_bytes(Op::kDecodeSelf, f) == Approx(0.1 * all));
  f.prefix = 4;
  CHECK(kv_bytes(Op::kDecodeSelf, f) == Approx(0.104 * all));
  f = {};
  f.padding = 20;  // none, 20 and 40 percent
  CHECK(kv_bytes(Op::kDecodeSelf, f) == Approx(0.8 * all));
  CHECK(kv_bytes(Op::kDecodeCross, f) == Approx(0.8 * kv_bytes(Op::kDecodeCross, {})));
}

TEST_CASE("Rows are measured in turns with their plain ones", "[counters]") {
  // Its plain cases take ten times as long.
  struct SlowPlain : Falsified {
    Falsified slow{10, 0.0f};
    SlowPlain() : Falsified(1, 0.0f) {}
    bool knows_features() const override { return true; }
    std::unique_ptr<Entry> Enter(const Problem& problem, const std::string& precision, int threads,
                                 std::string* why_not) override {
      if (!problem.c.has_features()) return slow.Enter(problem, precision, threads, why_not);
      return Falsified::Enter(problem, precision, threads, why_not);
    }
  };
  Case c = SmallCase(Op::kSelfCausal);
  c.features.window = 20;
  const Case plain = c.Plain();
  Roofs roofs(Tiers().back(), 1);
  std::string why_not;
  const auto measure = [&](Contender* contender, const Case* other) {
    Row row;
    REQUIRE(MeasureRow(contender, Problem(c), contender->offers()[0], &roofs, kShort, &row,
                       &why_not, other));
    REQUIRE(row.error.empty());
    return row;
  };
  const std::unique_ptr<Contender> sightline = MakeSightline(Tiers().back());
  Row row = measure(sightline.get(), nullptr);
  CHECK(row.plain.empty());
  CHECK(row.time_ratio == 0.0);
  row = measure(sightline.get(), &plain);
  CHECK(row.plain == "self_causal");
  CHECK(row.time_ratio == row.timing.seconds / row.timing.beside_seconds);
  CHECK(row.pair_ratio == Approx(row.time_ratio * plain.Pairs() / c.Pairs()));
  CHECK(row.pair_ratio > row.time_ratio);

  SlowPlain slow;
  CHECK(measure(&slow, &plain).time_ratio < row.time_ratio / 3);
}

TEST_CASE("A prefill near the roof stays below it", "[counters]") {
#if !defined(SIGHTLINE_TESTS_EMULATED)
  Case c = SmallCase(Op::kSelf);
  c.q_len = c.kv_len = 768;
  c.head_dim = c.v_head_dim = 128;
  const Problem problem(c);
  for (const std::string& tier : TiersToRun()) {
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
  CHECK_THAT(row.label, ContainsSubstring("spread "));
}

}  // namespace
}  // namespace bench
}  // namespace sightline
