// Masks: padding, causal, windows, prefixes, boolean masks and block masks, ragged batches. Each
// alone around every tile boundary, and what no random case is likely to meet: rows that see
// nothing, NaN behind a mask, bits that must not change.
#include <math.h>
#include <string.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>
#include <vector>

#include "dispatch/plan.h"
#include "dispatch/window_slices.h"
#include "support/check.h"
#include "support/problem.h"
#include "support/threads.h"
#include "support/tiers.h"

namespace sightline {
namespace testing {
namespace {

// Keys around the key block (64), the softmax tile (128) and the V tile (1024).
constexpr int64_t kKeys[] = {63, 64, 65, 127, 128, 129, 191, 192, 193};
constexpr int64_t kManyKeys[] = {1023, 1024, 1025};
// One row and a few, which decode; query tiles of 16, 32 and 48 rows and the task's 192, and one
// more or less.
constexpr int64_t kQueries[] = {1, 3, 15, 16, 17, 31, 33, 47, 49, 191, 192, 193};
constexpr size_t kNumQueries = sizeof(kQueries) / sizeof(kQueries[0]);

// Two heads that share K and V. All of these tests ask for lse as well.
Case MaskedCase(int64_t q_len, int64_t kv_len) {
  Case c;
  c.q_len = q_len;
  c.kv_len = kv_len;
  c.heads = 2;
  c.head_dim = 12;
  c.v_head_dim = 20;
  c.features.lse = true;
  return c;
}

// A few of kQueries, others for each seed: all are met in three.
std::vector<int64_t> SomeQueries(uint64_t seed) {
  std::vector<int64_t> some = {1};
  for (size_t i = static_cast<size_t>(1 + seed % 3); i < kNumQueries; i += 3) {
    some.push_back(kQueries[i]);
  }
  return some;
}

void SetMask(Problem* problem, int64_t i, int64_t h, int64_t j, bool seen) {
  problem->mask.SetQuantum(0, i, h, j, seen ? 1 : 0);
}

// ---- Each mask alone --------------------------------------------------------------------------

TEST_CASE("padding of any length", "[masks]") {
  uint64_t seed = 0;
  const auto check = [&](int64_t used, int64_t padding, const std::vector<int64_t>& q_lens) {
    for (const int64_t q_len : q_lens) {
      for (const bool causal : {false, true}) {
        Case c = MaskedCase(q_len, used + padding);
        c.kv_batch = 2;
        c.beams = ++seed % 3 == 0 ? 2 : 1;
        c.causal = causal;
        c.features.kv_lens = {static_cast<int32_t>(used), static_cast<int32_t>(seed % 80)};
        c.features.kv_lens[1] = std::min(c.features.kv_lens[1], static_cast<int32_t>(c.kv_len));
        CheckEverywhere(Problem(c, seed));
      }
    }
  };
  for (const int64_t used : kKeys) {
    for (const int64_t padding : {0, 1, 70}) check(used, padding, SomeQueries(seed / 2));
  }
  for (const int64_t used : {0, 1, 2}) check(used, 130, {1, 3, 17, 49});
  for (const int64_t used : kManyKeys) check(used, 129, {1, 5, 17});
}

TEST_CASE("windows of any width", "[masks]") {
  constexpr int64_t kWindows[] = {0, 1, 63, 64, 128, 300};
  uint64_t seed = 1000;
  for (const int64_t window : kWindows) {
    const auto check = [&](int64_t kv_len, const std::vector<int64_t>& q_lens) {
      for (const int64_t q_len : q_lens) {
        Case c = MaskedCase(q_len, kv_len);
        c.features.window_left = window;
        c.causal = ++seed % 2 == 0;
        CheckEverywhere(Problem(c, seed));
        c.causal = false;
        c.features.window_right = kWindows[seed % 6];
        CheckEverywhere(Problem(c, seed));
        c.features.window_left = -1;
        c.features.window_right = window;
        CheckEverywhere(Problem(c, seed));
      }
    };
    for (const int64_t kv_len : kKeys) check(kv_len, SomeQueries(seed));
    for (const int64_t kv_len : kManyKeys) check(kv_len, {1, 3, 33});
  }
}

// Windows over K and V given as tensors, so long that Run packs and reads them by slices; see
// dispatch/window_slices.h.
std::vector<Case> SlicedCases() {
  Case plain;
  plain.q_len = plain.kv_len = 1700;
  plain.head_dim = 256;
  plain.causal = true;
  plain.features.window_left = 40;
  plain.features.lse = true;
  std::vector<Case> cases = {plain};

  Case c = plain;  // both sides, and a last slice of a task and five rows
  c.causal = false;
  c.q_len = 1733;
  c.features.window_right = 25;
  c.features.bias.on = true;
  c.features.bias.layout = Layout::kPadded;
  c.features.mask.on = true;
  c.features.mask.density = 0.9;
  cases.push_back(c);

  c = plain;  // scales of every token, which slices begin in the middle of
  c.q_dtype = c.k_dtype = c.v_dtype = c.out_dtype = DType::kI8;
  c.q_scales = c.k_scales = c.v_scales = c.out_scales = kPerToken;
  c.q_layout = c.k_layout = c.v_layout = c.out_layout = Layout::kPadded;
  cases.push_back(c);

  c = plain;  // a last slice that takes five rows of the next task as well; rows that see nothing
  c.q_len = 1733;
  c.kv_batch = 2;
  c.heads = 4;
  c.kv_heads = 2;
  c.q_layout = c.k_layout = c.v_layout = c.out_layout = Layout::kReversed;
  c.features.softcap = 20.0f;
  c.features.alibi_slopes = {0.3f, 0.1f, 0.7f, 0.0f};
  c.features.sinks = {1.0f, -2.0f, 0.0f, 3.0f};
  cases.push_back(c);

  c = plain;  // int8 that is packed as it is
  c.beams = 2;
  c.q_dtype = c.k_dtype = c.v_dtype = DType::kI8;
  c.features.relative_buckets.num_buckets = 32;
  c.features.relative_buckets.max_distance = 40;
  c.features.mask.on = true;
  c.features.mask.varies = kPerChannel;
  cases.push_back(c);

  // The first queries, or the last ones, see nothing; or none does.
  for (const int64_t q_start : {-900, 700, INT32_MAX - 255}) {
    c = plain;
    c.causal = false;
    c.features.window_right = 0;
    c.features.q_start = q_start;
    cases.push_back(c);
  }
  return cases;
}

bool IsSliced(const Case& c, const Setup& setup, const AttentionArgs& args) {
  Plan plan;
  REQUIRE_THAT(Plan::Create(DescOf(c, setup), &plan), IsOk());
  const internal::PlanImpl& impl = *PlanAccess::Get(plan);
  return internal::QueriesOfSlice(impl, args, setup.parallel.num_workers) < c.q_len;
}

TEST_CASE("a long window by slices has the bits of one piece", "[masks]") {
  uint64_t seed = 1900;
  for (const Case& c : SlicedCases()) {
    Problem problem(c, ++seed);
    // Behind the end of the first slices, whatever their length.
    for (int64_t j = 192; j < c.kv_len; j += 192) problem.v.Set(0, j, 0, 3, NAN);
    // Kernels know nothing of slices: floats, integers, and one of each.
    for (const Precision precision : {Precision::kF32, Precision::kI8, Precision::kMixed16}) {
      for (const char* tier : TiersOf(precision)) {
        if (!TakesTurn(tier)) continue;
        // In an emulator a quarter of an hour, which says nothing that the first case does not.
        if (IsEmulated() && (seed != 1901 || precision != Precision::kF32)) continue;
        const bool is_slow = IsSanitized() || strcmp(tier, "scalar") == 0;
        if (is_slow && seed > 1903) continue;
        INFO(c.ToString() << ", " << Name(precision) << " on " << tier);
        Setup setup = {tier, precision, Source::kTensors};
        setup.rotate_k = precision == Precision::kI8 && seed % 2 == 0;
        bool is_cut = false;
        setup.amend = [&](AttentionArgs& args) { is_cut = IsSliced(c, setup, args); };
        Tensor lse;
        const Tensor out = Attend(problem, setup, &lse);
        CHECK(is_cut);
        setup.parallel = TwoThreads(2);
        Tensor lse_of_two;
        CHECK_THAT(Attend(problem, setup, &lse_of_two), Equals(out));
        CHECK_THAT(lse_of_two, Equals(lse));

        // Memories are read in one piece.
        setup.source = Source::kMemory;
        setup.amend = {};
        Tensor whole_lse;
        CHECK_THAT(Attend(problem, setup, &whole_lse), Equals(out));
        CHECK_THAT(whole_lse, Equals(lse));
      }
    }
  }
}

TEST_CASE("what slices could not serve is in one piece", "[masks]") {
  Case c = SlicedCases().front();
  const auto is_sliced = [](const Case& some) {
    const Setup setup = {BestTier(), Precision::kF32};
    const Problem problem(some, 1950);
    const Tensor out = problem.NewOut();
    return IsSliced(some, setup, TensorArgs(problem, out));
  };
  CHECK(is_sliced(c));
  c.features.kv_lens = {1600};
  CHECK(!is_sliced(c));
  c.features.kv_lens = {};
  c.features.prefix_lens = {4};
  CHECK(!is_sliced(c));
  c.features.prefix_lens = {};
  c.features.blocks.on = true;
  CHECK(!is_sliced(c));
  c.features.blocks.on = false;
  c.features.window_left = 800;
  CHECK(!is_sliced(c));
  c.features.window_left = -1;
  CHECK(!is_sliced(c));
}

TEST_CASE("queries that stand anywhere", "[masks]") {
  constexpr int64_t kFarthest = INT32_MAX - 255;  // what the library takes
  uint64_t seed = 2000;
  for (const int64_t kv_len : {65, 128, 193, 1025}) {
    for (const int64_t q_start :
         {int64_t{-500}, int64_t{-16}, int64_t{-1}, int64_t{0}, int64_t{5}, kv_len - 1, kv_len,
          kv_len + 1, kv_len + 50, kv_len + 1000, kFarthest, -kFarthest}) {
      for (const int64_t q_len : {1, 3, 17, 50}) {
        Case c = MaskedCase(q_len, kv_len);
        c.features.q_start = q_start;
        c.causal = true;
        CheckEverywhere(Problem(c, ++seed));
        c.features.window_left = 40;
        CheckEverywhere(Problem(c, seed));
        c.causal = false;
        c.features.window_right = 3;
        CheckEverywhere(Problem(c, seed));
      }
    }
  }
}

TEST_CASE("prefixes around the window and the diagonal", "[masks]") {
  uint64_t seed = 3000;
  for (const int64_t kv_len : {64, 129, 193, 1024}) {
    for (const int64_t q_len : {1, 3, 17, 49}) {
      for (const int64_t window : {-1, 0, 64}) {
        // The first query's position, and where its window begins.
        const int64_t position = kv_len - q_len;
        for (const int64_t prefix :
             {int64_t{0}, int64_t{1}, int64_t{4}, int64_t{63}, int64_t{64}, position - window - 1,
              position - window, position, position + 1, kv_len - 1, kv_len}) {
          if (prefix < 0 || prefix > kv_len) continue;
          Case c = MaskedCase(q_len, kv_len);
          c.causal = true;
          c.features.window_left = window;
          c.features.prefix_lens = {static_cast<int32_t>(prefix)};
          CheckEverywhere(Problem(c, ++seed));
        }
      }
    }
  }
}

// A prefix as long as the sequence before it was padded.
TEST_CASE("a prefix ends where padding begins", "[masks]") {
  Case c = MaskedCase(33, 200);
  c.kv_batch = 2;
  c.causal = true;
  c.features.kv_lens = {70, 130};
  c.features.prefix_lens = {200, 129};
  CheckEverywhere(Problem(c, 3900));
}

// Keys at the edges of a run of 64 alone, all but those, every other run, nothing for some rows.
TEST_CASE("boolean masks with edges at tile boundaries", "[masks]") {
  uint64_t seed = 4000;
  const auto check = [&](int64_t q_len, int64_t kv_len) {
    Case c = MaskedCase(q_len, kv_len);
    c.features.mask.on = true;
    Problem problem(c, ++seed);
    for (int64_t i = 0; i < q_len; ++i) {
      for (int64_t h = 0; h < c.heads; ++h) {
        const int64_t pattern = (i + 3 * h + static_cast<int64_t>(seed)) % 8;
        for (int64_t j = 0; j < kv_len; ++j) {
          const bool patterns[] = {j == 0,          j == kv_len - 1,  j % 64 == 63, j % 64 != 0,
                                   j / 64 % 2 == 0, j / 128 % 2 == 1, false,        j % 2 == 0};
          SetMask(&problem, i, h, j, patterns[pattern]);
        }
      }
    }
    CheckEverywhere(problem);
  };
  for (const int64_t kv_len : kKeys) {
    for (const int64_t q_len : SomeQueries(seed)) check(q_len, kv_len);
  }
  for (const int64_t kv_len : kManyKeys) {
    for (const int64_t q_len : {1, 3, 33}) check(q_len, kv_len);
  }
}

// Rows by vectors of 16, of which a query tile has three. Each pattern says which keys vector v
// sees.
using VectorPattern = bool (*)(int64_t v, int64_t j);
constexpr VectorPattern kVectorPatterns[] = {
    [](int64_t v, int64_t j) { return j / 8 % 3 == v; },
    [](int64_t v, int64_t j) { return j % 128 / 43 == v; },
    [](int64_t v, int64_t j) { return j / 128 % 3 == v; },
    [](int64_t v, int64_t j) { return (j / 128 % 2 == 0) == (v == 0); },
    [](int64_t v, int64_t j) { return (j / 128 % 2 == 0) == (v != 0); },
    [](int64_t v, int64_t j) { return v == 1 ? j % 8 != 7 : j % 8 == 7; },
    [](int64_t v, int64_t j) { return v != 2 && j % 128 >= 64; },
    [](int64_t v, int64_t j) { return j % 128 >= 64 + 16 * v && j % 128 < 100 + 8 * v; },
};

TEST_CASE("vectors of rows that see different keys of a tile", "[masks]") {
  const VectorPattern pattern = GENERATE(from_range(kVectorPatterns));
  uint64_t seed = 4300;
  for (const int64_t kv_len : {128, 300, 1025}) {
    for (const int64_t q_len : {49, 96}) {
      for (const float q_gain : {1.0f, 30.0f}) {  // steep rows, too
        if (kv_len == 1025 && q_len == 96) continue;
        Case c = MaskedCase(q_len, kv_len);
        c.kv_heads = c.heads;
        c.q_gain = q_gain;
        c.features.mask.on = true;
        Problem problem(c, ++seed);
        for (int64_t i = 0; i < q_len; ++i) {
          for (int64_t j = 0; j < kv_len; ++j) {
            for (int64_t h = 0; h < c.heads; ++h) {
              SetMask(&problem, i, h, j, pattern((i / 16 + h) % 3, j));
            }
          }
        }
        CheckEverywhere(problem);
      }
    }
  }
}

TEST_CASE("a boolean mask of each layout and along each axis", "[masks]") {
  constexpr Layout kLayouts[] = {Layout::kDense,      Layout::kHeadsFirst, Layout::kFused,
                                 Layout::kDimStrided, Layout::kDimFirst,   Layout::kReversed,
                                 Layout::kPadded,     Layout::kSharedHeads};
  uint64_t seed = 4500;
  for (unsigned varies = 0; varies < kNumGranularities; ++varies) {
    for (const Layout layout : kLayouts) {
      Case c = MaskedCase(++seed % 2 == 0 ? 2 : 21, 137);
      c.kv_batch = 2;
      c.beams = 2;
      c.kv_heads = seed / 2 % 2 == 0 ? 1 : 2;
      c.placement = seed / 4 % 2 == 0 ? Placement::kAtEnd : Placement::kAtFront;
      c.features.mask.on = true;
      c.features.mask.varies = varies;
      c.features.mask.layout = layout;
      c.features.mask.extra_keys = static_cast<int64_t>(seed % 3) * 5;
      CheckEverywhere(Problem(c, seed));
    }
  }
}

TEST_CASE("block masks of any block", "[masks]") {
  uint64_t seed = 5000;
  for (const int64_t q_block : {1, 5, 16, 48, 64, 192, 1000}) {
    for (const int64_t kv_block : {1, 7, 32, 64, 128, 192, 1000}) {
      for (const int64_t q_len : {1, 3, 50, 193}) {
        Case c = MaskedCase(q_len, 260);
        c.kv_batch = 2;
        c.causal = ++seed % 3 == 0;
        c.features.blocks.on = true;
        c.features.blocks.varies = static_cast<unsigned>(seed % kNumGranularities);
        c.features.q_block = q_block;
        c.features.kv_block = kv_block;
        CheckEverywhere(Problem(c, seed));
      }
    }
  }
  for (const int64_t kv_len : kManyKeys) {
    for (const int64_t q_len : {1, 3, 50}) {
      Case c = MaskedCase(q_len, kv_len);
      c.features.blocks.on = true;
      c.features.q_block = c.features.kv_block = 64;
      CheckEverywhere(Problem(c, ++seed));
    }
  }
}

TEST_CASE("masks over a memory and a cache", "[masks]") {
  const Source source = GENERATE(Source::kMemory, Source::kCache);
  uint64_t seed = 5500;
  for (const int64_t kv_len : {65, 300, 1025}) {
    for (const int64_t q_len : {1, 4, 40}) {
      Case c = MaskedCase(q_len, kv_len);
      c.kv_batch = 2;
      c.features.kv_lens = {static_cast<int32_t>(kv_len), static_cast<int32_t>(kv_len / 2)};
      c.features.window_left = 50;
      c.causal = true;
      CheckEverywhere(Problem(c, ++seed), source);
      c.features.mask.on = true;
      c.features.prefix_lens = {3, 40};
      CheckEverywhere(Problem(c, seed), source);
    }
  }
}

// ---- Nothing to see ---------------------------------------------------------------------------

// A case for each way to hide all keys from all queries.
std::vector<Case> HiddenCases(int64_t q_len, int64_t kv_len) {
  std::vector<Case> cases;
  const auto add = [&](const auto& hide) {
    Case c = MaskedCase(q_len, kv_len);
    hide(&c.features);
    cases.push_back(c);
  };
  add([](Features* f) { f->kv_lens = {0}; });
  add([](Features* f) {
    f->mask.on = true;
    f->mask.density = 0.0;
  });
  add([](Features* f) {
    f->blocks.on = true;
    f->blocks.density = 0.0;
  });
  add([&](Features* f) {  // behind the last key
    f->q_start = kv_len + 10;
    f->window_left = 9;
  });
  add([&](Features* f) {  // and before the first
    f->q_start = -q_len - 10;
    f->window_right = 10;
  });
  return cases;
}

TEST_CASE("rows that see nothing give 0 and -inf, or their sink", "[masks]") {
  for (const int64_t q_len : {1, 3, 50}) {
    for (const int64_t kv_len : {1, 64, 130, 1025}) {
      for (Case& c : HiddenCases(q_len, kv_len)) {
        for (const bool has_sinks : {false, true}) {
          if (has_sinks) c.features.sinks = {-3.5f, 700.0f};
          Problem problem(c, 6000);
          for (int64_t i = 0; i < q_len && c.features.mask.on; ++i) {
            for (int64_t j = 0; j < kv_len; ++j) {
              for (int64_t h = 0; h < c.heads; ++h) SetMask(&problem, i, h, j, false);
            }
          }
          const Dims& blocks = problem.blocks.dims();
          for (int64_t i = 0; i < blocks.length && c.features.blocks.on; ++i) {
            for (int64_t j = 0; j < blocks.dim; ++j) {
              for (int64_t h = 0; h < c.heads; ++h) problem.blocks.SetQuantum(0, i, h, j, 0);
            }
          }
          // Not even a NaN in Q makes a difference where there is nothing to weigh.
          problem.q.Set(0, 0, 0, 0, NAN);
          for (const Precision precision : kPrecisions) {
            for (const char* tier : TiersOf(precision)) {
              INFO(c.ToString() << ", " << Name(precision) << " on " << tier);
              Tensor lse;
              const Tensor out = Attend(problem, {tier, precision}, &lse);
              bool all_zero = true;
              bool all_empty = true;
              for (int64_t i = 0; i < q_len; ++i) {
                for (int64_t h = 0; h < c.heads; ++h) {
                  const float empty =
                      has_sinks ? c.features.sinks[static_cast<size_t>(h)] : -HUGE_VALF;
                  // Octaves and back.
                  all_empty =
                      all_empty && (lse.Get(0, i, h, 0) == empty ||
                                    fabsf(lse.Get(0, i, h, 0) - empty) < 4e-7f * fabsf(empty));
                  for (int64_t d = 0; d < c.v_head_dim; ++d) {
                    all_zero = all_zero && out.Get(0, i, h, d) == 0.0f;
                  }
                }
              }
              CHECK(all_zero);
              CHECK(all_empty);
            }
          }
        }
      }
    }
  }
}

// ---- NaN behind a mask ------------------------------------------------------------------------

// Hides keys from 70 on, or some of them, from some queries or all.
std::vector<Case> PoisonedCases(int64_t q_len, int64_t kv_len) {
  std::vector<Case> cases;
  const auto add = [&](const auto& hide) {
    Case c = MaskedCase(q_len, kv_len);
    hide(&c);
    cases.push_back(c);
  };
  add([](Case* c) { c->features.kv_lens = {70}; });
  add([](Case* c) { c->causal = true; });
  add([](Case* c) {
    c->causal = true;
    c->features.q_start = 60;
  });
  add([](Case* c) { c->features.window_left = 20; });
  add([](Case* c) {
    c->features.q_start = 3;
    c->features.window_right = 66;
  });
  add([](Case* c) {
    c->causal = true;
    c->features.window_left = 5;
    c->features.prefix_lens = {70};
  });
  add([](Case* c) { c->features.mask.on = true; });
  add([](Case* c) {
    c->features.mask.on = true;
    c->features.mask.varies = kPerChannel;
  });
  add([](Case* c) {
    c->features.blocks.on = true;
    c->features.q_block = 16;
    c->features.kv_block = 32;
  });
  return cases;
}

// Rows that see a poisoned key may be whatever IEEE arithmetic makes of them; all others are as if
// it were not there.
TEST_CASE("NaN and infinities stay hidden behind every mask", "[masks]") {
  const float poison = GENERATE(NAN, HUGE_VALF, -HUGE_VALF);
  constexpr Source kSources[] = {Source::kTensors, Source::kMemory, Source::kCache};
  constexpr Precision kFloats[] = {Precision::kF32, Precision::kF16, Precision::kBF16};
  uint64_t seed = 7000;
  for (const int64_t q_len : {1, 4, 70}) {
    for (const Case& c : PoisonedCases(q_len, 300)) {
      Problem problem(c, ++seed);
      const Source source = kSources[(seed + (isnan(poison) ? 0 : poison > 0.0f ? 1 : 2)) % 3];
      std::vector<int64_t> poisoned = {70, 71, 127, 128, 191, 250, 299};
      if (c.features.window_left == 20) poisoned = {0, 1, 63, 64, 200};
      const bool only_causal = c.causal && c.features.window_left < 0 &&
                               c.features.q_start == AttentionArgs::kBottomRight;
      if (only_causal) poisoned = {298, 299};
      if (c.features.blocks.on) {
        for (int64_t l = 0; l < problem.blocks.dims().length; ++l) {
          for (const int64_t key : poisoned) {
            problem.blocks.SetQuantum(0, l, 0, key / c.features.kv_block, 0);
          }
        }
      }
      if (c.features.mask.on) {
        // From most rows, but not from all.
        for (int64_t i = 0; i < q_len; ++i) {
          for (int64_t h = 0; h < c.heads; ++h) {
            for (const int64_t key : poisoned) {
              if ((i + h) % 3 != 2) SetMask(&problem, i, h, key, false);
            }
          }
        }
      }
      for (const int64_t key : poisoned) {
        for (int64_t d = 0; d < c.head_dim; ++d) problem.k.Set(0, key, 0, d, poison);
        for (int64_t d = 0; d < c.v_head_dim; ++d) problem.v.Set(0, key, 0, d, poison);
      }
      const Masks masks = MasksOf(problem);
      const Sequence sequence = SequencesOf(c).front();
      Expectations expectations(problem);
      int64_t num_clean = 0;
      for (const Precision precision : kFloats) {
        for (const char* tier : SupportedTiers()) {
          Expected expected = expectations({tier, precision});
          for (int64_t i = 0; i < q_len; ++i) {
            for (int64_t h = 0; h < c.heads; ++h) {
              const bool sees_poison =
                  std::any_of(poisoned.begin(), poisoned.end(),
                              [&](int64_t key) { return Sees(masks, sequence, i, h, key); });
              num_clean += sees_poison ? 0 : 1;
              const size_t row = static_cast<size_t>(i * c.heads + h);
              const size_t dim = static_cast<size_t>(c.v_head_dim);
              for (size_t d = 0; d < dim; ++d) {
                if (sees_poison) expected.tolerance[row * dim + d] = HUGE_VAL;
                if (!sees_poison) REQUIRE(isfinite(expected.value[row * dim + d]));
              }
              if (sees_poison) expected.lse_tolerance[row] = HUGE_VAL;
            }
          }
          INFO(c.ToString() << ", " << poison << ", " << Name(precision) << " on " << tier
                            << ", source " << static_cast<int>(source));
          Tensor lse;
          CHECK_THAT(Attend(problem, {tier, precision, source}, &lse), IsClose(expected));
          CHECK_THAT(lse, IsClose(expected.Lse()));
        }
      }
      if (q_len > 1) CHECK(num_clean > 0);
    }
  }
}

// Neighbouring keys share lanes of V in bf16. One or both of the last two of each block of eight
// are hidden, and NaN, from all rows or from all but one vector of them, which may be anything.
TEST_CASE("NaN in V of a hidden key and of its neighbour", "[masks]") {
  const bool some_see = GENERATE(false, true);
  uint64_t seed = 7800;
  for (const bool hides_last : {true, false}) {
    for (const bool hides_neighbour : {false, true}) {
      if (!hides_last && !hides_neighbour) continue;
      for (const int64_t q_len : {1, 4, 49}) {
        Case c = MaskedCase(q_len, 300);
        c.kv_heads = c.heads;
        c.features.mask.on = true;
        Problem problem(c, ++seed);
        const auto sees_all = [&](int64_t i) { return some_see && i / 16 % 3 == 1; };
        for (int64_t j = 0; j < c.kv_len; ++j) {
          const bool hidden = j % 8 == 7 ? hides_last : j % 8 == 6 && hides_neighbour;
          for (int64_t h = 0; h < c.heads; ++h) {
            for (int64_t i = 0; i < q_len; ++i) {
              SetMask(&problem, i, h, j, !hidden || sees_all(i));
            }
            for (int64_t d = 0; hidden && d < c.v_head_dim; ++d) problem.v.Set(0, j, h, d, NAN);
          }
        }
        Expectations expectations(problem);
        for (const Precision precision :
             {Precision::kF32, Precision::kF16, Precision::kBF16, Precision::kMixed16}) {
          for (const char* tier : SupportedTiers()) {
            INFO(c.ToString() << ", hides " << hides_last << hides_neighbour << ", "
                              << Name(precision) << " on " << tier);
            Expected expected = expectations({tier, precision});
            for (int64_t i = 0; i < q_len; ++i) {
              for (size_t d = 0; d < static_cast<size_t>(c.heads * c.v_head_dim); ++d) {
                const size_t at = expected.dims.Index(0, i, 0, 0) + d;
                if (sees_all(i)) expected.tolerance[at] = HUGE_VAL;
                if (!sees_all(i)) REQUIRE(isfinite(expected.value[at]));
              }
            }
            CHECK_THAT(Attend(problem, {tier, precision}), IsClose(expected));
          }
        }
      }
    }
  }
}

// V of padding beside integers of K: mixed16 has V in bf16.
TEST_CASE("NaN in padding of mixed16", "[masks]") {
  Case c = MaskedCase(GENERATE(1, 5, 60), 200);
  c.features.kv_lens = {130};
  Problem problem(c, 7900);
  for (int64_t key = 130; key < 200; ++key) {
    for (int64_t d = 0; d < c.v_head_dim; ++d) problem.v.Set(0, key, 0, d, NAN);
  }
  for (const char* tier : SupportedTiers()) {
    const Setup setup = {tier, Precision::kMixed16};
    INFO(c.ToString() << " on " << tier);
    CHECK_THAT(Attend(problem, setup), IsClose(Expect(problem, setup)));
  }
}

// ---- Bits -------------------------------------------------------------------------------------

// Cases with everything that this library has to offer, prefill and decode.
std::vector<Case> RichCases() {
  std::vector<Case> cases;
  for (const int64_t q_len : {1, 4, 210}) {
    Case c = MaskedCase(q_len, q_len == 1 ? 2500 : 300);
    c.heads = 4;
    c.kv_heads = 2;
    c.causal = true;
    c.features.window_left = 150;
    c.features.prefix_lens = {9};
    c.features.mask.on = true;
    c.features.mask.density = 0.9;
    cases.push_back(c);
    c.features.bias.on = true;
    c.features.bias.density = 1.0;
    c.features.softcap = 30.0f;
    c.features.relative_buckets = {32, 128, false};
    c.features.alibi_slopes = {0.5f, 0.25f, 0.125f, 0.0625f};
    c.features.sinks = {0.0f, 1.0f, -1.0f, 3.0f};
    cases.push_back(c);
  }
  return cases;
}

// Sequences that decode, that prefill, and of several tasks.
Case RaggedCase(Case c) {
  c.q_len = 300;
  c.kv_len = 500;
  c.features.q_indptr = {0, 1, 5, 250, 300};
  c.features.kv_indptr = {0, 100, 101, 360, 500};
  c.features.prefix_lens = {9, 0, 100, 1};
  c.features.kv_lens = {100, 1, 200, 77};
  c.features.blocks.on = true;
  c.features.blocks.density = 0.8;
  c.features.q_block = 48;
  c.features.kv_block = 20;
  return c;
}

// Elements [begin, end) of the axis `length`.
MaskView Slice(MaskView mask, int64_t begin, int64_t end) {
  mask.data = static_cast<const unsigned char*>(mask.data) + begin * mask.length_stride;
  mask.length = end - begin;
  return mask;
}

// The queries and keys of `run` as a call of its own, on the same memory. entry: its number; lens:
// its kv_lens, or null.
void AttendPart(const Problem& problem, const Setup& setup, const KvRun& run, size_t entry,
                const int32_t* lens, const Tensor& out, const Tensor& lse) {
  const Case& c = problem.c;
  AttentionDesc desc = DescOf(c, setup);
  desc.owns_workspace = true;
  Plan plan;
  REQUIRE_THAT(Plan::Create(desc, &plan), IsOk());
  const int64_t q_end = run.q_begin + run.q_len;
  AttentionArgs args = TensorArgs(problem, out);
  args.num_sequences = 0;
  args.q_indptr = args.kv_indptr = nullptr;
  args.q = problem.q.Slice(run.q_begin, q_end);
  args.out = out.Slice(run.q_begin, q_end);
  args.lse = lse.Slice(run.q_begin, q_end);
  args.k = problem.k.Slice(run.kv_begin, run.kv_begin + run.kv_len);
  args.v = problem.v.Slice(run.kv_begin, run.kv_begin + run.kv_len);
  args.kv_lens = lens;
  args.prefix_lens = &c.features.prefix_lens[entry];
  if (c.features.mask.on) args.mask = Slice(args.mask, run.q_begin, q_end);
  if (c.features.blocks.on) args.block_mask = OfSequence(args.block_mask, entry, run.q_len);
  if (c.features.bias.on) args.bias = problem.bias.Slice(run.q_begin, q_end);
  REQUIRE_THAT(Run(plan, args), IsOk());
}

TEST_CASE("with masks and modifications, too, the number of workers changes no bit",
          "[masks][workers]") {
  const Source source = GENERATE(Source::kTensors, Source::kMemory);
  std::vector<Case> cases = RichCases();
  cases.push_back(RaggedCase(cases.back()));
  uint64_t seed = 8000;
  for (const Case& c : cases) {
    if (c.features.ragged() && source != Source::kTensors) continue;
    const Problem problem(c, ++seed);
    for (const Precision precision : kPrecisions) {
      for (const char* tier : TiersOf(precision)) {
        if (!IsAffordable(c, tier)) continue;
        Tensor lse_alone;
        const Tensor alone = Attend(problem, {tier, precision}, &lse_alone);
        for (const ParallelFor& parallel :
             {OneThreadPerWorker(3), TwoThreads(4), BackwardsOnThisThread(2)}) {
          INFO(c.ToString() << ", " << Name(precision) << " on " << tier << ", "
                            << parallel.num_workers << " workers, source "
                            << static_cast<int>(source));
          Tensor lse;
          CHECK_THAT(Attend(problem, {tier, precision, source, parallel}, &lse), Equals(alone));
          CHECK_THAT(lse, Equals(lse_alone));
        }
      }
    }
  }
}

// Whatever it holds: it is not even packed.
TEST_CASE("padding of tensors changes no bit", "[masks]") {
  uint64_t seed = 8500;
  for (Case c : RichCases()) {
    const int64_t used = c.kv_len - 77;
    c.features.kv_lens = {static_cast<int32_t>(used)};
    Problem problem(c, ++seed);
    for (int64_t key = used; key < c.kv_len; ++key) {
      for (int64_t h = 0; h < c.kv_heads; ++h) {
        for (int64_t d = 0; d < c.head_dim; ++d) problem.k.Set(0, key, h, d, NAN);
        for (int64_t d = 0; d < c.value_dim(); ++d) problem.v.Set(0, key, h, d, HUGE_VALF);
      }
    }
    for (const Precision precision : kPrecisions) {
      for (const char* tier : TiersOf(precision)) {
        const Setup setup = {tier, precision};
        INFO(c.ToString() << ", " << Name(precision) << " on " << tier);
        Tensor lse;
        const Tensor out = Attend(problem, setup, &lse);
        const Tensor out_alone = problem.NewOut();
        const Tensor lse_alone = problem.NewLse();
        AttendPart(problem, setup, {0, 0, used, 0, c.q_len}, 0, nullptr, out_alone, lse_alone);
        CHECK_THAT(out, Equals(out_alone));
        CHECK_THAT(lse, Equals(lse_alone));
      }
    }
  }
}

// ---- Ragged batches ---------------------------------------------------------------------------

// Sequences of these queries. packed: of 150 keys together, of unequal numbers, one of them 0 where
// there are more than two; else of 150 each.
Case RaggedQueries(const std::vector<int32_t>& q_indptr, bool packed) {
  Case c = MaskedCase(q_indptr.back(), 150);
  c.heads = 4;
  c.kv_heads = 2;
  c.features.q_indptr = q_indptr;
  const int32_t num_sequences = static_cast<int32_t>(c.NumEntries());
  c.kv_batch = packed ? 1 : num_sequences;
  for (int32_t s = 0; packed && s <= num_sequences; ++s) {
    const int32_t end = s == num_sequences ? 150 : 130 * (s - s / 3) / num_sequences;
    c.features.kv_indptr.push_back(end);
  }
  std::sort(c.features.kv_indptr.begin(), c.features.kv_indptr.end());
  return c;
}

TEST_CASE("ragged batches", "[masks]") {
  const bool packed = GENERATE(true, false);
  const Source source = GENERATE(Source::kTensors, Source::kMemory, Source::kCache);
  if (packed && source != Source::kTensors) return;
  uint64_t seed = 9000;
  const std::vector<std::vector<int32_t>> kSplits = {
      {0, 40}, {0, 1, 2, 3, 20}, {0, 0, 17, 17, 80, 80}, {0, 200, 201, 230}, {0, 0}};
  for (const std::vector<int32_t>& q_indptr : kSplits) {
    for (const bool causal : {false, true}) {
      Case c = RaggedQueries(q_indptr, packed);
      c.causal = causal;
      CheckEverywhere(Problem(c, ++seed), source);
      for (const KvRun& run : c.Runs()) {
        c.features.kv_lens.push_back(static_cast<int32_t>(run.kv_len - run.kv_len / 5));
      }
      c.features.mask.on = true;
      CheckEverywhere(Problem(c, seed), source);
    }
  }
}

// Most sequences begin inside of a block if these counted through the batch.
TEST_CASE("block masks of ragged batches", "[masks]") {
  const bool packed = GENERATE(true, false);
  const Source source = GENERATE(Source::kTensors, Source::kMemory, Source::kCache);
  if (packed && source != Source::kTensors) return;
  constexpr int64_t kKvBlocks[] = {1, 7, 64};
  uint64_t seed = 9300;
  const std::vector<std::vector<int32_t>> splits = {
      {0, 50}, {0, 1, 3, 6, 20}, {0, 0, 17, 17, 83, 83}, {0, 199, 200, 230}};
  for (const std::vector<int32_t>& q_indptr : splits) {
    for (const int64_t q_block : {1, 5, 16, 64}) {
      Case c = RaggedQueries(q_indptr, packed);
      c.causal = ++seed % 5 == 0;
      c.features.blocks.on = true;
      c.features.blocks.extra_keys = static_cast<int64_t>(seed % 2) * 3;
      c.features.q_block = q_block;
      c.features.kv_block = kKvBlocks[seed % 3];
      CheckEverywhere(Problem(c, seed), source);
    }
  }
  for (unsigned varies = 0; varies < kNumGranularities; ++varies) {
    Case c = RaggedQueries({0, 1, 3, 6, 20}, packed);
    c.features.blocks.on = true;
    c.features.blocks.varies = varies;
    c.features.q_block = 4;
    c.features.kv_block = 12;
    CheckEverywhere(Problem(c, ++seed), source);
  }
}

TEST_CASE("a ragged batch is its sequences, bit by bit", "[masks]") {
  uint64_t seed = 9500;
  for (const Case& rich : RichCases()) {
    const Case c = RaggedCase(rich);
    const Problem problem(c, ++seed);
    for (const Precision precision : kPrecisions) {
      for (const char* tier : TiersOf(precision)) {
        const Setup setup = {tier, precision};
        INFO(c.ToString() << ", " << Name(precision) << " on " << tier);
        Tensor lse;
        const Tensor out = Attend(problem, setup, &lse);
        const Tensor out_of_parts = problem.NewOut();
        const Tensor lse_of_parts = problem.NewLse();
        for (size_t run = 0; run < c.Runs().size(); ++run) {
          AttendPart(problem, setup, c.Runs()[run], run, &c.features.kv_lens[run], out_of_parts,
                     lse_of_parts);
        }
        CHECK_THAT(out, Equals(out_of_parts));
        CHECK_THAT(lse, Equals(lse_of_parts));
      }
    }
  }
}

}  // namespace
}  // namespace testing
}  // namespace sightline
