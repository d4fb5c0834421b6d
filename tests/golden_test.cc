// Files of K and V that lie in tests/golden: those of each layout, and of a cache, whichever
// architecture wrote them. Every tier reads them, by way of Convert where the layout is not its
// own, and gives what the oracle says; and writes the same bytes today.
//
// K and V are a formula, of numbers whose sums are exact: means are the same in every tier, and so
// are all bytes of a layout.
//
// Where formats have changed, and their version with them (kLayoutVersion in kv/layout.h,
// kKvFileVersion in kv/stored_kv.h), files are written anew, by a tier of each layout:
//
//   build/release/tests/sightline_tests "[.golden_write]"
//   cd build/aarch64-linux-gnu/tests
//   qemu-aarch64-static -cpu max -L /usr/aarch64-linux-gnu ./sightline_tests "[.golden_write]"
#include <stdint.h>

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <iterator>
#include <string>
#include <vector>

#include "kv/packed_kv.h"
#include "sightline/kv_file.h"
#include "support/check.h"
#include "support/directory.h"
#include "support/problem.h"
#include "support/saved.h"
#include "support/tiers.h"

namespace sightline {
namespace testing {
namespace {

using internal::LayoutId;

struct GoldenFile {
  const char* name;
  LayoutId layout;
  Precision precision;
  bool rotate_k;
};
constexpr GoldenFile kGoldenFiles[] = {
    {"f32", LayoutId::kF32, Precision::kF32, false},
    {"f16", LayoutId::kF16, Precision::kF16, false},
    {"bf16", LayoutId::kBF16, Precision::kBF16, false},
    {"mixed16", LayoutId::kMixed16, Precision::kMixed16, false},
    {"i8_biased_k", LayoutId::kI8BiasedK, Precision::kI8, false},
    {"i8_biased_v", LayoutId::kI8BiasedV, Precision::kI8, false},
    {"i8_fine", LayoutId::kI8Fine, Precision::kI8Fine, false},
    {"i8_fine_biased_v", LayoutId::kI8FineBiasedV, Precision::kI8Fine, false},
    {"i8_rotated_biased_k", LayoutId::kI8RotatedBiasedK, Precision::kI8, true},
    {"i8_rotated_biased_v", LayoutId::kI8RotatedBiasedV, Precision::kI8, true},
};
constexpr GoldenFile kGoldenCache = {"cache", LayoutId::kI8BiasedK, Precision::kI8, false};

std::string PathOf(const GoldenFile& file) {
  return std::string(SIGHTLINE_TESTS_GOLDEN_DIR) + "/" + file.name + ".slkv";
}
KvFormat FormatOn(const char* tier, const GoldenFile& file) {
  return {file.precision, tier, file.rotate_k};
}
Setup SetupOn(const char* tier, const GoldenFile& file) {
  return {tier, file.precision, Source::kMemory, {}, file.rotate_k};
}

// A multiple of 1/1024 from -2 to 2.
float Number(int64_t token, int64_t head, int64_t channel, bool is_v) {
  const int64_t place = ((token * 64 + channel) * 4 + head) * 2 + (is_v ? 1 : 0);
  uint32_t x = static_cast<uint32_t>(place + 1) * 2654435761u;
  x ^= x >> 15;
  x *= 2246822519u;
  return static_cast<float>((x >> 16) % 4097) / 1024.0f - 2.0f;
}

// With these K and V in place of random ones. Channels of both have means, and one of K is large.
Problem GoldenProblem(int64_t q_len, int64_t kv_len, int64_t kv_heads) {
  Case c;
  c.q_len = q_len;
  c.kv_len = kv_len;
  c.heads = 2 * kv_heads;
  c.kv_heads = kv_heads;
  c.head_dim = 6;  // three blocks of two for rotate_k
  c.v_head_dim = 10;
  Problem problem(c, 1);
  for (int64_t l = 0; l < kv_len; ++l) {
    for (int64_t h = 0; h < kv_heads; ++h) {
      for (int64_t d = 0; d < c.head_dim; ++d) {
        const float k = Number(l, h, d, false) + static_cast<float>(d % 3);
        problem.k.Set(0, l, h, d, d == 1 ? 8.0f * k : k);
      }
      for (int64_t d = 0; d < c.v_head_dim; ++d) {
        problem.v.Set(0, l, h, d, Number(l, h, d, true) - static_cast<float>(d % 4));
      }
    }
  }
  return problem;
}

// One tile of V's scales more than that of the means, where there are such.
int64_t TokensOf(const GoldenFile& file) { return HasQuantizedV(file.precision) ? 130 : 70; }

CrossMemory Mapped(const GoldenFile& file) {
  CrossMemory mapped;
  KvMapOptions options;
  options.check = KvCheck::kFull;
  REQUIRE_THAT(Map(PathOf(file).c_str(), &mapped, options), IsOk());
  return mapped;
}

LayoutId LayoutOf(const CrossMemory& memory) { return KvAccess::Get(memory)->geometry().layout; }

TEST_CASE("golden files are read on every tier", "[golden]") {
  for (const GoldenFile& file : kGoldenFiles) {
    const CrossMemory mapped = Mapped(file);
    CHECK(LayoutOf(mapped) == file.layout);
    CHECK(mapped.kv_len() == TokensOf(file));
    for (const int64_t q_len : {1, 9, 40}) {
      const Problem problem = GoldenProblem(q_len, TokensOf(file), 2);
      Expectations expect(problem);
      for (const char* tier : SupportedTiers()) {
        INFO(file.name << ", " << q_len << " queries on " << tier);
        CrossMemory memory;
        REQUIRE_THAT(Convert(mapped, FormatOn(tier, file), &memory), IsOk());
        // What the tier reads is read where it lies.
        CHECK((KvAccess::Get(memory) == KvAccess::Get(mapped)) ==
              (LayoutOf(memory) == file.layout));
        Setup setup = SetupOn(tier, file);
        setup.amend = [&](AttentionArgs& args) { args.memory = &memory; };
        CHECK_THAT(Attend(problem, setup), IsClose(expect(setup)));
      }
    }
  }
}

// What a tier makes of these K and V, in the layout that it has for the file's precision.
CrossMemory NewMemory(const char* tier, const GoldenFile& file) {
  return MemoryOf(GoldenProblem(1, TokensOf(file), 2), SetupOn(tier, file));
}

TEST_CASE("every tier writes the bytes of a golden file", "[golden]") {
  for (const char* tier : SupportedTiers()) {
    for (const GoldenFile& file : kGoldenFiles) {
      const CrossMemory memory = NewMemory(tier, file);
      const auto* own =
          std::find_if(std::begin(kGoldenFiles), std::end(kGoldenFiles),
                       [&](const GoldenFile& other) { return other.layout == LayoutOf(memory); });
      INFO(file.name << " on " << tier);
      REQUIRE(own != std::end(kGoldenFiles));
      CHECK((SavedBytes(memory) == ReadAll(PathOf(*own))));
      RecordTierRun(tier);
    }
  }
}

// ---- A cache ------------------------------------------------------------------------------------

constexpr int64_t kCacheTokens = 130;
constexpr int64_t kMoreTokens = 20;
const std::vector<int32_t> kEvicted = {0, 5, 127, 128};

Problem CacheProblem() { return GoldenProblem(2, kCacheTokens + kMoreTokens, 1); }

void AppendRange(const Problem& problem, int64_t begin, int64_t end, KvCache* cache) {
  REQUIRE_THAT(cache->Append(problem.k.Slice(begin, end), problem.v.Slice(begin, end)), IsOk());
}

// Its second tile is open, and tokens of both are gone.
KvCache NewCache(const char* tier) {
  const Problem problem = CacheProblem();
  KvCacheDesc desc;
  desc.num_kv_heads = 1;
  desc.head_dim = problem.c.head_dim;
  desc.v_head_dim = problem.c.v_head_dim;
  desc.capacity = 400;
  desc.page_tokens = 128;
  desc.window_left = 300;
  desc.num_sinks = 3;
  desc.format = FormatOn(tier, kGoldenCache);
  KvCache cache;
  REQUIRE_THAT(KvCache::Create(desc, &cache), IsOk());
  AppendRange(problem, 0, 77, &cache);
  AppendRange(problem, 77, kCacheTokens, &cache);
  const auto count = static_cast<int64_t>(kEvicted.size());
  REQUIRE_THAT(cache.Evict(0, kEvicted.data(), count), IsOk());
  return cache;
}

LayoutId LayoutOf(const KvCache& cache) { return KvAccess::Get(cache)->geometry().layout; }

TEST_CASE("a golden cache is written as it was, and goes on", "[golden]") {
  Problem problem = CacheProblem();
  problem.c.features.window_left = 300;
  for (const char* tier : SupportedTiers()) {
    INFO(tier);
    KvCache fresh = NewCache(tier);
    const Setup setup = SetupOn(tier, kGoldenCache);
    CrossMemory memory;
    REQUIRE_THAT(Convert(Mapped(kGoldenCache), FormatOn(tier, kGoldenCache), &memory), IsOk());
    Setup of_memory = setup;
    of_memory.amend = [&](AttentionArgs& args) { args.memory = &memory; };
    CHECK_THAT(Attend(problem, of_memory), Equals(AttendCache(problem, setup, fresh)));

    KvCacheDesc desc;
    desc.format.tier = tier;
    KvCache loaded;
    const Status status = Load(PathOf(kGoldenCache).c_str(), desc, &loaded);
    if (LayoutOf(fresh) != kGoldenCache.layout) {
      CHECK_THAT(status, IsError(StatusCode::kUnsupported, "layout"));
      continue;
    }
    REQUIRE_THAT(status, IsOk());
    CHECK((SavedBytes(fresh) == ReadAll(PathOf(kGoldenCache))));
    CHECK(loaded.num_evicted(0) == static_cast<int64_t>(kEvicted.size()));
    for (KvCache* cache : {&fresh, &loaded}) {
      AppendRange(problem, kCacheTokens, kCacheTokens + kMoreTokens, cache);
    }
    CHECK((SavedBytes(loaded) == SavedBytes(fresh)));
    CHECK_THAT(AttendCache(problem, setup, loaded), Equals(AttendCache(problem, setup, fresh)));
  }
}

// ---- Writing ------------------------------------------------------------------------------------

TEST_CASE("golden files are written anew", "[.golden_write]") {
  for (const char* tier : SupportedTiers()) {
    for (const GoldenFile& file : kGoldenFiles) {
      const CrossMemory memory = NewMemory(tier, file);
      if (LayoutOf(memory) == file.layout) CHECK_THAT(Save(memory, PathOf(file).c_str()), IsOk());
    }
    const KvCache cache = NewCache(tier);
    if (LayoutOf(cache) == kGoldenCache.layout) {
      CHECK_THAT(Save(cache, PathOf(kGoldenCache).c_str()), IsOk());
    }
    RecordTierRun(tier);
  }
}

}  // namespace
}  // namespace testing
}  // namespace sightline
