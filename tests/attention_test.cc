// Attention over tensors against the oracle (f32, f16) and the simulation (i8, i8_fine): every tier
// this CPU has, every remainder of every tile size, head counts, element types, strides and scales.
#include <math.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include "support/check.h"
#include "support/problem.h"
#include "support/tiers.h"

namespace sightline {
namespace testing {
namespace {

constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kI8};
constexpr bool kCausal[] = {false, true};

// Around the vector widths (4, 8, 16), the query blocks (16, 32, 48 rows), the key block (64), the
// softmax tile (128), the rows of a task (192) and the V tile (1024).
constexpr int64_t kLengths[] = {0,  1,  2,   3,   15,  16,  17,  47,  48,   49,   63,
                                64, 65, 127, 128, 129, 191, 192, 193, 1023, 1024, 1025};
constexpr size_t kNumLengths = sizeof(kLengths) / sizeof(kLengths[0]);

// Other granularities of scales for each seed and tensor: all are met in 16 seeds.
void SetScales(uint64_t seed, Case* c) {
  c->q_scales = static_cast<unsigned>(seed % kNumGranularities);
  c->k_scales = static_cast<unsigned>(3 * seed % kNumGranularities);
  c->v_scales = static_cast<unsigned>((5 * seed + 8) % kNumGranularities);
  c->out_scales = static_cast<unsigned>((7 * seed + 4) % kNumGranularities);
}

void CheckCase(const Case& c, uint64_t seed) { CheckEverywhere(Problem(c, seed)); }

// Every residue modulo every vector, block and tile but the V tile's.
TEST_CASE("every q_len to 200 beside every kv_len to 260", "[attention][lengths]") {
  for (int64_t length = 1; length <= 260; ++length) {
    for (const bool causal : kCausal) {
      Case c;
      c.q_len = 1 + (length * 77) % 200;  // 77 and 200 have no common factor: all are met
      c.kv_len = length;
      c.head_dim = 4;
      c.causal = causal;
      CheckCase(c, static_cast<uint64_t>(length));
    }
  }
}

TEST_CASE("lengths around every tile size", "[attention][lengths]") {
  constexpr int64_t kHeadDims[] = {8, 20, 64, 33, 16};
  uint64_t seed = 0;
  for (size_t i = 0; i < kNumLengths; ++i) {
    std::vector<int64_t> q_lens = {1, 2, 3};
    for (const int step : {0, 1, 6, 11, 17}) {
      q_lens.push_back(kLengths[(i + static_cast<size_t>(step)) % kNumLengths]);
    }
    for (const int64_t q_len : q_lens) {
      for (const bool causal : kCausal) {
        Case c;
        c.q_len = q_len;
        c.kv_len = kLengths[i];
        c.head_dim = kHeadDims[++seed % 5];
        c.causal = causal;
        CheckCase(c, seed);
      }
    }
  }
}

// One query or a few, from query positions, heads of a group and beams: kernels split K/V here.
TEST_CASE("few rows over many keys", "[attention][decode]") {
  constexpr struct {
    int64_t q_len, heads, kv_heads, beams;
  } kRows[] = {{1, 1, 1, 1},
               {1, 2, 1, 1},
               {3, 1, 1, 1},
               {1, 4, 1, 1},
               {1, 2, 2, 5},
               {2, 4, 1, 1},
               {1, 5, 1, 3},
               {1, 16, 1, 1},
               {1, 1, 1, 17},
               // Blocks of rows that share K/V: full, and two of unequal size.
               {2, 3, 1, 1},
               {1, 7, 1, 1},
               {1, 8, 2, 2}};
  constexpr int64_t kHeadDims[] = {64, 20, 128, 33, 8, 80};
  uint64_t seed = 500;
  for (const int64_t kv_len :
       {65, 129, 255, 256, 257, 511, 513, 1000, 1023, 1025, 2047, 2048, 2049, 4095, 4097, 5000}) {
    for (const auto& rows : kRows) {
      Case c;
      c.q_len = rows.q_len;
      c.kv_len = kv_len;
      c.heads = rows.heads;
      c.kv_heads = rows.kv_heads;
      c.beams = rows.beams;
      c.head_dim = kHeadDims[++seed % 6];
      c.v_head_dim = kHeadDims[(seed + seed / 6) % 6];
      c.causal = kCausal[seed / 3 % 2];
      c.q_gain = seed % 5 == 0 ? 16.0f : 1.0f;
      CheckCase(c, seed);
    }
  }
}

// One block of rows on tiers with 32 registers, blocks of uneven size, several full ones; as many
// rows as decode takes on the widest tiers, and one more. Over one chunk of keys, two and three.
TEST_CASE("blocks of rows over many keys", "[attention][decode]") {
  constexpr int64_t kHeadDims[] = {64, 20, 33};
  uint64_t seed = 800;
  for (const int64_t kv_len : {1025, 1100, 2047, 2049, 2200}) {
    for (const int64_t q_len : {6, 7, 12, 24, 25}) {
      for (const bool causal : kCausal) {
        Case c;
        c.q_len = q_len;
        c.kv_len = kv_len;
        c.head_dim = kHeadDims[++seed % 3];
        c.v_head_dim = kHeadDims[seed / 3 % 3];
        c.causal = causal;
        CheckCase(c, seed);
      }
    }
  }
}

// Kv heads of a memory or cache are decoded one after the other: what has been found out about the
// keys of the first serves the next, as far as one chunk has them all and nothing is masked.
TEST_CASE("few rows of several heads over many keys that are packed", "[attention][decode]") {
  uint64_t seed = 900;
  for (const int64_t kv_len : {100, 2049, 4097, 5000}) {
    for (const bool masked : {false, true}) {
      Case c;
      c.q_len = 2;
      c.kv_len = kv_len;
      c.heads = 6;
      c.kv_heads = 3;
      c.head_dim = 20;
      c.causal = true;
      c.kv_batch = 2;
      c.features.kv_lens = {static_cast<int32_t>(kv_len), static_cast<int32_t>(kv_len / 2)};
      c.features.mask.on = masked;
      const Problem problem(c, ++seed);
      Expectations expectations(problem);
      for (const Precision precision : kPrecisions) {
        for (const char* tier : TiersOf(precision)) {
          if (!IsAffordable(c, tier) || !TakesTurn(tier)) continue;
          INFO(c.ToString() << ", " << Name(precision) << " on " << tier);
          for (const Source source : {Source::kMemory, Source::kCache}) {
            const Setup setup = {tier, precision, source};
            CHECK_THAT(Attend(problem, setup), IsClose(expectations(setup)));
          }
        }
      }
    }
  }
}

TEST_CASE("every kind of head_dim and v_head_dim", "[attention][head_dims]") {
  constexpr int64_t kDims[] = {1,  2,  3,  4,  5,  7,  8,   15,  16,  17,  31,  32,  33,
                               40, 63, 64, 65, 80, 96, 100, 128, 129, 192, 256, 511, 512};
  constexpr size_t kNumDims = sizeof(kDims) / sizeof(kDims[0]);
  constexpr struct {
    int64_t q_len, kv_len;
    bool causal;
  } kShapes[] = {{1, 66, false},  {1, 129, true},  {5, 66, true},
                 {5, 130, false}, {49, 67, false}, {49, 49, true}};
  uint64_t seed = 1000;
  for (size_t i = 0; i < kNumDims; ++i) {
    for (const auto& shape : kShapes) {
      Case c;
      c.q_len = shape.q_len;
      c.kv_len = shape.kv_len;
      c.causal = shape.causal;
      c.head_dim = kDims[i];
      // A different one for every shape; 0 stands for head_dim.
      const size_t step = 5 * static_cast<size_t>(++seed % 6);
      c.v_head_dim = step == 0 ? 0 : kDims[(i + step) % kNumDims];
      CheckCase(c, seed);
    }
  }
}

TEST_CASE("grouped heads, batches and beams", "[attention][heads]") {
  constexpr struct {
    int64_t heads, kv_heads;
  } kHeads[] = {{1, 1}, {8, 2}, {6, 3}, {4, 1}, {5, 5}, {3, 1}};
  constexpr struct {
    int64_t q_len, kv_len;
  } kShapes[] = {{1, 40}, {1, 130}, {2, 130}, {17, 40}, {17, 17}};
  uint64_t seed = 2000;
  for (const auto& heads : kHeads) {
    for (const int64_t beams : {1, 2, 3, 5}) {
      for (const int64_t kv_batch : {1, 2}) {
        for (const auto& shape : kShapes) {
          Case c;
          c.q_len = shape.q_len;
          c.kv_len = shape.kv_len;
          c.heads = heads.heads;
          c.kv_heads = heads.kv_heads;
          c.kv_batch = kv_batch;
          c.beams = beams;
          c.head_dim = 24;
          c.v_head_dim = 20;
          c.causal = kCausal[++seed % 2];
          CheckCase(c, seed);
        }
      }
    }
  }
}

TEST_CASE("every combination of element types", "[attention][dtypes]") {
  uint64_t seed = 3000;
  for (const DType q : kDTypes) {
    for (const DType k : kDTypes) {
      for (const DType v : kDTypes) {
        for (const DType out : kDTypes) {
          Case c;
          c.q_len = ++seed % 2 == 0 ? 1 : 33;
          c.kv_len = 70;
          c.head_dim = 24;
          c.v_head_dim = 19;
          c.q_dtype = q;
          c.k_dtype = k;
          c.v_dtype = v;
          c.out_dtype = out;
          SetScales(seed, &c);
          c.causal = kCausal[seed / 2 % 2];
          CheckCase(c, seed);
        }
      }
    }
  }
}

TEST_CASE("every layout of each tensor", "[attention][strides]") {
  constexpr Layout kLayouts[] = {Layout::kDense,    Layout::kHeadsFirst, Layout::kFused,
                                 Layout::kPadded,   Layout::kDimStrided, Layout::kReversed,
                                 Layout::kDimFirst, Layout::kSharedHeads};
  constexpr size_t kNumInputLayouts = 8;
  constexpr size_t kNumOutLayouts = 7;  // not kSharedHeads
  uint64_t seed = 4000;
  for (size_t i = 0; i < kNumInputLayouts; ++i) {
    for (size_t j = 0; j < kNumInputLayouts; ++j) {
      for (const int64_t q_len : {1, 19}) {
        Case c;
        c.q_len = q_len;
        c.kv_len = 67;
        c.heads = 4;
        c.kv_heads = 2;
        c.kv_batch = 2;
        c.beams = 2;
        c.head_dim = 24;
        c.v_head_dim = 18;
        c.q_layout = kLayouts[i];
        c.k_layout = kLayouts[(i + j) % kNumInputLayouts];
        c.v_layout = kLayouts[j];
        c.out_layout = kLayouts[(i + 3 * j) % kNumOutLayouts];
        ++seed;
        c.q_dtype = kDTypes[seed % 4];
        c.k_dtype = kDTypes[seed / 4 % 4];
        c.v_dtype = kDTypes[(seed + seed / 16) % 4];
        c.out_dtype = kDTypes[(seed / 2 + seed / 16) % 4];
        SetScales(seed / 4, &c);
        c.causal = kCausal[seed / 2 % 2];
        CheckCase(c, seed);
      }
    }
  }
}

// One scale for all elements of a vector, neighbouring scales and scattered ones, beside elements
// that are neighbours or scattered, up to and beyond whole vectors.
TEST_CASE("every granularity of scales", "[attention][scales]") {
  constexpr Layout kLayouts[] = {Layout::kDense, Layout::kDimStrided, Layout::kReversed};
  constexpr int64_t kDims[] = {1, 16, 33, 80};
  uint64_t seed = 4300;
  for (const Layout layout : kLayouts) {
    for (const int64_t dim : kDims) {
      for (unsigned i = 0; i < kNumGranularities; ++i) {
        Case c;
        c.q_len = ++seed % 2 == 0 ? 1 : 19;
        c.kv_len = 67;
        c.heads = 4;
        c.kv_heads = 2;
        c.kv_batch = 2;
        c.beams = 2;
        c.head_dim = dim;
        c.v_head_dim = 81 - dim;
        c.q_layout = c.k_layout = c.v_layout = c.out_layout = layout;
        c.q_dtype = c.k_dtype = c.v_dtype = c.out_dtype = DType::kI8;
        SetScales(i, &c);
        c.causal = kCausal[seed / 2 % 2];
        CheckCase(c, seed);
      }
    }
  }
}

// Only the output must have its memory to itself.
TEST_CASE("inputs may share memory", "[attention][strides]") {
  Case c;
  c.q_len = c.kv_len = 70;
  c.heads = c.kv_heads = 2;
  c.head_dim = 24;
  for (const bool causal : kCausal) {
    c.causal = causal;
    Problem apart(c, 4500);
    for (int64_t l = 0; l < c.q_len; ++l) {
      for (int64_t h = 0; h < c.heads; ++h) {
        for (int64_t d = 0; d < c.head_dim; ++d) {
          apart.k.Set(0, l, h, d, apart.q.Get(0, l, h, d));
          apart.v.Set(0, l, h, d, apart.q.Get(0, l, h, d));
        }
      }
    }
    for (const Precision precision : kPrecisions) {
      for (const char* tier : TiersOf(precision)) {
        INFO("precision " << Name(precision) << ", tier " << tier);
        AttentionDesc desc = DescOf(c, {tier, precision});
        desc.owns_workspace = true;
        Plan plan;
        REQUIRE_THAT(Plan::Create(desc, &plan), IsOk());
        const Tensor out = apart.NewOut();
        AttentionArgs args = TensorArgs(apart, out);
        args.k = args.v = args.q;
        REQUIRE_THAT(Run(plan, args), IsOk());
        CHECK_THAT(out, Equals(Attend(apart, {tier, precision})));
      }
    }
  }
}

TEST_CASE("scale", "[attention][scale]") {
  uint64_t seed = 5000;
  for (const float scale : {1.0f, 0.01f, 3.0f, -0.25f}) {
    for (const bool causal : kCausal) {
      Case c;
      c.q_len = 33;
      c.kv_len = 150;
      c.head_dim = 32;
      c.scale = scale;
      c.causal = causal;
      CheckCase(c, ++seed);
    }
  }
}

// Scores hundreds apart: the reference of the exponentials has to follow the running maximum.
TEST_CASE("very peaky scores", "[attention][peaky]") {
  uint64_t seed = 6000;
  for (const float q_gain : {16.0f, 64.0f, 1024.0f}) {
    for (const bool causal : kCausal) {
      for (const int64_t q_len : {1, 50, 257}) {
        for (const int64_t head_dim : {16, 64}) {
          Case c;
          c.q_len = q_len;
          c.kv_len = 257;
          c.head_dim = head_dim;
          c.q_gain = q_gain;
          c.causal = causal;
          CheckCase(c, ++seed);
        }
      }
    }
  }
}

TEST_CASE("every distribution", "[attention][distributions]") {
  uint64_t seed = 7000;
  for (const Distribution distribution : kDistributions) {
    for (const bool causal : kCausal) {
      for (const int64_t kv_len : {50, 400, 2100}) {
        Case c;
        c.q_len = 33;
        c.kv_len = kv_len;
        c.head_dim = 32;
        c.causal = causal;
        c.distribution = distribution;
        CheckCase(c, ++seed);
      }
    }
  }
}

// Running before the first byte of a buffer, as running past its end, would fault; all other tests
// put buffers right before a guard page.
TEST_CASE("buffers right before or after a guard page", "[attention][guard]") {
  const Placement placement = GENERATE(Placement::kAtFront, Placement::kAtEnd);
  uint64_t seed = 8000;
  for (const int64_t length : {1, 3, 17, 48, 65, 129, 193}) {
    for (const int64_t dim : {1, 5, 16, 33, 64, 100}) {
      for (const Layout layout : {Layout::kDense, Layout::kReversed, Layout::kHeadsFirst}) {
        Case c;
        c.placement = placement;
        c.q_len = ++seed % 3 == 0 ? 1 : length;
        c.kv_len = length;
        c.heads = 2;
        c.head_dim = dim;
        c.v_head_dim = 101 - dim;
        c.q_layout = c.k_layout = c.v_layout = c.out_layout = layout;
        c.q_dtype = c.k_dtype = c.v_dtype = c.out_dtype = kDTypes[seed / 3 % 4];
        SetScales(seed / 2, &c);
        c.causal = kCausal[seed / 5 % 2];
        CheckCase(c, seed);
      }
    }
  }
}

// Every product as large as it gets, its neighbours of the same sign: pairs of them do not fit 16
// bits (2 * 255 * 127), which is what some instructions keep; tiers that have those let Q and P
// reach less far. K is +127 quanta in the first tile and -127 in the second, V +-127, Q and P as
// large as they get for every key: first the same sign through a tile, then in groups of four keys,
// which one 32-bit lane adds up.
TEST_CASE("int8 products that 16 bits cannot hold", "[attention][i8_extremes]") {
  const float q_sign = GENERATE(1.0f, -1.0f);
  const Source source = GENERATE(Source::kTensors, Source::kMemory);
  constexpr struct {
    int64_t q_len, head_dim, v_head_dim, v_run;
    bool causal;
  } kCases[] = {{1, 512, 16, 128, false}, {1, 512, 16, 4, false},    {5, 512, 80, 128, true},
                {5, 64, 80, 4, true},     {49, 512, 16, 128, false}, {49, 512, 33, 4, true},
                {256, 64, 16, 128, true}};
  constexpr int64_t kTile = 128;
  for (const auto& row : kCases) {
    Case c;
    c.q_len = row.q_len;
    c.kv_len = 2 * kTile;
    c.head_dim = row.head_dim;
    c.v_head_dim = row.v_head_dim;
    c.causal = row.causal;
    c.scale = 1.0f / static_cast<float>(row.head_dim);
    Problem problem(c, 1);
    for (int64_t i = 0; i < c.q_len; ++i) {
      for (int64_t d = 0; d < c.head_dim; ++d) problem.q.Set(0, i, 0, d, q_sign);
    }
    for (int64_t key = 0; key < c.kv_len; ++key) {
      const float k = key < kTile ? 0.5f : -0.5f;
      const float v = key / row.v_run % 2 == 0 ? 1.0f : -1.0f;
      for (int64_t d = 0; d < c.head_dim; ++d) problem.k.Set(0, key, 0, d, k);
      for (int64_t d = 0; d < c.v_head_dim; ++d) problem.v.Set(0, key, 0, d, d % 2 == 0 ? v : -v);
    }
    Expectations expected(problem);
    for (const Precision precision : {Precision::kI8, Precision::kI8Fine}) {
      for (const char* tier : SupportedTiers()) {
        if (!IsAffordable(c, tier)) continue;
        INFO(c.ToString() << ", Q " << q_sign << ", V alternates every " << row.v_run << " keys, "
                          << Name(precision) << " on " << tier << ", source "
                          << static_cast<int>(source));
        const Setup setup = {tier, precision, source};
        if (!row.causal && row.v_run == kTile) {
          // In closed form: weights e^0.5 and e^-0.5, values 1 and -1. Many rows: scores in steps
          // of 1/64 octave, each off by up to half of one for its own rounding and as much for that
          // of the row's factor.
          const double allowed = c.q_len < 16 ? 1e-5 : log(2.0) / 64.0;
          CHECK(fabs(expected(setup).value[0] - q_sign * tanh(0.5)) < allowed);
        }
        CHECK_THAT(Attend(problem, setup), IsClose(expected(setup)));
      }
    }
  }
}

}  // namespace
}  // namespace testing
}  // namespace sightline
