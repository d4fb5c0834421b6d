// The tests' own tools: conversions, guard pages, the oracle. A tool that errs hides errors.
#include <errno.h>
#include <math.h>
#include <string.h>

#include <catch2/catch_test_macros.hpp>
#include <string>
#include <vector>

#include "support/check.h"
#include "support/numeric.h"
#include "support/oracle.h"
#include "support/problem.h"
#include "support/tensor.h"
#include "support/tiers.h"

#if __has_include(<unistd.h>)
#include <fcntl.h>
#include <unistd.h>
#endif

namespace sightline {
namespace testing {
namespace {

TEST_CASE("every f16 survives the way to f32 and back", "[support]") {
  for (uint32_t bits = 0; bits < 0x10000; ++bits) {
    const float x = F32FromF16(static_cast<uint16_t>(bits));
    if (isnan(x)) {
      if (!isnan(F32FromF16(F16FromF32(x)))) FAIL("NaN " << bits);
    } else if (F16FromF32(x) != bits) {
      FAIL(bits << " became " << F16FromF32(x));
    }
  }
  CHECK(F32FromF16(0x3C00) == 1.0f);
  CHECK(F32FromF16(0x0001) == ldexpf(1.0f, -24));
  CHECK(F32FromF16(0x7BFF) == 65504.0f);
}

TEST_CASE("normal numbers are normal", "[support]") {
  constexpr double kDraws = 1000000.0;
  constexpr double kBounds[] = {0.5, 1.0, 2.0, 3.0, 3.6541528853610088, 4.2};  // the tail, too
  Rng rng(2000);
  double moments[5] = {};
  double beyond[2][6] = {};
  for (double n = 0.0; n < kDraws; ++n) {
    const double x = rng.Normal();
    for (int i = 1; i <= 4; ++i) moments[i] += pow(x, i) / kDraws;
    for (int i = 0; i < 6; ++i) beyond[x > 0.0][i] += fabs(x) > kBounds[i] ? 1.0 : 0.0;
  }
  // Within four standard deviations of each estimate; moments of order 2n are 1 · 3 … (2n − 1).
  CHECK(fabs(moments[1]) < 4.0 * sqrt(1.0 / kDraws));
  CHECK(fabs(moments[2] - 1.0) < 4.0 * sqrt(2.0 / kDraws));
  CHECK(fabs(moments[3]) < 4.0 * sqrt(15.0 / kDraws));
  CHECK(fabs(moments[4] - 3.0) < 4.0 * sqrt(96.0 / kDraws));
  for (int i = 0; i < 6; ++i) {
    const double expected = 0.5 * erfc(kBounds[i] / sqrt(2.0)) * kDraws;
    for (const bool side : {false, true}) {
      INFO(side << " " << kBounds[i]);
      CHECK(fabs(beyond[side][i] - expected) < 4.0 * sqrt(expected));
    }
  }
}

TEST_CASE("rounding is to nearest, ties to even", "[support]") {
  CHECK(F16FromF32(1.0f + ldexpf(1.0f, -11)) == 0x3C00);
  CHECK(F16FromF32(1.0f + 3.0f * ldexpf(1.0f, -11)) == 0x3C02);
  CHECK(F16FromF32(65519.0f) == 0x7BFF);
  CHECK(F16FromF32(65520.0f) == 0x7C00);
  CHECK(F16FromF32(ldexpf(1.0f, -25)) == 0x0000);
  CHECK(F16FromF32(3.0f * ldexpf(1.0f, -25)) == 0x0002);
  CHECK(F16FromF32(-0.0f) == 0x8000);
  CHECK(BF16FromF32(1.0f) == 0x3F80);
  CHECK(BF16FromF32(1.0f + ldexpf(1.0f, -8)) == 0x3F80);
  CHECK(BF16FromF32(1.0f + 3.0f * ldexpf(1.0f, -8)) == 0x3F82);
  CHECK(isnan(F32FromBF16(BF16FromF32(NAN))));
  constexpr struct {
    float x;
    int quantum;
  } kQuanta[] = {{0.0f, 0},       {0.5f, 0},          {1.5f, 2},       {2.5f, 2},
                 {-0.5f, 0},      {-1.5f, -2},        {-2.5f, -2},     {2.4999998f, 2},
                 {2.5000002f, 3}, {-3.5f, -4},        {126.5f, 126},   {-126.5f, -126},
                 {127.0f, 127},   {127.5f, 127},      {-127.5f, -127}, {-128.0f, -127},
                 {1e30f, 127},    {-HUGE_VALF, -127}, {NAN, 0}};
  for (const auto& row : kQuanta) {
    INFO(row.x);
    CHECK(I8FromF32(row.x, 1.0f) == row.quantum);
    CHECK(I8FromF32(0.25f * row.x, 0.25f) == row.quantum);
  }
  CHECK(F32FromI8(-128, 0.5f) == -64.0f);
}

#if __has_include(<unistd.h>)
// The kernel reads the byte for us: EFAULT instead of a signal.
bool IsReadable(int pipe_end, const unsigned char* byte) {
  return write(pipe_end, byte, 1) == 1 || errno != EFAULT;
}

TEST_CASE("buffers lie between pages that fault", "[support]") {
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  for (const size_t bytes : {size_t{1}, size_t{4095}, size_t{4096}, size_t{4097}}) {
    const GuardedBuffer at_end(bytes, Placement::kAtEnd);
    CHECK(IsReadable(ends[1], at_end.data()));
    CHECK(IsReadable(ends[1], at_end.data() + bytes - 1));
    CHECK_FALSE(IsReadable(ends[1], at_end.data() + bytes));
    const GuardedBuffer at_front(bytes, Placement::kAtFront);
    CHECK(IsReadable(ends[1], at_front.data()));
    CHECK(IsReadable(ends[1], at_front.data() + bytes - 1));
    CHECK_FALSE(IsReadable(ends[1], at_front.data() - 1));
  }
  close(ends[0]);
  close(ends[1]);
}
#endif

TEST_CASE("tensors of every layout keep their elements apart", "[support]") {
  for (const Layout layout :
       {Layout::kDense, Layout::kHeadsFirst, Layout::kFused, Layout::kDimStrided, Layout::kDimFirst,
        Layout::kReversed, Layout::kPadded}) {
    INFO(Name(layout));
    const Dims n = {2, 3, 4, 5};
    Tensor t(DType::kF32, n, layout);
    CHECK(t.IsWiped());
    std::vector<double> expected;
    for (int64_t b = 0; b < n.batch; ++b) {
      for (int64_t l = 0; l < n.length; ++l) {
        for (int64_t h = 0; h < n.heads; ++h) {
          for (int64_t d = 0; d < n.dim; ++d) {
            expected.push_back(static_cast<double>(expected.size()));
            t.Set(b, l, h, d, static_cast<float>(expected.back()));
          }
        }
      }
    }
    CHECK(t.ToDoubles() == expected);
    CHECK(t.GapsAreWiped());
    CHECK_FALSE(t.IsWiped());
  }
}

TEST_CASE("the oracle on a case done by hand", "[support]") {
  // Two queries, two keys, causal; weights of query 1: 1/4 and 3/4.
  OracleInput in;
  in.q_dims = {1, 2, 1, 1};
  in.k_dims = {1, 2, 1, 1};
  in.v_dims = {1, 2, 1, 2};
  in.q = {5.0, 2.0};
  in.k = {0.0, log(3.0)};
  in.v = {1.0, -8.0, 5.0, 4.0};
  in.scale = 0.5;
  in.causal = true;
  const OracleOutput result = ComputeOracle(in);
  CHECK(result.out[0] == 1.0);
  CHECK(result.out[1] == -8.0);
  CHECK(fabs(result.out[2] - 4.0) < 1e-15);
  CHECK(fabs(result.out[3] - 1.0) < 1e-15);
  CHECK(fabs(result.abs_out[3] - 5.0) < 1e-15);
  CHECK(fabs(result.score_bound[1] - log(3.0)) < 1e-15);
}

// "1" = seen, a row for each query.
std::string Picture(const Masks& masks, const Sequence& s) {
  std::string picture;
  for (int64_t i = 0; i < s.q_len; ++i) {
    if (i > 0) picture += ' ';
    for (int64_t j = 0; j < s.kv_len + 1; ++j) picture += Sees(masks, s, i, 0, j) ? '1' : '0';
  }
  return picture;
}

TEST_CASE("what the oracle's queries see", "[support]") {
  Sequence s;
  s.q_len = 3;
  s.kv_len = 5;
  Masks masks;
  CHECK(Picture(masks, s) == "111110 111110 111110");
  masks.causal = true;
  CHECK(Picture(masks, s) == "111000 111100 111110");
  masks.q_start = 0;
  CHECK(Picture(masks, s) == "100000 110000 111000");
  masks.q_start = -2;
  CHECK(Picture(masks, s) == "000000 000000 100000");
  s.prefix_len = 2;
  CHECK(Picture(masks, s) == "110000 110000 110000");
  masks.q_start = 9;
  CHECK(Picture(masks, s) == "111110 111110 111110");

  s.prefix_len = 0;
  masks = Masks();
  masks.window_left = 1;
  CHECK(Picture(masks, s) == "011110 001110 000110");
  masks.window_right = 0;
  CHECK(Picture(masks, s) == "011000 001100 000110");
  s.prefix_len = 1;
  CHECK(Picture(masks, s) == "111000 101100 100110");
  s.prefix_len = 0;
  masks.window_left = -1;
  masks.window_right = 1;
  CHECK(Picture(masks, s) == "111100 111110 111110");
  masks.causal = true;
  CHECK(Picture(masks, s) == "111000 111100 111110");

  masks = Masks();
  masks.mask = [](int64_t, int64_t l, int64_t, int64_t j) { return l != j; };
  CHECK(Picture(masks, s) == "011110 101110 110110");
  s.prefix_len = 5;  // overrides what is told by position, nothing else
  masks.window_left = 0;
  CHECK(Picture(masks, s) == "011110 101110 110110");
  s.q_begin = 1;
  CHECK(Picture(masks, s) == "101110 110110 111010");
  s = Sequence();
  s.q_len = 3;
  s.kv_len = 5;
  masks = Masks();
  masks.q_block = 2;
  masks.kv_block = 3;
  masks.blocks = [](int64_t, int64_t l, int64_t, int64_t j) { return l == 1 || j == 1; };
  CHECK(Picture(masks, s) == "000110 000110 111110");

  s.q_len = 5;
  s.kv_len = 3;
  masks = Masks();
  masks.causal = true;
  CHECK(Picture(masks, s) == "0000 0000 1000 1100 1110");
}

// One query, three keys with products 0, log 2 and log 6.
OracleInput OneQuery() {
  OracleInput in;
  in.q_dims = {1, 1, 1, 1};
  in.k_dims = {1, 3, 1, 1};
  in.v_dims = {1, 3, 1, 1};
  in.q = {1.0};
  in.k = {0.0, log(2.0), log(6.0)};
  in.v = {1.0, 10.0, 100.0};
  return in;
}

TEST_CASE("score modifications of the oracle, done by hand", "[support]") {
  const auto is = [](const std::vector<double>& x, double expected) {
    return fabs(x[0] - expected) <= 1e-14 * fabs(expected);
  };
  OracleInput in = OneQuery();
  OracleOutput result = ComputeOracle(in);
  CHECK(is(result.out, (1.0 + 20.0 + 600.0) / 9.0));
  CHECK(is(result.lse, log(9.0)));

  in.sinks = {log(3.0)};
  result = ComputeOracle(in);
  CHECK(is(result.out, 621.0 / 12.0));
  CHECK(is(result.lse, log(12.0)));
  CHECK(is(result.key_share, 0.75));

  in.mask = [](int64_t, int64_t, int64_t, int64_t) { return false; };
  result = ComputeOracle(in);
  CHECK(result.out[0] == 0.0);
  CHECK(is(result.lse, log(3.0)));
  in.sinks.clear();
  CHECK(ComputeOracle(in).lse[0] == -HUGE_VAL);
  in.mask = nullptr;

  in.bias = [](int64_t, int64_t, int64_t, int64_t j) { return j == 1 ? log(4.0) : -HUGE_VAL; };
  result = ComputeOracle(in);
  CHECK(result.out[0] == 10.0);
  CHECK(is(result.lse, log(8.0)));
  in.bias = [](int64_t, int64_t, int64_t, int64_t) { return -HUGE_VAL; };
  result = ComputeOracle(in);
  CHECK(result.out[0] == 0.0);
  CHECK(result.lse[0] == -HUGE_VAL);
  in.bias = [](int64_t, int64_t, int64_t, int64_t j) { return j == 1 ? HUGE_VAL : 0.0; };
  result = ComputeOracle(in);
  CHECK(isnan(result.out[0]));
  CHECK(isnan(result.lse[0]));
  in.bias = nullptr;

  in.alibi_slopes = {log(2.0)};  // the query stands at key 2: 1/4, 2/2, 6
  result = ComputeOracle(in);
  CHECK(is(result.out, (0.25 + 10.0 + 600.0) / 7.25));
  in.q_start = -1;  // 1/2, 2/4, 6/8
  CHECK(is(ComputeOracle(in).out, (0.5 + 5.0 + 75.0) / 1.75));
  in.q_start = AttentionArgs::kBottomRight;
  in.alibi_slopes.clear();

  in.relative_buckets = {4, 2, true};  // buckets by j - 2: -2 -> 1, -1 -> 1, 0 -> 0
  in.relative_bias = {log(2.0), log(3.0), 99.0, 99.0};
  CHECK(is(ComputeOracle(in).out, (3.0 + 60.0 + 1200.0) / 21.0));
  in.relative_bias.clear();

  in.softcap = 2.0;
  in.score_offset = in.score_offset_bound = {1e9};
  result = ComputeOracle(in);
  CHECK(is(result.out, 37.0));
  CHECK(is(result.lse, 2.0 + log(3.0)));
}

TEST_CASE("the int8 simulation is near the oracle", "[support]") {
  for (const Distribution distribution : {Distribution::kGaussian, Distribution::kKBias}) {
    Case c;
    c.q_len = 20;
    c.kv_len = 300;
    c.head_dim = 64;
    c.heads = 2;
    c.causal = true;
    c.distribution = distribution;
    const Problem problem(c, 1);
    const Expected simulated = Expect(problem, {BestTier(), Precision::kI8});
    const std::vector<double> exact = ExactOutput(problem);
    double difference = 0.0, norm = 0.0, widest = 0.0;
    for (size_t i = 0; i < exact.size(); ++i) {
      difference += (simulated.value[i] - exact[i]) * (simulated.value[i] - exact[i]);
      norm += exact[i] * exact[i];
      widest = fmax(widest, simulated.tolerance[i]);
    }
    CHECK(widest < 0.003);
    CHECK(sqrt(difference / norm) < 0.02);
    CHECK(sqrt(difference / norm) > 1e-4);
  }
}

TEST_CASE("checks fail when they should", "[support]") {
  Case c;
  c.q_len = 2;
  c.kv_len = 3;
  c.head_dim = 4;
  const Problem problem(c, 1);
  const Expected expected = Expect(problem, {});
  Tensor out = problem.NewOut();
  const auto store = [&] {
    for (int64_t l = 0; l < 2; ++l) {
      for (int64_t d = 0; d < 4; ++d) {
        out.Set(0, l, 0, d, static_cast<float>(expected.value[expected.dims.Index(0, l, 0, d)]));
      }
    }
  };
  store();
  CHECK(IsClose(expected).match(out));
  out.Set(0, 1, 0, 2, out.Get(0, 1, 0, 2) + 2e-5f);
  CHECK_FALSE(IsClose(expected).match(out));
  store();
  out.Set(0, 1, 0, 2, NAN);
  CHECK_FALSE(IsClose(expected).match(out));

  const Status status = Status::Error(StatusCode::kInvalidArgument, "q.dim is %d", 3);
  CHECK(IsError(StatusCode::kInvalidArgument, "q").match(status));
  CHECK(IsError(StatusCode::kInvalidArgument, "dim").match(status));
  CHECK_FALSE(IsError(StatusCode::kInvalidArgument, "im").match(status));
  CHECK_FALSE(IsError(StatusCode::kUnsupported, "q").match(status));
}

}  // namespace
}  // namespace testing
}  // namespace sightline
