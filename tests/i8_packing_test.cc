// What int8 stores, bit for bit: quantised K and V, scales and centers of memories and caches, read
// where kv/layout.h says they are.
#include <math.h>
#include <string.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <vector>

#include "kv/layout.h"
#include "kv/packed_kv.h"
#include "support/check.h"
#include "support/packed.h"
#include "support/problem.h"
#include "support/tiers.h"

namespace sightline {
namespace testing {
namespace {

static_assert(kScaleTileKeys == internal::kKvTile, "the simulation's tile is the library's");

// Stored bytes, brought into the order of the simulation and freed of their bias.
QuantHead Unpack(const internal::PackedKv& packed, size_t batch, size_t kv_head, size_t kv_len) {
  const internal::PackedShape& shape = packed.shape();
  const internal::PackedOffsets& offsets = packed.offsets();
  REQUIRE(internal::HasQuantizedV(shape.layout));
  const bool biased_v = shape.layout == internal::LayoutId::kI8BiasedV ||
                        shape.layout == internal::LayoutId::kI8RotatedBiasedV ||
                        shape.layout == internal::LayoutId::kI8FineBiasedV;
  const int k_bias = biased_v || internal::HasWideK(shape.layout) ? 0 : 128;
  const int v_bias = biased_v ? 128 : 0;
  const auto unbias = [](unsigned char byte, int bias) {
    return static_cast<int8_t>(bias != 0 ? byte - bias : static_cast<int8_t>(byte));
  };
  const size_t depth = internal::VDepth(shape.layout);
  const size_t k_depth = internal::KDepth(shape.layout);
  const auto append = [&](const unsigned char* from, size_t count, std::vector<float>* to) {
    const size_t old_size = to->size();
    to->resize(old_size + count);
    if (count != 0) memcpy(to->data() + old_size, from, count * sizeof(float));
  };

  QuantHead result;
  result.kv_len = kv_len;
  result.head_dim = shape.head_dim;
  result.v_head_dim = shape.v_head_dim;
  for (size_t i = 0; i < kv_len; ++i) {
    const PackedKey found = FindKey(packed, batch, kv_head, i);
    const unsigned char* base = found.head.base;
    const unsigned char* k = base + offsets.k;
    const unsigned char* v = base + offsets.v;
    const size_t key = found.key;
    for (size_t d = 0; d < shape.head_dim; ++d) {
      const size_t in_block = d / k_depth * internal::kKeyBlock + key % internal::kKeyBlock;
      const size_t index = internal::KBlockOffset(shape, key) + in_block * k_depth + d % k_depth;
      result.k.push_back(internal::HasWideK(shape.layout)
                             ? reinterpret_cast<const int16_t*>(k)[index]
                             : unbias(k[index], k_bias));
    }
    for (size_t c = 0; c < shape.v_head_dim; ++c) {
      const internal::VPanel panel = internal::VPanelAt(shape, key, c);
      const size_t key_in_tile = key % internal::kVTileKeys;
      const size_t in_panel =
          (key_in_tile / depth * panel.width + c % internal::kPanelWidth) * depth;
      result.v.push_back(unbias(v[panel.offset + in_panel + key % depth], v_bias));
    }
    append(base + offsets.k_scale + key * sizeof(float), 1, &result.k_scale);
    if (key % internal::kKvTile == 0) {
      const size_t row = key / internal::kKvTile * internal::PaddedVHeadDim(shape);
      append(base + offsets.v_scale + row * sizeof(float), shape.v_head_dim, &result.v_scale);
    }
    // What all keys have in common is the same in every page.
    std::vector<float> k_center, v_center, q_factor;
    append(base + offsets.k_center, shape.head_dim, &k_center);
    append(base + offsets.v_center, shape.v_head_dim, &v_center);
    if (internal::IsRotated(shape.layout)) {
      append(base + offsets.q_factor, shape.head_dim, &q_factor);
    }
    if (i == 0) {
      result.k_center = k_center;
      result.v_center = v_center;
      result.q_factor = q_factor;
    } else if (key == 0) {
      REQUIRE(k_center == result.k_center);
      REQUIRE(v_center == result.v_center);
      REQUIRE(q_factor == result.q_factor);
    }
  }
  return result;
}

// Index of the first difference; the size if there is none. -0 and 0 are the same centre.
template <typename T>
size_t FirstDifference(const std::vector<T>& a, const std::vector<T>& b) {
  REQUIRE(a.size() == b.size());
  return static_cast<size_t>(std::mismatch(a.begin(), a.end(), b.begin()).first - a.begin());
}

// What `tier` has packed is what the simulation quantises.
void CheckPacked(const char* tier, const internal::PackedKv* packed, const Problem& problem,
                 int64_t center_keys) {
  REQUIRE(packed != nullptr);
  QuantMethod method;
  method.wide_k = internal::HasWideK(packed->geometry().layout);
  method.rotate_k = internal::IsRotated(packed->geometry().layout);
  for (int64_t b = 0; b < problem.c.kv_batch; ++b) {
    for (int64_t h = 0; h < problem.c.kv_heads; ++h) {
      INFO("batch " << b << ", head " << h);
      const QuantHead expected =
          QuantizeHeadOf(problem, b, h, method, problem.c.kv_len, center_keys);
      const QuantHead actual = Unpack(*packed, static_cast<size_t>(b), static_cast<size_t>(h),
                                      static_cast<size_t>(problem.c.kv_len));
      CHECK(FirstDifference(actual.k_center, expected.k_center) == expected.k_center.size());
      CHECK(FirstDifference(actual.v_center, expected.v_center) == expected.v_center.size());
      CHECK(FirstDifference(actual.q_factor, expected.q_factor) == expected.q_factor.size());
      CHECK(FirstDifference(actual.k_scale, expected.k_scale) == expected.k_scale.size());
      CHECK(FirstDifference(actual.v_scale, expected.v_scale) == expected.v_scale.size());
      CHECK(FirstDifference(actual.k, expected.k) == expected.k.size());
      CHECK(FirstDifference(actual.v, expected.v) == expected.v.size());
    }
  }
  RecordTierRun(tier);
}

Case PackingCase(int64_t kv_len, int64_t head_dim, int64_t v_head_dim) {
  Case c;
  c.kv_len = kv_len;
  c.heads = c.kv_heads = 2;
  c.kv_batch = 2;
  c.head_dim = head_dim;
  c.v_head_dim = v_head_dim;
  c.k_layout = Layout::kPadded;
  c.v_dtype = DType::kF16;
  c.distribution = Distribution::kKBias;
  return c;
}

Setup Rotated(const char* tier) {
  Setup setup = {tier, Precision::kI8};
  setup.rotate_k = true;
  return setup;
}

// Channels of K up to 2^13 times larger than others: every step of the balance, and what is just
// below it.
void SpreadChannels(Problem* problem) {
  for (int64_t b = 0; b < 2; ++b) {
    for (int64_t key = 0; key < problem->c.kv_len; ++key) {
      for (int64_t h = 0; h < 2; ++h) {
        for (int64_t d = 0; d < problem->c.head_dim; ++d) {
          if (d % 3 != 0) continue;
          const float gain = static_cast<float>(1 << (d / 3 * 5 % 14));
          problem->k.Set(b, key, h, d, gain * problem->k.Get(b, key, h, d));
        }
      }
    }
  }
}

TEST_CASE("int8 memories hold what the simulation quantises", "[i8][packing]") {
  const Precision precision = GENERATE(Precision::kI8, Precision::kI8Fine);
  uint64_t seed = 0;
  for (const int64_t kv_len : {1, 2, 3, 63, 64, 65, 127, 128, 129, 1023, 1025, 1200}) {
    for (const int64_t head_dim : {1, 6, 16, 64, 100}) {
      const Problem problem(PackingCase(kv_len, head_dim, 101 - head_dim), ++seed);
      for (const char* tier : SupportedTiers()) {
        INFO(problem.c.ToString() << ", " << Name(precision) << " on " << tier);
        const CrossMemory memory = MemoryOf(problem, {tier, precision});
        CheckPacked(tier, KvAccess::Get(memory), problem, kv_len);
      }
    }
  }
}

TEST_CASE("int8 caches hold what the simulation quantises", "[i8][packing]") {
  const Precision precision = GENERATE(Precision::kI8, Precision::kI8Fine);
  uint64_t seed = 100;
  for (const int64_t kv_len : {1, 3, 64, 127, 128, 129, 300, 1100}) {
    const Problem problem(PackingCase(kv_len, 20, 33), ++seed);
    for (const char* tier : SupportedTiers()) {
      INFO(problem.c.ToString() << ", " << Name(precision) << " on " << tier);
      const KvCache cache = CacheOf(problem, {tier, precision});
      CheckPacked(tier, KvAccess::Get(cache), problem, CacheCenterKeys(kv_len));
    }
  }
}

// Zero rows, one constant, numbers too small or too large to scale, NaN and infinity.
TEST_CASE("int8 stores special numbers as documented", "[i8][packing]") {
  const Precision precision = GENERATE(Precision::kI8, Precision::kI8Fine);
  Problem problem(PackingCase(200, 16, 16), 200);
  const float specials[] = {NAN, HUGE_VALF, -HUGE_VALF, 1e38f, -2e30f, 1e-38f, -0.0f, 1e-31f};
  for (int64_t key = 0; key < 200; ++key) {
    for (int64_t d = 0; d < 16; ++d) {
      if (key % 7 == 0) problem.k.Set(0, key, 0, d, 0.0f);
      if (d == 3) problem.v.Set(0, key, 0, d, 2.5f);
      if (d == 4) problem.k.Set(0, key, 0, d, -1.25f);
      if (d == 5) problem.v.Set(0, key, 1, d, 1e-33f * static_cast<float>(key));
      if (d == key % 16 && key % 5 == 0) problem.k.Set(1, key, 0, d, specials[key / 5 % 8]);
      if (d == key % 8 && key % 3 == 0) problem.v.Set(1, key, 1, d, specials[key / 3 % 8]);
      // Infinities of both signs in one channel, whose mean takes some of them beyond 1e27.
      if (d == 9 && key % 40 == 7) {
        const float infinity = key == 47 ? -HUGE_VALF : HUGE_VALF;
        problem.k.Set(1, key, 0, d, infinity);
        problem.v.Set(1, key, 1, d, infinity);
      }
    }
  }
  for (const char* tier : SupportedTiers()) {
    INFO(Name(precision) << " on " << tier);
    CheckPacked(tier, KvAccess::Get(MemoryOf(problem, {tier, precision})), problem, 200);
    CheckPacked(tier, KvAccess::Get(CacheOf(problem, {tier, precision})), problem, 128);
    CheckPacked(tier, KvAccess::Get(MemoryOf(problem, Rotated(tier))), problem, 200);
    CheckPacked(tier, KvAccess::Get(CacheOf(problem, Rotated(tier))), problem, 128);
  }
}

// Around 10^27, where magnitudes end, and around where the kernels begin to look closer: alone, so
// that a channel's mean is the number itself, and among others.
TEST_CASE("int8 stores numbers around the largest finite one", "[i8][packing]") {
  const Precision precision = GENERATE(Precision::kI8, Precision::kI8Fine);
  constexpr float kLarge[] = {2.4e26f, 2.5e26f,  2.6e26f, 5e26f, 9.99e26f,
                              1e27f,   1.01e27f, 1.5e27f, 2e27f, 3e38f};
  uint64_t state = 1;
  const auto next = [&state] {
    state = state * 6364136223846793005u + 1442695040888963407u;
    return static_cast<size_t>(state >> 33);
  };
  for (const int64_t kv_len : {1, 2, 4, 66}) {
    for (const bool constant : {false, true}) {
      Problem problem(PackingCase(kv_len, 20, 33), 250);
      for (int64_t key = 0; key < kv_len; ++key) {
        for (int64_t d = 0; d < 20; ++d) {
          const float x = constant ? 1.5e27f : kLarge[next() % 10];
          problem.k.Set(0, key, 0, d, next() % 2 == 0 || constant ? x : -x);
          if (next() % 4 == 0) problem.k.Set(1, key, 1, d, x);
        }
      }
      for (const char* tier : SupportedTiers()) {
        INFO(kv_len << " keys, " << Name(precision) << " on " << tier);
        CheckPacked(tier, KvAccess::Get(MemoryOf(problem, {tier, precision})), problem, kv_len);
        CheckPacked(tier, KvAccess::Get(CacheOf(problem, {tier, precision})), problem, kv_len);
        CheckPacked(tier, KvAccess::Get(MemoryOf(problem, Rotated(tier))), problem, kv_len);
      }
    }
  }
}

// Every type of K and V, whole vectors and parts of them, neighbours and scattered elements, a
// second panel of V, and one element or scale in a vector of keys that is not finite.
TEST_CASE("int8 packs every type and stride as the simulation does", "[i8][packing]") {
  uint64_t seed = 260;
  for (const DType dtype : {DType::kF32, DType::kF16, DType::kBF16, DType::kI8}) {
    for (const Layout layout : {Layout::kDense, Layout::kDimStrided, Layout::kReversed}) {
      for (const int64_t head_dim : {16, 33}) {
        Case c = PackingCase(70, head_dim, 79);
        c.k_dtype = c.v_dtype = dtype;
        c.k_layout = c.v_layout = layout;
        c.k_scales = c.v_scales = kPerToken + kPerChannel;
        Problem problem(c, ++seed);
        const float special = seed % 2 == 0 ? NAN : HUGE_VALF;
        if (dtype == DType::kI8) {
          problem.k.SetScale(0, 21, 0, 9, special);
          problem.v.SetScale(0, 21, 0, 70, special);
        } else {
          problem.k.Set(0, 21, 0, 9, special);
          problem.v.Set(0, 21, 0, 70, special);
        }
        for (const char* tier : SupportedTiers()) {
          for (const Precision precision : {Precision::kI8, Precision::kI8Fine}) {
            INFO(problem.c.ToString() << ", " << Name(precision) << " on " << tier);
            CheckPacked(tier, KvAccess::Get(MemoryOf(problem, {tier, precision})), problem, 70);
          }
        }
      }
    }
  }
}

// One scale for each row of K, and for each channel of V: what a graph has quantised stays what it
// is, but for a mean of whole steps. Rows of K in int16 and channels with a scale for each token do
// not.
TEST_CASE("int8 with fitting scales is stored as it is", "[i8][packing]") {
  uint64_t seed = 280;
  for (const unsigned k_scales : {unsigned{kPerTensor}, unsigned{kPerToken + kPerHead}}) {
    for (const int64_t kv_len : {1, 63, 130, 1030}) {
      Case c = PackingCase(kv_len, 40, 79);
      c.k_dtype = c.v_dtype = DType::kI8;
      c.k_scales = k_scales;
      c.v_scales = kPerChannel + kPerSequence;
      c.distribution = Distribution::kGaussian;
      Problem problem(c, ++seed);
      // Half of the range, so that a mean leaves nothing outside of it.
      for (int64_t key = 0; key < kv_len; ++key) {
        for (int64_t d = 0; d < 79; ++d) {
          problem.v.Set(1, key, 1, d, problem.v.Get(1, key, 1, d) / 2.0f + 0.5f);
          if (d < 40) problem.k.Set(1, key, 1, d, problem.k.Get(1, key, 1, d) / 2.0f - 0.5f);
        }
      }
      for (const char* tier : SupportedTiers()) {
        INFO(problem.c.ToString() << " on " << tier);
        const CrossMemory memory = MemoryOf(problem, {tier, Precision::kI8});
        CheckPacked(tier, KvAccess::Get(memory), problem, kv_len);
        const QuantHead head = Unpack(*KvAccess::Get(memory), 1, 1, static_cast<size_t>(kv_len));
        const auto steps = [](float x, float scale) { return lrintf(x / scale); };
        bool same = true;
        for (int64_t key = 0; key < kv_len; ++key) {
          const auto row = static_cast<size_t>(key);
          for (int64_t d = 0; d < 40; ++d) {
            const auto i = static_cast<size_t>(d);
            const float scale = problem.k.Scale(1, key, 1, d);
            const int64_t quantum = head.k[row * 40 + i] + steps(head.k_center[i], scale);
            same = same && quantum == steps(problem.k.Get(1, key, 1, d), scale);
          }
          for (int64_t d = 0; d < 79; ++d) {
            const auto i = static_cast<size_t>(d);
            const float scale = problem.v.Scale(1, key, 1, d);
            const int64_t quantum = head.v[row * 79 + i] + steps(head.v_center[i], scale);
            same = same && quantum == steps(problem.v.Get(1, key, 1, d), scale);
          }
        }
        CHECK(same);
        CheckPacked(tier, KvAccess::Get(MemoryOf(problem, {tier, Precision::kI8Fine})), problem,
                    kv_len);
        CheckPacked(tier, KvAccess::Get(MemoryOf(problem, Rotated(tier))), problem, kv_len);
      }
    }
  }
}

// Quanta and scales at their ends, for rows and channels whose steps are kept.
TEST_CASE("int8 keeps quanta of -128 and unusual scales as documented", "[i8][packing]") {
  constexpr float kScales[] = {-0.03f,  0.0f,  -0.0f, 1e-42f,    7e-33f, 8.5e-33f,
                               7.8e24f, 8e24f, 1e26f, HUGE_VALF, NAN,    -HUGE_VALF};
  for (const unsigned k_scales : {unsigned{kPerTensor}, unsigned{kPerToken}}) {
    for (const int64_t kv_len : {1, 40, 130}) {
      Case c = PackingCase(kv_len, 20, 79);
      c.k_dtype = c.v_dtype = DType::kI8;
      c.k_scales = k_scales;
      c.v_scales = kPerChannel;
      Problem problem(c, 290);
      for (int64_t key = 0; key < kv_len; ++key) {
        problem.k.SetQuantum(0, key, 0, key % 20, -128);
        if (key % 3 == 0) problem.v.SetQuantum(0, key, 1, key % 79, -128);
        if (k_scales == kPerToken && key % 2 == 1) {
          problem.k.SetScale(0, key, 0, 0, AsTierSees(BestTier(), kScales[key / 2 % 12]));
        }
      }
      for (int64_t d = 0; d < 12; ++d) {
        problem.v.SetScale(0, 0, 0, 5 * d, AsTierSees(BestTier(), kScales[d]));
      }
      for (const char* tier : SupportedTiers()) {
        for (const Precision precision : {Precision::kI8, Precision::kI8Fine}) {
          INFO(problem.c.ToString() << ", " << Name(precision) << " on " << tier);
          CheckPacked(tier, KvAccess::Get(MemoryOf(problem, {tier, precision})), problem, kv_len);
        }
        CheckPacked(tier, KvAccess::Get(MemoryOf(problem, Rotated(tier))), problem, kv_len);
      }
    }
  }
}

// Blocks of the transform of every size, one or several of them.
TEST_CASE("int8 rotates K as the simulation does", "[i8][packing]") {
  uint64_t seed = 300;
  for (const int64_t head_dim :
       {1,  2,  3,  4,  5,  6,  7,   8,   12,  15,  16,  24,  31,  32,  33, 40,
        48, 63, 64, 65, 80, 96, 100, 112, 128, 192, 255, 256, 384, 511, 512}) {
    for (const int64_t kv_len : {1, 15, 66, 300}) {
      Case c = PackingCase(kv_len, head_dim, 16);
      c.distribution = Distribution::kKOutliers;
      Problem problem(c, ++seed);
      if (seed % 2 == 0) SpreadChannels(&problem);
      for (const char* tier : SupportedTiers()) {
        INFO(problem.c.ToString() << " on " << tier);
        CheckPacked(tier, KvAccess::Get(MemoryOf(problem, Rotated(tier))), problem, kv_len);
        CheckPacked(tier, KvAccess::Get(CacheOf(problem, Rotated(tier))), problem,
                    CacheCenterKeys(kv_len));
      }
    }
  }
}

// One by one, in pairs and in runs across the first tile's end: the balance settles with it.
TEST_CASE("int8 caches rotate K alike however they were filled", "[i8][packing]") {
  Problem problem(PackingCase(300, 40, 16), 400);
  SpreadChannels(&problem);
  for (const char* tier : SupportedTiers()) {
    for (const int64_t step : {1, 2, 37, 150}) {
      INFO("by " << step << " on " << tier);
      KvCacheDesc desc;
      desc.batch = desc.num_kv_heads = 2;
      desc.head_dim = 40;
      desc.v_head_dim = 16;
      desc.capacity = 300;
      desc.format = {Precision::kI8, tier, true};
      KvCache cache;
      REQUIRE_THAT(KvCache::Create(desc, &cache), IsOk());
      for (int64_t begin = 0; begin < 300; begin += step) {
        const int64_t end = std::min<int64_t>(begin + step, 300);
        REQUIRE_THAT(cache.Append(problem.k.Slice(begin, end), problem.v.Slice(begin, end)),
                     IsOk());
      }
      CheckPacked(tier, KvAccess::Get(cache), problem, 128);
    }
  }
}

}  // namespace
}  // namespace testing
}  // namespace sightline
