// Scores and P in 16-bit fixed point (kernels/scores_fixed-inl.h, fixed_point-inl.h): every way
// through it, bit for bit. The simulation says which ways a case took, so that none of them gets
// lost.
#include <math.h>
#include <string.h>

#include <catch2/catch_test_macros.hpp>
#include <initializer_list>
#include <map>
#include <string>
#include <vector>

#include "dispatch/kernel_table.h"
#include "dispatch/tiers.h"
#include "support/check.h"
#include "support/problem.h"
#include "support/tiers.h"

namespace sightline {
namespace testing {
namespace {

using Path = int64_t FixedPointPaths::*;

// Which ways were taken, by tier and precision.
class PathsMet {
 public:
  FixedPointPaths& Of(const Setup& setup) {
    return met_[std::string(setup.tier) + ", " + Name(setup.precision)];
  }

  // All of them, but on the scalar tier, which has no fixed point.
  void Check(std::initializer_list<Path> paths) const {
    CHECK(!met_.empty());
    for (const auto& [name, met] : met_) {
      size_t index = 0;
      for (const Path path : paths) {
        INFO("path " << index++ << " of this test, " << name);
        CHECK((met.*path > 0) == (name.find("scalar") != 0));
      }
    }
  }

 private:
  std::map<std::string, FixedPointPaths> met_;
};

// Checks problems in both quantised precisions on every tier with kernels of its own for them, and
// counts which ways they took.
class PathCheck {
 public:
  void Check(const Problem& problem) {
    Expectations expected(problem);
    for (const Precision precision : {Precision::kI8, Precision::kI8Fine}) {
      for (const char* tier : SupportedTiers()) {
        INFO(problem.c.ToString() << ", " << Name(precision) << " on " << tier);
        const Setup setup = {tier, precision};
        CHECK_THAT(Attend(problem, setup), IsClose(expected(setup)));
        met_.Of(setup).Add(expected(setup).paths);
      }
    }
  }

  void CheckMet(std::initializer_list<Path> paths) const { met_.Check(paths); }

 private:
  PathsMet met_;
};

// What the simulation takes from the tiers is 2^-f, and 1 where f is 0.
TEST_CASE("weights of the fractions of an octave", "[i8]") {
  for (const char* tier : SupportedTiers()) {
    const internal::KernelTable* table = nullptr;
    REQUIRE_THAT(internal::FindKernels(tier, &table), IsOk());
    for (const Precision precision : {Precision::kI8, Precision::kI8Fine}) {
      INFO(Name(precision) << " on " << tier);
      const internal::QuantizedScheme* scheme =
          table->kernels[static_cast<size_t>(precision)].scheme;
      REQUIRE(scheme != nullptr);
      CHECK((scheme->exp2 != nullptr) == (strcmp(tier, "scalar") != 0));
      if (scheme->exp2 == nullptr) continue;
      const int one = scheme->exp2[0] / scheme->max_p;
      CHECK((one == 128 || one == 256));
      CHECK(scheme->exp2[0] == one * scheme->max_p);
      for (int i = 0; i < 64; ++i) {
        INFO("2^(-" << i << " / 64)");
        CHECK(fabs(scheme->exp2[i] / (scheme->exp2[0] * exp2(-i / 64.0)) - 1.0) < 0.0035);
        CHECK(2 * scheme->exp2[i] > scheme->exp2[0]);
        if (i > 0) CHECK(scheme->exp2[i] < scheme->exp2[i - 1]);
      }
    }
  }
}

// Keys come in pairs whose scores are close, so that the size of a step shows.
TEST_CASE("scores of every steepness", "[i8]") {
  PathCheck check;
  uint64_t seed = 0;
  for (const float q_gain : {1.0f, 16.0f, 64.0f, 256.0f, 1024.0f}) {
    for (const bool causal : {false, true}) {
      for (const int64_t head_dim : {3, 64, 512}) {
        Case c;
        c.q_len = c.kv_len = 257;
        c.head_dim = head_dim;
        c.v_head_dim = 16;
        c.q_gain = q_gain;
        c.causal = causal;
        Problem problem(c, ++seed);
        for (int64_t key = 1; key < c.kv_len; key += 2) {
          for (int64_t d = 0; d < head_dim; ++d) {
            problem.k.Set(0, key, 0, d, 0.99f * problem.k.Get(0, key - 1, 0, d));
          }
        }
        check.Check(problem);
      }
    }
  }
  check.CheckMet({&FixedPointPaths::plain, &FixedPointPaths::gained, &FixedPointPaths::saturated,
                  &FixedPointPaths::wide_steep, &FixedPointPaths::wide_clamped,
                  &FixedPointPaths::kept, &FixedPointPaths::raised});
}

// A key much shorter than its tile's longest keeps few bits of its scores: steep rows leave fixed
// point, others stay. What a task does not see does not count.
TEST_CASE("keys of uneven length", "[i8]") {
  PathCheck check;
  for (const float q_gain : {1.0f, 16.0f, 64.0f}) {
    for (const bool causal : {false, true}) {
      for (const int64_t first_short : {0, 100, 250}) {
        Case c;
        c.q_len = 200;  // of which the last 8 are a task of their own
        c.kv_len = 257;
        c.head_dim = 32;
        c.q_gain = q_gain;
        c.causal = causal;
        Problem problem(c, 20);
        for (int64_t key = first_short; key < c.kv_len; key += 3) {
          for (int64_t d = 0; d < c.head_dim; ++d) {
            problem.k.Set(0, key, 0, d, 0.02f * problem.k.Get(0, key, 0, d));
          }
        }
        check.Check(problem);
      }
    }
  }
  check.CheckMet(
      {&FixedPointPaths::plain, &FixedPointPaths::gained, &FixedPointPaths::wide_uneven});
}

// Keys that are exactly their mean have no scale and no error: their tile is not uneven.
TEST_CASE("keys of no length", "[i8]") {
  Case c;
  c.q_len = 50;
  c.kv_len = 256;
  c.head_dim = 32;
  c.q_gain = 16.0f;
  Problem problem(c, 30);
  for (int64_t key = 0; key < c.kv_len; key += 2) {
    for (int64_t d = 0; d < c.head_dim; ++d) {
      const float x = key % 32 == 0 ? 0.0f : problem.k.Get(0, key, 0, d);
      problem.k.Set(0, key, 0, d, x);
      problem.k.Set(0, key + 1, 0, d, -x);  // the mean is 0
    }
  }
  PathCheck check;
  check.Check(problem);
  check.CheckMet({&FixedPointPaths::gained});
}

// Scores step by step through ten octaves below the first key of each tile, so that P meets each of
// its values, and p what lies half way between two of them.
TEST_CASE("weights next to the rounding of P", "[i8]") {
  PathCheck check;
  for (const int64_t head_dim : {1, 2, 5}) {
    Case c;
    c.q_len = 28;
    c.kv_len = 5 * 128;
    c.head_dim = head_dim;
    c.v_head_dim = 16;
    c.scale = static_cast<float>(log(2.0));
    Problem problem(c, 40);
    for (int64_t i = 0; i < c.q_len; ++i) {
      for (int64_t d = 0; d < head_dim; ++d) problem.q.Set(0, i, 0, d, 1.0f);
    }
    for (int64_t key = 0; key < c.kv_len; ++key) {
      const int64_t steps = key % 128 == 0 ? 0 : key / 128 * 127 + key % 128;
      const float score = static_cast<float>(steps) / -64.0f;
      for (int64_t d = 0; d < head_dim; ++d) {
        problem.k.Set(0, key, 0, d, score / static_cast<float>(head_dim));
      }
    }
    check.Check(problem);
  }
  check.CheckMet({&FixedPointPaths::ties, &FixedPointPaths::below_ties});
}

// The largest sum of products, shifted.
int64_t LargestShiftedSum(const QuantMethod& method, int64_t head_dim, int64_t sign) {
  const auto dim = static_cast<size_t>(head_dim);
  const LargestQuanta quanta = LargestQuantaOf(method, dim);
  const int shift = SumShift(method, dim);
  const int64_t half = shift == 0 ? 0 : int64_t{1} << (shift - 1);
  const int64_t sum = sign * head_dim * quanta.q * quanta.k + half;
  REQUIRE(sum < int64_t{1} << 31);
  return sum >> shift;
}

// What is added to round must not carry into a 17th bit. -32768 is kept free for hidden keys.
TEST_CASE("shifted sums fit 16 bits", "[i8]") {
  QuantMethod narrow, shorter, wide;
  shorter.max_q = 64;
  wide.wide_k = true;
  for (const QuantMethod& method : {narrow, shorter, wide}) {
    for (int64_t head_dim = 1; head_dim <= 512; ++head_dim) {
      INFO("head_dim " << head_dim << ", quanta of Q up to " << method.max_q);
      CHECK(LargestShiftedSum(method, head_dim, 1) <= 32767);
      CHECK(LargestShiftedSum(method, head_dim, -1) >= -32767);
      const bool shifted = SumShift(method, static_cast<size_t>(head_dim)) > 0;
      if (shifted) CHECK(LargestShiftedSum(method, head_dim, 1) >= 16384);
    }
  }
}

// ---- P and distances, read from the output ----------------------------------------------------

// Values that show P: channel j is one quantum of key j and nothing of all others, in int8 with
// scales that are kept, so that its mean is left alone. Then out[j] is P of key j, times the weight
// of its tile, over the sum of all p. The largest P of a tile is max_p: the others are known beside
// it to a few roundings of f32, which is a ten-thousandth of a step.
//
// Scores themselves are not to be seen, nor does anything depend on them but by their distances.
// Those to a tile's maximum show in P; more finely, where a row sees only two keys, in the sum of
// p: it is an integer below 2^16 then, which the output gives exactly, and in the first eight
// octaves each step of the distance has another p. Those between maxima of tiles show in the
// weights of these.
//
// Where P is made of scores in f32 (few rows, the scalar tier), kernels may be one off where 2^x is
// next to a half, as everywhere: the simulation says of which keys.
class WeightReader {
 public:
  // A case with as many channels as keys, one head, and rows that are one task.
  static Problem Make(Case c, uint64_t seed) {
    c.v_head_dim = c.kv_len;
    c.v_dtype = DType::kI8;
    c.v_scales = kPerChannel;
    Problem problem(c, seed);
    for (int64_t j = 0; j < c.kv_len; ++j) {
      problem.v.SetScale(0, 0, 0, j, 1.0f);
      for (int64_t key = 0; key < c.kv_len; ++key) {
        problem.v.SetQuantum(0, key, 0, j, static_cast<int8_t>(key == j ? 1 : 0));
      }
    }
    return problem;
  }

  void Check(const Problem& problem) {
    for (const Precision precision : {Precision::kI8, Precision::kI8Fine}) {
      for (const char* tier : TiersOf(precision)) {
        if (!IsAffordable(problem.c, tier)) continue;
        INFO(problem.c.ToString() << ", " << Name(precision) << " on " << tier);
        CheckTier(problem, {tier, precision});
      }
    }
  }

  void CheckMet(std::initializer_list<Path> paths) const { met_.Check(paths); }

 private:
  void CheckTier(const Problem& problem, const Setup& setup) {
    const Case& c = problem.c;
    const QuantMethod method = QuantMethodOf(c, setup);
    const QuantHead head = QuantizeHeadOf(problem, 0, 0, method, c.kv_len, c.kv_len);
    const size_t n = head.kv_len;
    bool shows_p = true;
    for (size_t i = 0; i < n * n; ++i) shows_p &= head.v[i] == (i / n == i % n ? 1 : 0);
    for (const float center : head.v_center) shows_p &= center == 0.0f;
    REQUIRE(shows_p);
    REQUIRE(c.q_len <= static_cast<int64_t>(internal::kTaskRows));

    const Tensor out = Attend(problem, setup);
    const Masks masks = MasksOf(problem);
    const Sequence sequence = SequencesOf(c).front();
    const auto scale = static_cast<float>(EffectiveScale(c.scale, c.head_dim) / log(2.0));
    FixedPointPaths& met = met_.Of(setup);
    for (int64_t i = 0; i < c.q_len; ++i) {
      SeenKeys seen;
      seen.task_visible = n;  // by the last row
      const int64_t limit = c.causal ? c.kv_len - c.q_len + i + 1 : c.kv_len;
      for (int64_t j = 0; j < limit; ++j) seen.visible.push_back(Sees(masks, sequence, i, 0, j));
      std::vector<float> q(head.head_dim);
      for (size_t d = 0; d < q.size(); ++d) {
        q[d] = problem.q.Get(0, i, 0, static_cast<int64_t>(d));
      }
      const QuantTiles row = WeighKeys(head, method, q.data(), 0.0f, seen, scale);
      met.Add(row.paths);
      INFO("row " << i);
      CheckRow(row.tiles, method, [&](size_t key) {
        return static_cast<double>(out.Get(0, i, 0, static_cast<int64_t>(key)));
      });
      int64_t hidden_with_weight = 0;
      for (int64_t j = 0; j < c.kv_len; ++j) {
        const bool sees = j < limit && seen.visible[static_cast<size_t>(j)];
        hidden_with_weight += !sees && out.Get(0, i, 0, j) != 0.0f ? 1 : 0;
      }
      CHECK(hidden_with_weight == 0);
    }
  }

  template <typename Out>
  static void CheckRow(const std::vector<QuantTile>& tiles, const QuantMethod& method,
                       const Out& out) {
    double max = -HUGE_VAL;
    for (const QuantTile& tile : tiles) max = fmax(max, tile.max);
    double sum = 0.0;  // of p, as shares of the row's largest
    for (const QuantTile& tile : tiles) {
      if (tile.max > -HUGE_VAL) sum += tile.sum * exp2(tile.max - max);
    }
    for (const QuantTile& tile : tiles) {
      if (tile.weights.empty()) continue;
      const QuantWeight* largest = &tile.weights.front();
      for (const QuantWeight& weight : tile.weights) {
        if (weight.quanta > largest->quanta) largest = &weight;
      }
      REQUIRE(largest->quanta == method.max_p);
      if (tile.max - max < -90.0) continue;  // may count as 0
      const double share = out(largest->key);
      INFO("tile of key " << largest->key << ", whose share is " << share);
      // Sums, products, and 2^x of the maxima's difference: some twenty roundings.
      const double rounding = 20.0 * kF32Unit + 2.0 * kF32Unit * (fabs(tile.max) + fabs(max));
      const double expected = exp2(tile.max - max) / sum;
      CHECK(fabs(share / expected - 1.0) <= rounding);
      if (!method.exp2.empty() && tile.weights.size() == 2 && tile.max == max && sum == tile.sum) {
        const double one = method.exp2[0];
        CHECK(nearbyint(one / share) == nearbyint(tile.sum * one));
      }
      size_t wrong = 0;
      for (const QuantWeight& weight : tile.weights) {
        const double quanta = out(weight.key) / share * method.max_p;
        const double off = fabs(quanta - static_cast<double>(weight.quanta));
        if (off < 1e-3 || (weight.is_undecided && fabs(off - 1.0) < 1e-3)) continue;
        UNSCOPED_INFO("P of key " << weight.key << " is " << quanta << ", not " << weight.quanta);
        if (++wrong == 5) break;
      }
      CHECK(wrong == 0);
    }
  }

  PathsMet met_;
};

TEST_CASE("P is bit for bit that of the simulation", "[i8]") {
  WeightReader reader;
  uint64_t seed = 80;
  for (const float q_gain : {1.0f, 16.0f, 256.0f, 4096.0f}) {
    for (const bool causal : {false, true}) {
      for (const int64_t kv_len : {1, 7, 127, 128, 200}) {
        for (const int64_t head_dim : {3, 64}) {
          Case c;
          c.q_len = 50;
          c.kv_len = kv_len;
          c.head_dim = head_dim;
          c.q_gain = q_gain;
          c.causal = causal;
          reader.Check(WeightReader::Make(c, ++seed));
        }
      }
    }
  }
  reader.CheckMet({&FixedPointPaths::plain, &FixedPointPaths::gained, &FixedPointPaths::saturated,
                   &FixedPointPaths::wide_steep, &FixedPointPaths::wide_clamped});
}

TEST_CASE("P of few rows is that of the simulation", "[i8]") {
  WeightReader reader;
  for (const int64_t q_len : {1, 3}) {
    for (const int64_t kv_len : {1, 7, 127, 128, 200}) {
      for (const float q_gain : {1.0f, 16.0f}) {
        Case c;
        c.q_len = q_len;
        c.kv_len = kv_len;
        c.head_dim = 64;
        c.q_gain = q_gain;
        reader.Check(WeightReader::Make(c, 90));
      }
    }
  }
}

// Each row sees the key of its number, and one other of the same tile.
TEST_CASE("distances between scores are those of the simulation, step by step", "[i8]") {
  WeightReader reader;
  for (const float q_gain : {0.25f, 1.0f, 4.0f, 64.0f}) {
    for (const int64_t distance : {1, 5, 32}) {
      Case c;
      c.q_len = c.kv_len = IsEmulated() || IsSanitized() ? 64 : 128;
      c.head_dim = IsEmulated() ? 32 : 64;  // the scalar tier affords no more there
      c.q_gain = q_gain;
      c.features.mask.on = true;
      Problem problem = WeightReader::Make(c, 100);
      for (int64_t i = 0; i < c.q_len; ++i) {
        const int64_t other = i / 64 * 64 + (i + distance) % 64;
        for (int64_t j = 0; j < c.kv_len; ++j) {
          problem.mask.SetQuantum(0, i, 0, j, static_cast<int8_t>(j == i || j == other ? 1 : 0));
        }
      }
      reader.Check(problem);
    }
  }
  reader.CheckMet({&FixedPointPaths::plain, &FixedPointPaths::gained});
}

// All visible scores as low as 16 bits allow; hidden keys have to be lower still.
TEST_CASE("hidden keys below the lowest scores", "[i8]") {
  for (const Precision precision : {Precision::kI8, Precision::kI8Fine}) {
    for (const char* tier : SupportedTiers()) {
      const Setup setup = {tier, precision};
      Case c;
      c.q_len = c.kv_len = 256;
      c.v_head_dim = 16;
      c.causal = true;
      const QuantMethod method = QuantMethodOf(c, setup);
      int64_t edge = 1;  // the head_dim that comes closest
      for (int64_t dim = 1; dim <= 512; ++dim) {
        if (LargestShiftedSum(method, dim, 1) > LargestShiftedSum(method, edge, 1)) edge = dim;
      }
      REQUIRE(LargestShiftedSum(method, edge, 1) > 32750);
      for (const int64_t head_dim : {edge, int64_t{65}, int64_t{128}, int64_t{511}}) {
        // The largest row factor is 31/32, beyond which there is a gain: for that one is less than
        // 16 octaves above the lowest score then, the first tile is wide.
        for (const float factor : {0.3f, 0.6f, 0.968f, 0.999f}) {
          const auto dim = static_cast<size_t>(head_dim);
          const LargestQuanta quanta = LargestQuantaOf(method, dim);
          c.head_dim = head_dim;
          const double unit = ldexp(64.0, SumShift(method, dim)) / (quanta.q * quanta.k);
          c.scale = static_cast<float>(static_cast<double>(factor) * log(2.0) / unit);
          Problem problem(c, 50);
          for (int64_t i = 0; i < c.q_len; ++i) {
            for (int64_t d = 0; d < head_dim; ++d) {
              problem.q.Set(0, i, 0, d, 1.0f);
              problem.k.Set(0, i, 0, d, i < 128 ? -1.0f : 1.0f);
            }
          }
          INFO(c.ToString() << ", row factor " << factor << ", " << Name(precision) << " on "
                            << tier);
          const Expected expected = Expect(problem, setup);
          CHECK_THAT(Attend(problem, setup), IsClose(expected));
          if (method.exp2.empty()) continue;
          const bool gained = factor > 31.0f / 32.0f;
          CHECK((expected.paths.plain > 0) == !gained);
          CHECK((expected.paths.gained > 0) == gained);
          CHECK(expected.paths.wide_steep + expected.paths.wide_uneven == 0);
        }
      }
    }
  }
}

// Values as large as they get, twice 1e27 from their mean, and the largest weights: maxima rise by
// just under what would move the reference, at every tile or once and for all.
TEST_CASE("the largest values with the largest weights", "[i8]") {
  for (const bool climbs : {true, false}) {
    PathCheck check;
    for (const int64_t q_len : {1, 6, 28}) {
      Case c;
      c.q_len = q_len;
      c.kv_len = 1290;
      c.head_dim = 1;
      c.v_head_dim = 17;
      c.scale = static_cast<float>(log(2.0));
      Problem problem(c, 70);
      for (int64_t i = 0; i < q_len; ++i) problem.q.Set(0, i, 0, 0, 1.0f);
      for (int64_t key = 0; key < c.kv_len; ++key) {
        const int64_t tile = key / 128;
        const int64_t steps = climbs ? tile : tile == 0 ? 0 : 1;
        problem.k.Set(0, key, 0, 0, 7.95f * static_cast<float>(steps));
        // The mean is that of every sixth key.
        const float value = key % 6 == 0 ? 1e27f : -1e27f;
        for (int64_t d = 0; d < c.v_head_dim; ++d) {
          problem.v.Set(0, key, 0, d, d % 2 == 0 ? value : -value);
        }
      }
      const std::vector<double> exact = ExactOutput(problem);
      for (const Precision precision : {Precision::kI8, Precision::kI8Fine}) {
        for (const char* tier : SupportedTiers()) {
          INFO(c.ToString() << ", " << Name(precision) << " on " << tier);
          const Tensor out = Attend(problem, {tier, precision});
          CHECK(ErrorOf(out, exact).relative_l2 < 0.02);  // not NaN
        }
      }
      check.Check(problem);
    }
    if (climbs) {
      check.CheckMet({&FixedPointPaths::kept, &FixedPointPaths::raised});
    } else {
      check.CheckMet({&FixedPointPaths::kept});
    }
  }
}

// As many weights as there may be, none of which may get lost or be counted twice.
TEST_CASE("a hundred thousand equal keys give the mean", "[i8]") {
  for (const int64_t q_len : {1, 5, 28}) {
    Case c;
    c.q_len = q_len;
    c.kv_len = 100000;
    c.head_dim = 2;
    c.v_head_dim = 3;
    c.distribution = Distribution::kAllEqual;
    Problem problem(c, 60);
    // Beside a constant in channel 0: values that cancel in each tile, and some that do so only
    // over all of them, where every tile rounds once.
    const double tiles = static_cast<double>(c.kv_len) / 128.0;
    for (int64_t key = 0; key < c.kv_len; ++key) {
      problem.v.Set(0, key, 0, 1, key % 2 == 0 ? 1.0f : 3.0f);
      problem.v.Set(0, key, 0, 2, key < c.kv_len / 2 ? 1.0f : 0.0f);
    }
    const float constant = problem.v.Get(0, 0, 0, 0);
    for (const Precision precision : {Precision::kI8, Precision::kI8Fine}) {
      for (const char* tier : SupportedTiers()) {
        if (!IsAffordable(c, tier)) continue;
        INFO(q_len << " queries, " << Name(precision) << " on " << tier);
        const Tensor out = Attend(problem, {tier, precision});
        for (int64_t i = 0; i < q_len; ++i) {
          const auto error = [&](int64_t d, float exact) {
            return static_cast<double>(fabsf(out.Get(0, i, 0, d) - exact));
          };
          CHECK(error(0, constant) <= 2.0 * kF32Unit * static_cast<double>(fabsf(constant)));
          CHECK(error(1, 2.0f) == 0.0);
          CHECK(error(2, 0.5f) <= tiles * kF32Unit);
        }
      }
    }
  }
}

}  // namespace
}  // namespace testing
}  // namespace sightline
