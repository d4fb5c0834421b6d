// sightline/kv_file.h: what is saved, mapped and loaded gives the same bits; a cache goes on as if
// nothing had happened; damaged and forged files are refused or harmless; any layout becomes any
// other.
#include "sightline/kv_file.h"

#include <math.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>
#include <iterator>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "dispatch/validate.h"
#include "kv/stored_kv.h"
#include "kv/unpack.h"
#include "support/check.h"
#include "support/directory.h"
#include "support/file_bytes.h"
#include "support/packed.h"
#include "support/problem.h"
#include "support/rotation.h"
#include "support/saved.h"
#include "support/threads.h"
#include "support/tiers.h"

namespace sightline {
namespace testing {
namespace {

using internal::FileCheck;
using internal::KvMeta;
using internal::LayoutId;
using internal::MappedFile;
using internal::PackedKv;
using internal::StoredKv;

constexpr StatusCode kInvalid = StatusCode::kInvalidArgument;
constexpr StatusCode kUnsupported = StatusCode::kUnsupported;
constexpr StatusCode kCorrupt = StatusCode::kCorrupt;

// Of all precisions, and i8 with rotate_k.
std::vector<KvFormat> Formats(const char* tier) {
  std::vector<KvFormat> formats;
  for (const Precision precision : kPrecisions) formats.push_back({precision, tier, false});
  formats.push_back({Precision::kI8, tier, true});
  return formats;
}
std::string TextOf(const KvFormat& format) {
  return std::string(Name(format.precision)) + (format.rotate_k ? " rotated" : "") + " on " +
         format.tier;
}

Setup SetupOf(const KvFormat& format) {
  Setup setup = {format.tier, format.precision, Source::kMemory};
  setup.rotate_k = format.rotate_k;
  return setup;
}

Case SmallCase(int64_t q_len, int64_t kv_len) {
  Case c;
  c.q_len = q_len;
  c.kv_len = kv_len;
  c.heads = 4;
  c.kv_heads = 2;
  c.kv_batch = 2;
  c.beams = 2;
  c.head_dim = 20;
  c.v_head_dim = 33;
  c.distribution = Distribution::kKBias;
  return c;
}

// Of one of the two.
Status TryRun(const Problem& problem, const KvFormat& format, const CrossMemory* memory,
              const KvCache* cache, const Tensor& out) {
  AttentionDesc desc = DescOf(problem.c, SetupOf(format));
  desc.max_batch = 16;
  desc.owns_workspace = true;
  Plan plan;
  if (Status status = Plan::Create(desc, &plan); !status.ok()) return status;
  AttentionArgs args;
  args.q = problem.q.view();
  args.out = out.view();
  args.memory = memory;
  args.cache = cache;
  const Status status = Run(plan, args);
  if (status.ok()) RecordTierRun(plan.tier());
  return status;
}
Tensor AttendTo(const Problem& problem, const KvFormat& format, const CrossMemory& memory) {
  Tensor result = problem.NewOut();
  REQUIRE_THAT(TryRun(problem, format, &memory, nullptr, result), IsOk());
  return result;
}
Tensor AttendTo(const Problem& problem, const KvFormat& format, const KvCache& cache) {
  Tensor result = problem.NewOut();
  REQUIRE_THAT(TryRun(problem, format, nullptr, &cache, result), IsOk());
  return result;
}

CrossMemory NewMemory(const Problem& problem, const KvFormat& format,
                      const std::vector<int32_t>& kv_lens = {}) {
  CrossMemoryOptions options;
  if (!kv_lens.empty()) options.kv_lens = kv_lens.data();
  CrossMemory memory;
  REQUIRE_THAT(
      CrossMemory::Create(problem.k.view(), problem.v.view(), format, &memory, {}, options),
      IsOk());
  return memory;
}

void CheckSameNumbers(const CrossMemory& a, const CrossMemory& b) {
  CHECK(a.batch() == b.batch());
  CHECK(a.kv_len() == b.kv_len());
  for (int64_t i = 0; i < b.batch(); ++i) CHECK(a.kv_len(i) == b.kv_len(i));
  CHECK(a.num_kv_heads() == b.num_kv_heads());
  CHECK(a.head_dim() == b.head_dim());
  CHECK(a.v_head_dim() == b.v_head_dim());
  CHECK(a.precision() == b.precision());
  CHECK(a.rotate_k() == b.rotate_k());
}

// ---- Memories -----------------------------------------------------------------------------------

TEST_CASE("a mapped memory gives the bits of the one that was saved", "[kv_file]") {
  const Directory directory;
  uint64_t seed = 0;
  for (const int64_t kv_len : {0, 1, 65, 130, 1100}) {
    const Problem problem(SmallCase(kv_len == 130 ? 33 : 2, kv_len), ++seed);
    for (const char* tier : SupportedTiers()) {
      if (!IsAffordable(problem.c, tier)) continue;
      for (const KvFormat& format : Formats(tier)) {
        if (!TakesTurn(tier)) continue;
        for (const bool is_ragged : {false, true}) {
          const std::vector<int32_t> kv_lens = {static_cast<int32_t>(kv_len / 3),
                                                static_cast<int32_t>(kv_len)};
          INFO(kv_len << " keys, ragged " << is_ragged << ", " << TextOf(format));
          const CrossMemory memory =
              NewMemory(problem, format, is_ragged ? kv_lens : std::vector<int32_t>());
          const std::string path = directory / "memory";
          REQUIRE_THAT(Save(memory, path.c_str()), IsOk());
          CrossMemory mapped;
          const KvMapOptions options = {seed % 2 == 0 ? KvCheck::kFull : KvCheck::kLazy, is_ragged};
          REQUIRE_THAT(Map(path.c_str(), &mapped, options), IsOk());
          CheckSameNumbers(mapped, memory);
          CHECK_THAT(Verify(mapped), IsOk());
          CHECK_THAT(AttendTo(problem, format, mapped), Equals(AttendTo(problem, format, memory)));
          if (kv_len != 65) continue;
          const Bytes bytes = ReadAll(path);
          CHECK((SavedBytes(memory) == bytes));
          CHECK((SavedBytes(mapped) == bytes));
        }
      }
    }
  }
}

TEST_CASE("a layer of a set is saved like any memory", "[kv_file]") {
  const Problem problem(SmallCase(3, 70), 20);
  const KvFormat format = {Precision::kI8, BestTier()};
  CrossMemoryDesc desc;
  desc.batch = problem.c.kv_batch;
  desc.kv_len = 100;
  desc.num_kv_heads = problem.c.kv_heads;
  desc.head_dim = problem.c.head_dim;
  desc.v_head_dim = problem.c.v_head_dim;
  desc.format = format;
  CrossMemorySet set;
  REQUIRE_THAT(CrossMemorySet::Create(desc, 2, &set), IsOk());
  REQUIRE_THAT(set.Fill(1, problem.k.view(), problem.v.view()), IsOk());
  CHECK((SavedBytes(set.layer(1)) == SavedBytes(NewMemory(problem, format))));
}

TEST_CASE("a memory of no sequences is saved and mapped", "[kv_file]") {
  Case c = SmallCase(1, 5);
  c.kv_batch = 0;
  const Problem problem(c, 21);
  const Directory directory;
  REQUIRE_THAT(Save(NewMemory(problem, {Precision::kF16, BestTier()}), (directory / "m").c_str()),
               IsOk());
  CrossMemory mapped;
  REQUIRE_THAT(Map((directory / "m").c_str(), &mapped), IsOk());
  CHECK(mapped.batch() == 0);
  CHECK(mapped.kv_len() == 5);
}

TEST_CASE("a mapping lives as long as a copy of its memory, whatever becomes of the file",
          "[kv_file]") {
  const Problem problem(SmallCase(5, 300), 30);
  const Problem other(SmallCase(5, 20), 31);
  const KvFormat format = {Precision::kI8, BestTier()};
  const CrossMemory memory = NewMemory(problem, format);
  const Tensor expected = AttendTo(problem, format, memory);
  const Directory directory;
  const std::string path = directory / "memory";
  CrossMemory copy;
  {
    REQUIRE_THAT(Save(memory, path.c_str()), IsOk());
    CrossMemory mapped;
    REQUIRE_THAT(Map(path.c_str(), &mapped), IsOk());
    copy = mapped;
    CHECK_THAT(Save(NewMemory(other, format), path.c_str()), IsOk());  // replaced
    CHECK_THAT(AttendTo(problem, format, copy), Equals(expected));
    CHECK(unlink(path.c_str()) == 0);
  }
  CHECK_THAT(AttendTo(problem, format, copy), Equals(expected));
  CHECK_THAT(Verify(copy), IsOk());
  CHECK_THAT(Save(copy, path.c_str()), IsOk());
  CHECK((ReadAll(path) == SavedBytes(memory)));
}

TEST_CASE("many threads read one mapped memory", "[kv_file][threads]") {
  const Problem problem(SmallCase(3, 200), 40);
  const KvFormat format = {Precision::kI8Fine, BestTier()};
  const CrossMemory memory = NewMemory(problem, format);
  const Tensor expected = AttendTo(problem, format, memory);
  const Directory directory;
  REQUIRE_THAT(Save(memory, (directory / "memory").c_str()), IsOk());
  std::vector<Tensor> results(4);
  std::vector<char> verified(4);
  {
    CrossMemory mapped;
    REQUIRE_THAT(Map((directory / "memory").c_str(), &mapped), IsOk());
    std::vector<std::thread> threads;
    for (size_t i = 0; i < results.size(); ++i) {
      results[i] = problem.NewOut();
      threads.emplace_back([&, i, copy = mapped] {
        AttentionDesc desc = DescOf(problem.c, SetupOf(format));
        desc.owns_workspace = true;
        Plan plan;
        if (!Plan::Create(desc, &plan).ok()) return;
        AttentionArgs args;
        args.q = problem.q.view();
        args.out = results[i].view();
        args.memory = &copy;
        verified[i] = Run(plan, args).ok() && Verify(copy).ok();
      });
    }
    mapped = CrossMemory();
    for (std::thread& thread : threads) thread.join();
  }
  for (size_t i = 0; i < results.size(); ++i) {
    CHECK(verified[i]);
    CHECK_THAT(results[i], Equals(expected));
  }
}

// ---- Caches -------------------------------------------------------------------------------------

constexpr int64_t kWindowLeft = 150;

KvCacheDesc CacheDescOf(const Case& c, const KvFormat& format, bool has_window) {
  KvCacheDesc desc;
  desc.batch = c.kv_batch;
  desc.num_kv_heads = c.kv_heads;
  desc.head_dim = c.head_dim;
  desc.v_head_dim = c.v_head_dim;
  desc.capacity = 2000;
  desc.page_tokens = 128;
  desc.format = format;
  if (has_window) {
    desc.window_left = kWindowLeft;
    desc.num_sinks = 3;
  }
  return desc;
}

void AppendRange(const Problem& problem, int64_t begin, int64_t end, KvCache* cache) {
  REQUIRE_THAT(cache->Append(problem.k.Slice(begin, end), problem.v.Slice(begin, end)), IsOk());
}

// What a cache has been through.
enum class Past { kNew, kShort, kPlain, kTruncated, kReopened, kEvicted, kWindow, kReordered };
constexpr std::array kPasts = {Past::kNew,      Past::kShort,   Past::kPlain,  Past::kTruncated,
                               Past::kReopened, Past::kEvicted, Past::kWindow, Past::kReordered};

// `problem` has tokens for 700.
KvCache CacheWith(Past past, const Problem& problem, const KvFormat& format) {
  KvCache cache;
  REQUIRE_THAT(KvCache::Create(CacheDescOf(problem.c, format, past == Past::kWindow), &cache),
               IsOk());
  switch (past) {
    case Past::kNew:
      break;
    case Past::kShort:  // centres are not settled
      AppendRange(problem, 0, 50, &cache);
      AppendRange(problem, 50, 77, &cache);
      break;
    case Past::kPlain:
      AppendRange(problem, 0, 333, &cache);
      break;
    case Past::kTruncated:  // within the open tile, and settled before
      AppendRange(problem, 0, 300, &cache);
      AppendRange(problem, 400, 480, &cache);
      REQUIRE_THAT(cache.Truncate(290), IsOk());
      break;
    case Past::kReopened:
      AppendRange(problem, 0, 300, &cache);
      REQUIRE_THAT(cache.Truncate(70), IsOk());
      break;
    case Past::kEvicted: {
      AppendRange(problem, 0, 460, &cache);
      std::vector<int32_t> positions = {0, 5, 127, 300, 301, 459, 400};
      for (int32_t i = 128; i < 256; ++i) positions.push_back(i);  // a page
      REQUIRE_THAT(cache.Evict(1, positions.data(), static_cast<int64_t>(positions.size())),
                   IsOk());
      REQUIRE_THAT(cache.Evict(0, positions.data(), 3), IsOk());
      break;
    }
    case Past::kWindow:
      for (int64_t begin = 0; begin < 600; begin += 40) {
        AppendRange(problem, begin, begin + 40, &cache);
      }
      break;
    case Past::kReordered: {
      AppendRange(problem, 0, 200, &cache);
      const int32_t parents[] = {1, 1, 0};
      REQUIRE_THAT(cache.Reorder(parents, 3), IsOk());
      const int32_t positions[] = {7, 140};
      REQUIRE_THAT(cache.Evict(2, positions, 2), IsOk());
      break;
    }
  }
  return cache;
}

// Queries for a cache with such a past: of as many sequences, with its window.
Problem QueriesFor(Past past, uint64_t seed) {
  Case c = SmallCase(2, 700);
  c.causal = true;
  if (past == Past::kReordered) c.kv_batch = 3;
  if (past == Past::kWindow) c.features.window_left = kWindowLeft - 10;
  return Problem(c, seed);
}

TEST_CASE("a cache is mapped as what it holds", "[kv_file][cache]") {
  const Past past = GENERATE(from_range(kPasts));
  const Problem problem(SmallCase(1, 700), 50);
  const Problem queries = QueriesFor(past, 51);
  const Directory directory;
  const std::string path = directory / "cache";
  for (const char* tier : SupportedTiers()) {
    for (const KvFormat& format : Formats(tier)) {
      if (!TakesTurn(tier)) continue;
      INFO(TextOf(format) << ", past " << static_cast<int>(past));
      const KvCache cache = CacheWith(past, problem, format);
      CrossMemory memory, mapped;
      REQUIRE_THAT(CrossMemory::From(cache, &memory), IsOk());
      const Tensor expected = AttendTo(queries, format, cache);
      CHECK_THAT(AttendTo(queries, format, memory), Equals(expected));

      REQUIRE_THAT(Save(cache, path.c_str()), IsOk());
      REQUIRE_THAT(Map(path.c_str(), &mapped), IsOk());
      CheckSameNumbers(mapped, memory);
      CHECK_THAT(Verify(mapped), IsOk());
      CHECK_THAT(AttendTo(queries, format, mapped), Equals(expected));

      // As a memory: without what it takes to go on.
      REQUIRE_THAT(Save(memory, path.c_str()), IsOk());
      REQUIRE_THAT(Map(path.c_str(), &mapped, {KvCheck::kFull}), IsOk());
      CHECK_THAT(AttendTo(queries, format, mapped), Equals(expected));
      KvCache loaded;
      CHECK_THAT(Load(path.c_str(), {}, &loaded), IsError(kInvalid, "memory"));
    }
  }
}

// Both caches do the same, and are the same afterwards.
void CheckSame(const Problem& queries, const KvFormat& format, const KvCache& a, const KvCache& b) {
  CHECK(a.length() == b.length());
  CHECK(a.batch() == b.batch());
  CHECK(a.bytes() == b.bytes());
  for (int64_t i = 0; i < a.batch(); ++i) CHECK(a.num_evicted(i) == b.num_evicted(i));
  if (a.batch() == queries.c.kv_batch) {
    CHECK_THAT(AttendTo(queries, format, a), Equals(AttendTo(queries, format, b)));
  }
}

void CheckSameFuture(const Problem& problem, const Problem& queries, const KvFormat& format,
                     KvCache* a, KvCache* b) {
  KvCache fork_a, fork_b;
  REQUIRE_THAT(a->Fork(&fork_a), IsOk());
  REQUIRE_THAT(b->Fork(&fork_b), IsOk());
  int64_t begin = 610;
  const Problem* tokens = &problem;
  Case wide = problem.c;
  wide.kv_batch = a->batch();
  const Problem more(wide, 77);
  if (a->batch() != problem.c.kv_batch) tokens = &more;
  for (const int64_t count : {1, 2, 60, 20}) {
    for (KvCache* cache : {a, b}) AppendRange(*tokens, begin, begin + count, cache);
    begin += count;
    CheckSame(queries, format, *a, *b);
  }
  CHECK((SavedBytes(*a) == SavedBytes(*b)));
  const int64_t length = a->length();
  for (const int64_t back : {3, 66}) {
    const Status status = a->Truncate(length - back);  // a window may not have them any more
    CHECK(b->Truncate(length - back).code() == status.code());
    CheckSame(queries, format, *a, *b);
  }
  const int32_t position = static_cast<int32_t>(length - 70);
  for (KvCache* cache : {a, b}) {
    REQUIRE_THAT(cache->Evict(0, &position, 1), IsOk());
    AppendRange(*tokens, 0, 90, cache);
  }
  CheckSame(queries, format, *a, *b);
  CHECK((SavedBytes(*a) == SavedBytes(*b)));
  // The forks are where they were.
  CheckSame(queries, format, fork_a, fork_b);
  for (KvCache* cache : {&fork_a, &fork_b}) AppendRange(*tokens, 300, 340, cache);
  CheckSame(queries, format, fork_a, fork_b);
}

TEST_CASE("a loaded cache goes on as if it had never been saved", "[kv_file][cache]") {
  const Past past = GENERATE(from_range(kPasts));
  const Problem problem(SmallCase(1, 700), 60);
  const Problem queries = QueriesFor(past, 61);
  const Directory directory;
  const std::string path = directory / "cache";
  for (const char* tier : SupportedTiers()) {
    for (const KvFormat& format : Formats(tier)) {
      if (!TakesTurn(tier)) continue;
      INFO(TextOf(format) << ", past " << static_cast<int>(past));
      KvCache cache = CacheWith(past, problem, format);
      REQUIRE_THAT(Save(cache, path.c_str()), IsOk());
      KvCache loaded;
      KvCacheDesc desc;
      desc.format.tier = tier;
      REQUIRE_THAT(Load(path.c_str(), desc, &loaded), IsOk());
      CHECK(loaded.capacity() == cache.capacity());
      CHECK(loaded.page_tokens() == cache.page_tokens());
      CHECK(loaded.window_left() == cache.window_left());
      CHECK(loaded.precision() == cache.precision());
      CHECK(loaded.rotate_k() == cache.rotate_k());
      CheckSame(queries, format, cache, loaded);
      CHECK((SavedBytes(loaded) == ReadAll(path)));
      CheckSameFuture(problem, queries, format, &cache, &loaded);
    }
  }
}

TEST_CASE("a cache is loaded into the pages of a pool", "[kv_file][cache]") {
  const Problem problem(SmallCase(1, 700), 70);
  const Problem queries = QueriesFor(Past::kReordered, 71);
  const KvFormat format = {Precision::kI8, BestTier()};
  KvCache cache = CacheWith(Past::kReordered, problem, format);
  const Directory directory;
  const std::string path = directory / "cache";
  REQUIRE_THAT(Save(cache, path.c_str()), IsOk());

  KvPoolDesc pool_desc;
  pool_desc.num_kv_heads = problem.c.kv_heads;
  pool_desc.head_dim = problem.c.head_dim;
  pool_desc.v_head_dim = problem.c.v_head_dim;
  pool_desc.format = format;
  pool_desc.page_tokens = 128;
  pool_desc.max_pages = 20;
  KvPool pool;
  REQUIRE_THAT(KvPool::Create(pool_desc, &pool), IsOk());
  KvCacheDesc desc;
  desc.pool = &pool;
  KvCache loaded;
  REQUIRE_THAT(Load(path.c_str(), desc, &loaded), IsOk());
  // Sequences 0 and 1 share both pages; sequence 2 has others.
  CHECK(pool.pages_in_use() == 4);
  CheckSame(queries, format, cache, loaded);
  CheckSameFuture(problem, queries, format, &cache, &loaded);

  struct {
    const char* name;
    int64_t KvPoolDesc::* field;
    int64_t value;
  } const kOthers[] = {{"num_kv_heads", &KvPoolDesc::num_kv_heads, 1},
                       {"head_dim", &KvPoolDesc::head_dim, 21},
                       {"v_head_dim", &KvPoolDesc::v_head_dim, 32},
                       {"page_tokens", &KvPoolDesc::page_tokens, 256}};
  KvCache unchanged;
  for (const auto& other : kOthers) {
    KvPoolDesc wrong = pool_desc;
    wrong.*other.field = other.value;
    KvPool wrong_pool;
    REQUIRE_THAT(KvPool::Create(wrong, &wrong_pool), IsOk());
    desc.pool = &wrong_pool;
    CHECK_THAT(Load(path.c_str(), desc, &unchanged), IsError(kInvalid, other.name));
  }
  KvPoolDesc rotated = pool_desc;
  rotated.format.rotate_k = true;
  KvPool rotated_pool;
  REQUIRE_THAT(KvPool::Create(rotated, &rotated_pool), IsOk());
  desc.pool = &rotated_pool;
  CHECK_THAT(Load(path.c_str(), desc, &unchanged), IsError(kInvalid, "format"));
  KvPoolDesc small = pool_desc;
  small.max_pages = 3;
  KvPool small_pool;
  REQUIRE_THAT(KvPool::Create(small, &small_pool), IsOk());
  desc.pool = &small_pool;
  CHECK_THAT(Load(path.c_str(), desc, &unchanged),
             IsError(StatusCode::kCapacityExceeded, "max_pages"));
  CHECK(small_pool.pages_in_use() == 0);
  CHECK(unchanged.empty());
}

TEST_CASE("a cache is loaded with what its desc says, or not at all", "[kv_file][cache]") {
  const Problem problem(SmallCase(1, 700), 80);
  const KvFormat format = {Precision::kF16, BestTier()};
  const KvCache cache = CacheWith(Past::kWindow, problem, format);
  const Directory directory;
  const std::string path = directory / "cache";
  REQUIRE_THAT(Save(cache, path.c_str()), IsOk());
  const KvCacheDesc exact = CacheDescOf(problem.c, format, true);
  KvCache loaded;
  CHECK_THAT(Load(path.c_str(), exact, &loaded), IsOk());
  CHECK(loaded.capacity() == 2000);
  KvCacheDesc desc;
  desc.capacity = 3000;
  CHECK_THAT(Load(path.c_str(), desc, &loaded), IsOk());
  CHECK(loaded.capacity() == 3000);

  struct {
    const char* name;
    int64_t KvCacheDesc::* field;
    int64_t value;
  } const kOthers[] = {{"batch", &KvCacheDesc::batch, 3},
                       {"num_kv_heads", &KvCacheDesc::num_kv_heads, 4},
                       {"head_dim", &KvCacheDesc::head_dim, 21},
                       {"v_head_dim", &KvCacheDesc::v_head_dim, 20},
                       {"window_left", &KvCacheDesc::window_left, 1},
                       {"num_sinks", &KvCacheDesc::num_sinks, 4},
                       {"page_tokens", &KvCacheDesc::page_tokens, 256}};
  KvCache unchanged;
  for (const auto& other : kOthers) {
    KvCacheDesc wrong = exact;
    wrong.*other.field = other.value;
    CHECK_THAT(Load(path.c_str(), wrong, &unchanged), IsError(kInvalid, other.name));
  }
  KvCacheDesc wrong = exact;
  wrong.format.precision = Precision::kBF16;
  CHECK_THAT(Load(path.c_str(), wrong, &unchanged), IsError(kInvalid, "format"));
  wrong = exact;
  wrong.capacity = 100;
  CHECK_THAT(Load(path.c_str(), wrong, &unchanged),
             IsError(StatusCode::kCapacityExceeded, "capacity"));
  wrong = exact;
  wrong.format.tier = "no_tier";
  CHECK_THAT(Load(path.c_str(), wrong, &unchanged), IsError(kInvalid, "tier"));
  CHECK(unchanged.empty());
}

// Of streams that have ended at different times; not all of the first page's tokens are padding.
std::vector<int32_t> CutLengths(const KvCache& cache) {
  const auto length = static_cast<int32_t>(cache.length());
  std::vector<int32_t> lengths = {length - 45, std::min(130, length)};
  if (cache.batch() == 3) lengths.insert(lengths.begin(), 0);
  return lengths;
}
CrossMemory CutMemory(const KvCache& cache) {
  CrossMemory memory;
  REQUIRE_THAT(CrossMemory::From(cache, &memory, CutLengths(cache).data()), IsOk());
  return memory;
}

bool IsZero(const unsigned char* data, size_t bytes) {
  return std::all_of(data, data + bytes, [](unsigned char byte) { return byte == 0; });
}

TEST_CASE("files hold nothing of tokens that are gone", "[kv_file][cache]") {
  const Past past = GENERATE(Past::kTruncated, Past::kReopened, Past::kEvicted, Past::kReordered);
  const Problem problem(SmallCase(1, 700), 90);
  const Directory directory;
  const std::string path = directory / "cache";
  const bool is_cut = GENERATE(false, true);
  for (const KvFormat& format : Formats(BestTier())) {
    INFO(TextOf(format) << ", past " << static_cast<int>(past) << ", cut " << is_cut);
    const KvCache cache = CacheWith(past, problem, format);
    if (is_cut) REQUIRE_THAT(Save(CutMemory(cache), path.c_str()), IsOk());
    if (!is_cut) REQUIRE_THAT(Save(cache, path.c_str()), IsOk());
    CrossMemory mapped;
    REQUIRE_THAT(Map(path.c_str(), &mapped), IsOk());
    const PackedKv& packed = *KvAccess::Get(mapped);
    const internal::PackedShape& s = packed.shape();
    size_t gone = 0;
    for (size_t b = 0; b < static_cast<size_t>(mapped.batch()); ++b) {
      const internal::SequenceKeys keys = packed.keys(b);
      const size_t end = internal::RoundUp(keys.count, s.capacity);
      for (size_t key = 0; key < end; ++key) {
        if (keys.pages.data[key / s.capacity] == nullptr) continue;
        const bool is_kept = key < keys.count && (keys.pages.kept == nullptr ||
                                                  (keys.pages.kept[key / 32] >> key % 32 & 1) != 0);
        if (is_kept) continue;
        ++gone;
        for (size_t h = 0; h < 2; ++h) {
          const PackedKey found = FindKey(packed, b, h, key);
          const internal::PackedOffsets& o = packed.offsets();
          const size_t k_bytes = internal::KElementBytes(s.layout);
          const size_t v_bytes = internal::VElementBytes(s.layout);
          const unsigned char* base = found.head.base;
          bool is_zero = true;
          for (size_t d = 0; d < s.head_dim; ++d) {
            const size_t at = o.k + internal::KIndex(s, found.key, d) * k_bytes;
            is_zero = is_zero && IsZero(base + at, k_bytes);
          }
          for (size_t c = 0; c < s.v_head_dim; ++c) {
            const size_t at = o.v + internal::VIndex(s, found.key, c) * v_bytes;
            is_zero = is_zero && IsZero(base + at, v_bytes);
          }
          if (internal::HasQuantizedK(s.layout) && key >= keys.count) {
            is_zero = is_zero && IsZero(base + o.k_scale + found.key * 4, 4);
          }
          CHECK(is_zero);
        }
      }
    }
    CHECK(gone > 0);
  }
  // Where nothing is rounded by what was there, what it was leaves no trace.
  for (const Precision precision : {Precision::kF32, Precision::kF16, Precision::kBF16}) {
    const KvFormat format = {precision, BestTier()};
    Bytes files[2];
    for (uint64_t i = 0; i < 2; ++i) {
      const Problem gone(SmallCase(1, 700), 91 + i);
      KvCache cache;
      REQUIRE_THAT(KvCache::Create(CacheDescOf(problem.c, format, false), &cache), IsOk());
      AppendRange(problem, 0, 150, &cache);
      AppendRange(gone, 0, 10, &cache);
      const int32_t positions[] = {150, 151, 152, 153, 154};
      REQUIRE_THAT(cache.Evict(0, positions, 5), IsOk());
      REQUIRE_THAT(cache.Evict(1, positions, 5), IsOk());
      REQUIRE_THAT(cache.Truncate(155), IsOk());
      files[i] = SavedBytes(cache);
    }
    CHECK((files[0] == files[1]));
  }
}

// ---- Layouts of others --------------------------------------------------------------------------

Bytes FileOf(const std::vector<FilePart>& parts, bool seals_data = true) {
  return Assemble(parts, internal::kKvFileKind, seals_data ? ~uint32_t{0} : internal::kDataSection);
}

FilePart& Find(std::vector<FilePart>& contents, uint32_t id) {
  const auto found = std::find_if(contents.begin(), contents.end(),
                                  [id](const FilePart& content) { return content.id == id; });
  REQUIRE(found != contents.end());
  return *found;
}

KvMeta MetaOf(std::vector<FilePart>& contents) {
  KvMeta meta;
  memcpy(&meta, Find(contents, internal::kMetaSection).bytes.data(), sizeof(meta));
  return meta;
}
void SetMeta(const KvMeta& meta, std::vector<FilePart>* contents) {
  memcpy(Find(*contents, internal::kMetaSection).bytes.data(), &meta, sizeof(meta));
}

// The same K and V in the layout of another architecture: the other of K and V is biased.
Bytes InForeignLayout(const Bytes& file) {
  std::vector<FilePart> contents = PartsOf(file);
  KvMeta meta = MetaOf(contents);
  bool flips_k = true;
  switch (meta.layout) {
    case LayoutId::kI8BiasedK:
      meta.layout = LayoutId::kI8BiasedV;
      break;
    case LayoutId::kI8BiasedV:
      meta.layout = LayoutId::kI8BiasedK;
      break;
    case LayoutId::kI8RotatedBiasedK:
      meta.layout = LayoutId::kI8RotatedBiasedV;
      break;
    case LayoutId::kI8RotatedBiasedV:
      meta.layout = LayoutId::kI8RotatedBiasedK;
      break;
    case LayoutId::kI8Fine:
      meta.layout = LayoutId::kI8FineBiasedV;
      flips_k = false;
      break;
    case LayoutId::kI8FineBiasedV:
      meta.layout = LayoutId::kI8Fine;
      flips_k = false;
      break;
    default:
      FAIL("no foreign form");
  }
  const bool is_block = meta.content == internal::KvContent::kBlock;
  const internal::PackedOffsets o = internal::OffsetsOf(internal::ShapeOf(
      meta.layout, static_cast<size_t>(meta.head_dim), static_cast<size_t>(meta.v_head_dim),
      static_cast<size_t>(is_block ? meta.length : meta.page_tokens)));
  Bytes& data = Find(contents, internal::kDataSection).bytes;
  for (size_t head = 0; head < data.size(); head += o.bytes) {
    for (size_t i = flips_k ? o.k : o.v; i < o.k_scale; ++i) data[head + i] ^= 0x80;
  }
  SetMeta(meta, &contents);
  return FileOf(contents);
}

bool HasForeignForm(Precision precision) {
  return precision == Precision::kI8 || precision == Precision::kI8Fine;
}

CrossMemory MapBytes(const Bytes& bytes) {
  const Directory directory;
  WriteAll(directory / "forged", bytes);
  CrossMemory memory;
  REQUIRE_THAT(Map((directory / "forged").c_str(), &memory, {KvCheck::kFull}), IsOk());
  return memory;
}

TEST_CASE("the tests put files together as the library does", "[kv_file]") {
  const Problem problem(SmallCase(1, 700), 100);
  for (const KvFormat& format : Formats(BestTier())) {
    const Bytes cache = SavedBytes(CacheWith(Past::kEvicted, problem, format));
    CHECK((FileOf(PartsOf(cache)) == cache));
  }
}

TEST_CASE("tiers read the files of each other, or say what to do", "[kv_file]") {
  const Problem problem(SmallCase(9, 140), 101);
  const Problem queries = QueriesFor(Past::kEvicted, 102);
  const Directory directory;
  for (const char* writer : SupportedTiers()) {
    for (const KvFormat& format : Formats(writer)) {
      const CrossMemory memory = NewMemory(problem, format);
      REQUIRE_THAT(Save(memory, (directory / "memory").c_str()), IsOk());
      CrossMemory mapped;
      REQUIRE_THAT(Map((directory / "memory").c_str(), &mapped), IsOk());
      for (const char* reader : SupportedTiers()) {
        if (!TakesTurn(reader)) continue;
        const KvFormat own = {format.precision, reader, format.rotate_k};
        INFO(TextOf(format) << ", read on " << reader);
        const Tensor expected = problem.NewOut();
        const Status in_memory = TryRun(problem, own, &memory, nullptr, expected);
        if (in_memory.ok()) {
          CHECK_THAT(AttendTo(problem, own, mapped), Equals(expected));
        } else {
          CHECK_THAT(in_memory, IsError(kUnsupported, "layout"));
          CHECK_THAT(TryRun(problem, own, &mapped, nullptr, expected),
                     IsError(kUnsupported, "layout"));
        }
      }
      if (!HasForeignForm(format.precision)) continue;
      INFO(TextOf(format));
      const Tensor out = problem.NewOut();
      const CrossMemory foreign = MapBytes(InForeignLayout(ReadAll(directory / "memory")));
      CHECK_THAT(TryRun(problem, format, &foreign, nullptr, out), IsError(kUnsupported, "layout"));
      CHECK(foreign.precision() == format.precision);
      CrossMemory converted;
      REQUIRE_THAT(Convert(foreign, format, &converted), IsOk());
      CHECK_THAT(AttendTo(problem, format, converted), Equals(AttendTo(problem, format, memory)));

      Problem tokens(SmallCase(1, 700), 103);
      const Bytes cache = InForeignLayout(SavedBytes(CacheWith(Past::kEvicted, tokens, format)));
      WriteAll(directory / "foreign", cache);
      KvCacheDesc desc;
      desc.format.tier = writer;
      KvCache loaded;
      CHECK_THAT(Load((directory / "foreign").c_str(), desc, &loaded),
                 IsError(kUnsupported, "layout"));
      for (const Past past : {Past::kEvicted, Past::kPlain}) {
        const KvCache own = CacheWith(past, tokens, format);
        REQUIRE_THAT(Convert(MapBytes(InForeignLayout(SavedBytes(own))), format, &converted),
                     IsOk());
        CHECK_THAT(AttendTo(queries, format, converted), Equals(AttendTo(queries, format, own)));
      }
    }
  }
}

// The keys of a memory, then those of a cache.
Tensor AttendToBoth(const Problem& problem, const KvFormat& format, const CrossMemory& memory,
                    const KvCache& cache) {
  AttentionDesc desc = DescOf(problem.c, SetupOf(format));
  desc.owns_workspace = true;
  Plan plan;
  REQUIRE_THAT(Plan::Create(desc, &plan), IsOk());
  KvSegment segments[2];
  segments[0].memory = &memory;
  segments[1].cache = &cache;
  Tensor out = problem.NewOut();
  AttentionArgs args;
  args.q = problem.q.view();
  args.out = out.view();
  args.segments = segments;
  args.num_segments = 2;
  REQUIRE_THAT(Run(plan, args), IsOk());
  RecordTierRun(plan.tier());
  return out;
}

// docs/files.md: Map, Convert, and a new cache behind.
TEST_CASE("what no tier here loads goes on as a memory and a new cache", "[kv_file][cache]") {
  const Past past =
      GENERATE(Past::kShort, Past::kPlain, Past::kReopened, Past::kEvicted, Past::kWindow);
  const Problem problem(SmallCase(1, 700), 104);
  const Problem queries = QueriesFor(past, 105);
  const Directory directory;
  const std::string path = directory / "foreign";
  for (const char* tier : SupportedTiers()) {
    for (const KvFormat& format : Formats(tier)) {
      if (!HasForeignForm(format.precision) || !TakesTurn(tier)) continue;
      INFO(TextOf(format) << ", past " << static_cast<int>(past));
      KvCache own = CacheWith(past, problem, format);
      WriteAll(path, InForeignLayout(SavedBytes(own)));
      KvCacheDesc desc;
      desc.format.tier = tier;
      KvCache loaded;
      REQUIRE_THAT(Load(path.c_str(), desc, &loaded), IsError(kUnsupported, "layout"));

      CrossMemory file, so_far, kept;
      REQUIRE_THAT(Map(path.c_str(), &file), IsOk());
      REQUIRE_THAT(Convert(file, format, &so_far), IsOk());
      REQUIRE_THAT(CrossMemory::From(own, &kept), IsOk());
      desc = CacheDescOf(problem.c, format, past == Past::kWindow);
      desc.num_sinks = 0;
      KvCache answer;
      REQUIRE_THAT(KvCache::Create(desc, &answer), IsOk());
      int64_t begin = 500;
      for (const int64_t count : {1, 2, 150, 1}) {
        for (KvCache* cache : {&own, &answer}) AppendRange(problem, begin, begin + count, cache);
        begin += count;
        INFO(answer.length() << " new tokens");
        const Tensor out = AttendToBoth(queries, format, so_far, answer);
        CHECK_THAT(out, Equals(AttendToBoth(queries, format, kept, answer)));
        // As if all were in one cache, but for means and steps of the new tokens.
        const std::vector<double> expected = AttendTo(queries, format, own).ToDoubles();
        CHECK(ErrorOf(out, expected).relative_l2 < 0.03);
      }
    }
  }
}

// ---- Converting ---------------------------------------------------------------------------------

// What is stored, as numbers.
struct Rows {
  std::vector<float> k, v;  // of one head
};
Rows RowsOf(const CrossMemory& memory, size_t b, size_t h) {
  const PackedKv& packed = *KvAccess::Get(memory);
  const size_t count = packed.keys(b).count;
  Rows rows = {std::vector<float>(count * packed.shape().head_dim),
               std::vector<float>(count * packed.shape().v_head_dim)};
  for (size_t key = 0; key < count; ++key) {
    if (packed.keys(b).pages.tiles != nullptr &&
        packed.keys(b).pages.tiles[key / internal::kKvTile] == internal::TileKeys::kNone) {
      continue;
    }
    const PackedKey found = FindKey(packed, b, h, key);
    internal::UnpackRows(found.head, found.key, 1, rows.k.data() + key * packed.shape().head_dim,
                         rows.v.data() + key * packed.shape().v_head_dim);
  }
  return rows;
}

double RelativeL2(const std::vector<float>& x, const std::vector<double>& exact) {
  REQUIRE(x.size() == exact.size());
  double error = 0.0, norm = 0.0;
  for (size_t i = 0; i < x.size(); ++i) {
    error += (double{x[i]} - exact[i]) * (double{x[i]} - exact[i]);
    norm += exact[i] * exact[i];
  }
  return sqrt(error / std::max(norm, 1e-300));
}
std::vector<double> Doubles(const std::vector<float>& x) {
  return std::vector<double>(x.begin(), x.end());
}

// The quanta of the simulation as numbers. K is rotated back by what its rotation is: an orthogonal
// map, whose columns are what it makes of unit vectors.
void Dequantize(const QuantHead& head, std::vector<double>* k, std::vector<double>* v) {
  const size_t n = head.head_dim;
  std::vector<std::vector<float>> columns;
  for (size_t d = 0; d < n && !head.q_factor.empty(); ++d) {
    std::vector<float> unit(n);
    unit[d] = 1.0f;
    RotateQ(head.q_factor, &unit);
    columns.push_back(unit);
  }
  for (size_t key = 0; key < head.kv_len; ++key) {
    for (size_t d = 0; d < n; ++d) {
      double x = 0.0;
      for (size_t j = 0; j < n; ++j) {
        const double quantum = double{head.k_scale[key]} * head.k[key * n + j];
        x += quantum * (columns.empty() ? (j == d ? 1.0 : 0.0) : double{columns[d][j]});
      }
      k->push_back(x + double{head.k_center[d]});
    }
    for (size_t c = 0; c < head.v_head_dim; ++c) {
      const size_t tile = key / kScaleTileKeys * head.v_head_dim;
      v->push_back(double{head.v_scale[tile + c]} * head.v[key * head.v_head_dim + c] +
                   double{head.v_center[c]});
    }
  }
}

TEST_CASE("unpacking gives what quanta stand for", "[kv_file]") {
  for (const int64_t head_dim : {1, 12, 20, 64, 96}) {
    Case c = SmallCase(1, 150);
    c.head_dim = head_dim;
    c.distribution = Distribution::kKOutliers;
    const Problem problem(c, 110);
    for (const char* tier : SupportedTiers()) {
      for (const KvFormat& format : Formats(tier)) {
        if (!HasForeignForm(format.precision) || !TakesTurn(tier)) continue;
        INFO(TextOf(format) << ", head_dim " << head_dim);
        const CrossMemory memory = NewMemory(problem, format);
        const CrossMemory foreign = MapBytes(InForeignLayout(SavedBytes(memory)));
        for (size_t b = 0; b < 2; ++b) {
          std::vector<double> k, v;
          Dequantize(QuantizeHeadOf(problem, static_cast<int64_t>(b), 1,
                                    QuantMethodOf(c, SetupOf(format)), 150, 150),
                     &k, &v);
          const Rows rows = RowsOf(memory, b, 1);
          CHECK(RelativeL2(rows.k, k) < 1e-6);
          CHECK(RelativeL2(rows.v, v) < 1e-6);
          CHECK(RowsOf(foreign, b, 1).k == rows.k);
          CHECK(RowsOf(foreign, b, 1).v == rows.v);
        }
      }
    }
  }
}

// Tensors of what a memory stands for.
Problem UnpackedProblem(const Case& c, const CrossMemory& memory) {
  Problem problem(c, 1);
  for (size_t b = 0; b < static_cast<size_t>(c.kv_batch); ++b) {
    for (size_t h = 0; h < static_cast<size_t>(c.kv_heads); ++h) {
      const Rows rows = RowsOf(memory, b, h);
      const auto b_ = static_cast<int64_t>(b), h_ = static_cast<int64_t>(h);
      for (int64_t key = 0; key < memory.kv_len(b_); ++key) {
        for (int64_t d = 0; d < c.head_dim; ++d) {
          problem.k.Set(b_, key, h_, d, rows.k[static_cast<size_t>(key * c.head_dim + d)]);
        }
        for (int64_t d = 0; d < c.value_dim(); ++d) {
          problem.v.Set(b_, key, h_, d, rows.v[static_cast<size_t>(key * c.value_dim() + d)]);
        }
      }
    }
  }
  return problem;
}

// Of K and of V, of what is converted to a precision.
struct Budget {
  double k, v;
};
Budget BudgetOf(const KvFormat& format) {
  switch (format.precision) {
    case Precision::kF32:
      return {1e-30, 1e-30};
    case Precision::kF16:
      return {3e-4, 3e-4};
    case Precision::kBF16:
      return {2.5e-3, 2.5e-3};
    case Precision::kMixed16:
      return {4e-4, 2.5e-3};
    case Precision::kI8:
      return {1.2e-2, 1e-2};
    case Precision::kI8Fine:
      return {4e-4, 1e-2};
  }
  return {};
}

TEST_CASE("any layout becomes any other", "[kv_file]") {
  Case c = SmallCase(9, 1100);
  c.distribution = Distribution::kGaussian;
  const Problem problem(c, 120);
  const std::vector<int32_t> kv_lens = {1100, 200};
  const char* tier = BestTier();
  for (const KvFormat& from : Formats(tier)) {
    std::vector<CrossMemory> sources = {NewMemory(problem, from, kv_lens)};
    if (HasForeignForm(from.precision)) {
      sources.push_back(MapBytes(InForeignLayout(SavedBytes(sources[0]))));
    }
    const Problem unpacked = UnpackedProblem(c, sources[0]);
    for (size_t i = 0; i < sources.size(); ++i) {
      for (const KvFormat& to : Formats(tier)) {
        INFO(TextOf(from) << " to " << TextOf(to) << (i != 0 ? ", from a foreign layout" : ""));
        CrossMemory converted;
        REQUIRE_THAT(Convert(sources[i], to, &converted, TwoThreads(3)), IsOk());
        CHECK(converted.precision() == to.precision);
        CHECK(converted.rotate_k() == to.rotate_k);
        CHECK(converted.kv_len(0) == 1100);
        CHECK(converted.kv_len(1) == 200);
        CHECK_THAT(Verify(converted), IsOk());
        const bool is_same = from.precision == to.precision && from.rotate_k == to.rotate_k;
        if (is_same) {
          if (i == 0) CHECK(KvAccess::Get(converted) == KvAccess::Get(sources[0]));
          CHECK_THAT(AttendTo(problem, to, converted), Equals(AttendTo(problem, to, sources[0])));
          continue;
        }
        // The bits that its numbers give as tensors.
        CHECK((SavedBytes(converted) == SavedBytes(NewMemory(unpacked, to, kv_lens))));
        for (size_t b = 0; b < 2; ++b) {
          const Rows exact = RowsOf(sources[i], b, 1);
          const Rows rows = RowsOf(converted, b, 1);
          CHECK(RelativeL2(rows.k, Doubles(exact.k)) < BudgetOf(to).k);
          CHECK(RelativeL2(rows.v, Doubles(exact.v)) < BudgetOf(to).v);
        }
        AttendTo(problem, to, converted);
      }
    }
  }
}

TEST_CASE("conversion keeps what a cache has forgotten", "[kv_file][cache]") {
  const Past past = GENERATE(Past::kPlain, Past::kEvicted, Past::kWindow, Past::kReordered);
  const Problem problem(SmallCase(1, 700), 130);
  const Problem queries = QueriesFor(past, 131);
  const char* tier = BestTier();
  for (const KvFormat& from : Formats(tier)) {
    const KvCache cache = CacheWith(past, problem, from);
    CrossMemory memory;
    REQUIRE_THAT(CrossMemory::From(cache, &memory), IsOk());
    const std::vector<double> expected = AttendTo(queries, from, memory).ToDoubles();
    for (const KvFormat& to : Formats(tier)) {
      INFO(TextOf(from) << " to " << TextOf(to) << ", past " << static_cast<int>(past));
      CrossMemory converted;
      REQUIRE_THAT(Convert(memory, to, &converted), IsOk());
      CHECK(converted.kv_len() == memory.kv_len());
      const Tensor out = AttendTo(queries, to, converted);
      // Both ways of rounding together.
      CHECK(ErrorOf(out, expected).relative_l2 < 0.06);
      // And it is saved like anything else.
      const CrossMemory mapped = MapBytes(SavedBytes(converted));
      CHECK_THAT(AttendTo(queries, to, mapped), Equals(out));
    }
  }
}

TEST_CASE("streams that have ended keep their lengths in files and layouts", "[kv_file][cache]") {
  const Past past = GENERATE(Past::kShort, Past::kPlain, Past::kReopened, Past::kEvicted,
                             Past::kWindow, Past::kReordered);
  const Problem problem(SmallCase(1, 700), 135);
  const Problem queries = QueriesFor(past, 136);
  const char* tier = BestTier();
  for (const KvFormat& from : Formats(tier)) {
    INFO(TextOf(from) << ", past " << static_cast<int>(past));
    const KvCache cache = CacheWith(past, problem, from);
    const CrossMemory memory = CutMemory(cache);
    const std::vector<int32_t> lengths = CutLengths(cache);
    for (size_t b = 0; b < lengths.size(); ++b) {
      CHECK(memory.kv_len(static_cast<int64_t>(b)) == lengths[b]);
    }
    const Tensor expected = AttendTo(queries, from, memory);
    const Bytes bytes = SavedBytes(memory);
    const CrossMemory mapped = MapBytes(bytes);
    CheckSameNumbers(mapped, memory);
    CHECK_THAT(AttendTo(queries, from, mapped), Equals(expected));
    CHECK((SavedBytes(mapped) == bytes));
    CrossMemory converted;
    if (HasForeignForm(from.precision)) {
      REQUIRE_THAT(Convert(MapBytes(InForeignLayout(bytes)), from, &converted), IsOk());
      CHECK_THAT(AttendTo(queries, from, converted), Equals(expected));
    }
    for (const KvFormat& to : Formats(tier)) {
      INFO("to " << TextOf(to));
      REQUIRE_THAT(Convert(memory, to, &converted), IsOk());
      for (size_t b = 0; b < lengths.size(); ++b) {
        CHECK(converted.kv_len(static_cast<int64_t>(b)) == lengths[b]);
      }
      const Tensor out = AttendTo(queries, to, converted);
      CHECK(ErrorOf(out, expected.ToDoubles()).relative_l2 < 0.06);
      CHECK_THAT(AttendTo(queries, to, MapBytes(SavedBytes(converted))), Equals(out));
    }
  }
}

// ---- Errors -------------------------------------------------------------------------------------

TEST_CASE("calls without an object, a path or a file are refused", "[kv_file]") {
  const Directory directory;
  const std::string path = directory / "kv";
  CrossMemory memory;
  KvCache cache;
  CHECK_THAT(Save(memory, path.c_str()), IsError(kInvalid, "empty"));
  CHECK_THAT(Save(cache, path.c_str()), IsError(kInvalid, "empty"));
  CHECK_THAT(Verify(memory), IsError(kInvalid, "empty"));
  CHECK_THAT(Convert(memory, {}, &memory), IsError(kInvalid, "empty"));
  const Problem problem(SmallCase(1, 10), 140);
  const CrossMemory made = NewMemory(problem, {Precision::kF32, BestTier()});
  CHECK_THAT(Verify(made), IsOk());
  CHECK_THAT(Save(made, nullptr), IsError(kInvalid, "path"));
  CHECK_THAT(Save(made, ""), IsError(kInvalid, "path"));
  CHECK_THAT(Convert(made, {}, nullptr), IsError(kInvalid, "converted"));
  CHECK_THAT(Convert(made, {Precision::kF32, "no_tier"}, &memory), IsError(kInvalid, "tier"));
  CHECK_THAT(Convert(made, {Precision::kF32, nullptr, true}, &memory),
             IsError(kInvalid, "rotate_k"));
  CHECK_THAT(Convert(made, {static_cast<Precision>(99)}, &memory), IsError(kInvalid, "precision"));
  ParallelFor no_workers;
  no_workers.num_workers = 0;
  CHECK_THAT(Convert(made, {Precision::kF16}, &memory, no_workers),
             IsError(kInvalid, "num_workers"));
  CHECK_THAT(Map(path.c_str(), nullptr), IsError(kInvalid, "memory"));
  CHECK_THAT(Map(nullptr, &memory), IsError(kInvalid, "path"));
  CHECK_THAT(Map(path.c_str(), &memory), IsError(StatusCode::kIoError, "kv"));
  CHECK_THAT(Load(path.c_str(), {}, nullptr), IsError(kInvalid, "cache"));
  CHECK_THAT(Load(path.c_str(), {}, &cache), IsError(StatusCode::kIoError, "kv"));
  CHECK(memory.empty());
  CHECK(cache.empty());
  CHECK(directory.Names().empty());
}

// A memory and a cache with everything, as small as they can be.
std::vector<Bytes> SmallFiles(const KvFormat& format, int64_t head_dim = 4) {
  Case c = SmallCase(1, 300);
  c.head_dim = head_dim;
  c.v_head_dim = 3;
  c.kv_heads = c.heads = 1;
  const Problem problem(c, 150);
  const std::vector<int32_t> kv_lens = {300, 11};
  KvCache cache;
  REQUIRE_THAT(KvCache::Create(CacheDescOf(c, format, true), &cache), IsOk());
  AppendRange(problem, 0, 300, &cache);
  AppendRange(problem, 0, 130, &cache);
  const int32_t positions[] = {1, 2, 300};
  REQUIRE_THAT(cache.Evict(0, positions, 3), IsOk());
  CrossMemory streams;
  REQUIRE_THAT(CrossMemory::From(cache, &streams, kv_lens.data()), IsOk());
  return {SavedBytes(NewMemory(problem, format, kv_lens)), SavedBytes(cache), SavedBytes(streams)};
}

// The bytes of a file in front of a page that faults.
Status OpenBytes(const Bytes& bytes, FileCheck check = FileCheck::kHeader) {
  const GuardedBuffer image(bytes.size(), Placement::kAtEnd, 64);
  std::copy(bytes.begin(), bytes.end(), image.data());
  std::shared_ptr<const MappedFile> file;
  Status status = MappedFile::Wrap(image.data(), bytes.size(), internal::kKvFileKind, check, &file);
  std::shared_ptr<StoredKv> stored;
  return status.ok() ? StoredKv::Open(file, &stored) : status;
}

TEST_CASE("files that are cut off or damaged are refused", "[kv_file]") {
  for (const Bytes& file : SmallFiles({Precision::kI8, BestTier(), true})) {
    REQUIRE_THAT(OpenBytes(file, FileCheck::kSections), IsOk());
    for (size_t bytes = 0; bytes < file.size(); ++bytes) {
      if (bytes > 5000 && bytes + 200 < file.size() && bytes % 97 != 0) continue;
      const Status status = OpenBytes(Bytes(file.data(), file.data() + bytes));
      if (status.code() != kCorrupt) FAIL("cut off at " << bytes << ": " << status.message());
    }
    for (size_t at = 0; at < file.size(); ++at) {
      if (at > 1500 && at % 31 != 0) continue;
      Bytes damaged = file;
      damaged[at] ^= static_cast<unsigned char>(1 << at % 8);
      if (OpenBytes(damaged, FileCheck::kSections).ok()) FAIL("byte " << at);
    }
  }
}

TEST_CASE("messages name the file, and lazy checks leave damage to Verify", "[kv_file]") {
  const Directory directory;
  const std::string path = directory / "some_name";
  const auto names_file = [](const Status& status) {
    return std::string(status.message()).find("some_name") != std::string::npos;
  };
  for (const Bytes& file : SmallFiles({Precision::kI8, BestTier()})) {
    Bytes damaged = file;
    damaged.back() ^= 1;
    WriteAll(path, damaged);
    CrossMemory memory;
    Status status = Map(path.c_str(), &memory, {KvCheck::kFull});
    CHECK(status.code() == kCorrupt);
    CHECK(names_file(status));
    CHECK(memory.empty());
    CHECK_THAT(Map(path.c_str(), &memory), IsOk());
    CHECK_THAT(Verify(memory), IsError(kCorrupt, "checksum"));
    CHECK_THAT(Save(memory, path.c_str()), IsError(kCorrupt, "checksum"));
    KvCache cache;
    CHECK_THAT(Load(path.c_str(), {}, &cache), IsError(kCorrupt, "checksum"));
    std::vector<FilePart> contents = PartsOf(file);
    const KvMeta meta = MetaOf(contents);
    const auto expect = [&](StatusCode code, const char* name, const auto& change) {
      KvMeta changed = meta;
      change(changed);
      SetMeta(changed, &contents);
      WriteAll(path, FileOf(contents));
      CrossMemory none;
      status = Map(path.c_str(), &none);
      CHECK_THAT(status, IsError(code, name));
      CHECK(names_file(status));
      CHECK_THAT(Load(path.c_str(), {}, &cache), IsError(code, name));
    };
    expect(kUnsupported, "version", [](KvMeta& m) { m.version = 2; });
    expect(kUnsupported, "version", [](KvMeta& m) { m.layout_version += 1; });
    expect(kUnsupported, "layout", [](KvMeta& m) { m.layout = static_cast<LayoutId>(11); });
    expect(kUnsupported, "layout", [](KvMeta& m) { m.layout = LayoutId::kNone; });
    expect(kCorrupt, "precision", [](KvMeta& m) { m.precision = 0; });
    expect(kCorrupt, "content", [](KvMeta& m) { m.content = static_cast<internal::KvContent>(4); });
    expect(kCorrupt, "batch", [](KvMeta& m) { m.batch = -1; });
    expect(kCorrupt, "section", [](KvMeta& m) { m.batch = internal::kMaxCount; });
    // Four bytes for each of so many are none, counted in 32 bits.
    expect(kCorrupt, "section", [](KvMeta& m) { m.batch = 1 << 30; });
    expect(kCorrupt, "section", [](KvMeta& m) { m.num_kv_heads = internal::kMaxCount; });
    expect(kCorrupt, "num_kv_heads", [](KvMeta& m) { m.num_kv_heads = 0; });
    expect(kCorrupt, "head_dim", [](KvMeta& m) { m.head_dim = 513; });
    expect(kCorrupt, "v_head_dim", [](KvMeta& m) { m.v_head_dim = INT64_MAX; });
    expect(kCorrupt, "length", [](KvMeta& m) { m.length = INT64_MIN; });
    expect(kCorrupt, "page_tokens", [](KvMeta& m) { m.page_tokens = 100; });
    expect(kCorrupt, "capacity", [](KvMeta& m) { m.capacity = -1; });
    expect(kCorrupt, "reserved", [](KvMeta& m) { m.reserved[1] = 1; });
  }
  // Another kind of file, and none.
  WriteAll(path, {'h', 'e', 'l', 'l', 'o', ' ', 'w', 'o', 'r', 'l', 'd'});
  CrossMemory none;
  CHECK_THAT(Map(path.c_str(), &none), IsError(kInvalid, "Sightline"));
}

// Does all that can be done with a file, which has to be harmless.
class Victim {
 public:
  explicit Victim(const KvFormat& format, int64_t head_dim = 4)
      : format_(format), problem_(CaseOf(head_dim), 160) {}

  // True if it was opened.
  bool Use(const Bytes& bytes) const {
    const GuardedBuffer image(bytes.size(), Placement::kAtEnd, 64);
    std::copy(bytes.begin(), bytes.end(), image.data());
    std::shared_ptr<const MappedFile> file;
    REQUIRE_THAT(MappedFile::Wrap(image.data(), bytes.size(), internal::kKvFileKind,
                                  FileCheck::kHeader, &file),
                 IsOk());
    std::shared_ptr<StoredKv> stored;
    if (!StoredKv::Open(file, &stored).ok()) return false;
    const KvMeta meta = stored->meta();
    const internal::KvSnapshot snapshot = stored->snapshot();
    CrossMemory memory;
    KvAccess::Set(stored, &memory);
    RunOn(&memory, nullptr);
    CrossMemory converted;
    for (const KvFormat& to : {KvFormat{Precision::kF32, format_.tier},
                               KvFormat{Precision::kI8, format_.tier, !format_.rotate_k}}) {
      if (memory.num_kv_heads() <= 16 && memory.batch() <= 16) {
        CHECK(Convert(memory, to, &converted).code() != kCorrupt);
      }
    }
    if (meta.content != internal::KvContent::kCache) return true;
    KvCacheDesc desc = CacheDescOf(problem_.c, format_, true);
    desc.capacity = 1000;
    desc.window_left = meta.window_left;
    desc.num_sinks = meta.num_sinks;
    desc.batch = meta.batch;
    desc.page_tokens = meta.page_tokens;
    desc.v_head_dim = meta.v_head_dim;
    KvCache cache;
    if (!KvCache::Create(desc, &cache).ok()) return true;
    internal::PagedKv& packed = *KvAccess::GetPaged(cache);
    const internal::KvGeometry& geometry = packed.geometry();
    if (geometry.layout != meta.layout || geometry.num_kv_heads != meta.num_kv_heads ||
        geometry.head_dim != meta.head_dim || !packed.Restore(snapshot).ok()) {
      return true;
    }
    RunOn(nullptr, &cache);
    for (const int64_t count : {1, 140}) {
      if (cache.batch() != problem_.c.kv_batch || cache.v_head_dim() != problem_.c.value_dim())
        break;
      if (cache.Append(problem_.k.Slice(0, count), problem_.v.Slice(0, count)).ok()) {
        RunOn(nullptr, &cache);
      }
    }
    KvCache fork;
    CHECK_THAT(cache.Fork(&fork), IsOk());
    if (fork.Truncate(fork.length() / 2).ok()) RunOn(nullptr, &fork);
    return true;
  }

 private:
  static Case CaseOf(int64_t head_dim) {
    Case c = SmallCase(1, 300);
    c.head_dim = head_dim;
    c.v_head_dim = 3;
    c.kv_heads = c.heads = 1;
    c.features.window_left = kWindowLeft;
    return c;
  }
  void RunOn(const CrossMemory* memory, const KvCache* cache) const {
    const Tensor out = problem_.NewOut();
    const StatusCode code = TryRun(problem_, format_, memory, cache, out).code();
    CHECK((code == StatusCode::kOk || code == kInvalid || code == kUnsupported ||
           code == StatusCode::kCapacityExceeded));
  }

  KvFormat format_;
  Problem problem_;
};

TEST_CASE("forged numbers are refused or harmless", "[kv_file]") {
  constexpr uint64_t kValues[] = {0,          1,          2,           127,         128,
                                  129,        256,        65536,       0x7fffff00,  0x7fffffff,
                                  0x80000000, 0xffffffff, 0x100000000, ~uint64_t{0}};
  Rng rng(170);
  const char* tier = BestTier();
  for (const KvFormat& format :
       {KvFormat{Precision::kI8, tier, true}, KvFormat{Precision::kMixed16, tier},
        KvFormat{Precision::kF16, tier}}) {
    const Victim victim(format);
    for (const Bytes& file : SmallFiles(format)) {
      const std::vector<FilePart> contents = PartsOf(file);
      REQUIRE(victim.Use(file));
      size_t opened = 0;
      size_t refused = 0;
      const auto use = [&](const std::vector<FilePart>& forged) {
        ++(victim.Use(FileOf(forged, false)) ? opened : refused);
      };
      for (size_t i = 0; i < contents.size(); ++i) {
        // One number, of four bytes and of eight.
        const size_t size = contents[i].bytes.size();
        if (contents[i].id >= internal::kTailsSection) continue;
        for (size_t at = 0; at + 4 <= size; at += 4) {
          for (const uint64_t value : kValues) {
            for (const size_t bytes : {size_t{4}, size_t{8}}) {
              if (at + bytes > size || (bytes == 8 && at % 8 != 0)) continue;
              if (IsSanitized() && rng.Below(4) != 0) continue;
              std::vector<FilePart> forged = contents;
              PutNumber(value, forged[i].bytes.data() + at, bytes);
              use(forged);
            }
          }
        }
        // Other lengths.
        for (const int change : {-64, -16, -4, -1, 1, 4, 16, 64, 4096}) {
          std::vector<FilePart> forged = contents;
          const auto changed = static_cast<int64_t>(size) + change;
          forged[i].bytes.resize(static_cast<size_t>(std::max<int64_t>(changed, 0)));
          use(forged);
        }
        // Missing, or twice the number.
        std::vector<FilePart> forged = contents;
        forged.erase(forged.begin() + static_cast<int64_t>(i));
        use(forged);
        forged = contents;
        forged[i].id = 99;
        use(forged);
      }
      // Several at once.
      for (int n = 0; n < (IsSanitized() ? 300 : 2000); ++n) {
        std::vector<FilePart> forged = contents;
        const auto below = [&](size_t end) {
          return static_cast<size_t>(rng.Below(static_cast<int64_t>(end)));
        };
        for (size_t i = 0, count = 1 + below(3); i < count; ++i) {
          Bytes& bytes = forged[below(forged.size())].bytes;
          if (bytes.size() < 8) continue;
          const size_t at = below(bytes.size() / 4) * 4;
          const uint64_t value = below(2) == 0 ? kValues[below(std::size(kValues))] : rng.Next();
          PutNumber(value, bytes.data() + at, 4);
        }
        use(forged);
      }
      CHECK(opened > 50);
      CHECK(refused > 300);
    }
  }
}

TEST_CASE("K and V of a file may be anything", "[kv_file]") {
  Rng rng(180);
  for (const char* tier : SupportedTiers()) {
    for (const KvFormat& format : Formats(tier)) {
      constexpr int64_t kHeadDim = 40;  // sums of products may leave 32 bits
      const Victim victim(format, kHeadDim);
      INFO(TextOf(format));
      for (const Bytes& file : SmallFiles(format, kHeadDim)) {
        for (const int kind : {0, 1, 2, 3}) {
          if (!TakesTurn(tier)) continue;
          std::vector<FilePart> forged = PartsOf(file);
          for (FilePart& content : forged) {
            if (content.id < internal::kTailsSection) continue;
            for (size_t i = 0; i + 4 <= content.bytes.size(); i += 4) {
              const uint32_t bits = static_cast<uint32_t>(rng.Next());
              const uint32_t values[] = {bits, 0xffffffff, bits % 2 * 0xff800000u,
                                         0x7f7fffffu | bits << 31};
              PutNumber(values[kind], content.bytes.data() + i, 4);
            }
          }
          CHECK(victim.Use(FileOf(forged, false)));
        }
      }
    }
  }
}

// The file takes no room on the disk, and mapping it reads none of what it says it has.
TEST_CASE("a file of many gigabytes is mapped at once", "[kv_file]") {
  constexpr int64_t kLength = 1 << 25;
  KvMeta meta = {};
  meta.version = internal::kKvFileVersion;
  meta.content = internal::KvContent::kBlock;
  meta.layout_version = internal::kLayoutVersion;
  meta.layout = LayoutId::kF16;
  meta.precision = static_cast<uint32_t>(Precision::kF16);
  meta.batch = 1;
  meta.num_kv_heads = 2;
  meta.head_dim = meta.v_head_dim = 64;
  meta.length = kLength;
  std::vector<FilePart> contents = {{internal::kMetaSection, Bytes(sizeof(meta))},
                                    {internal::kLensSection, Bytes(4)},
                                    {internal::kDataSection, Bytes(4096)}};
  SetMeta(meta, &contents);
  PutNumber(kLength, contents[1].bytes.data(), 4);
  Bytes head = FileOf(contents, false);
  const uint64_t data_bytes =
      2 * uint64_t{internal::OffsetsOf(internal::ShapeOf(LayoutId::kF16, 64, 64, kLength)).bytes};
  const uint64_t file_bytes = head.size() - 4096 + data_bytes;
  PutNumber(data_bytes, head.data() + EntryAt(2) + kEntryBytesAt, 8);
  PutNumber(file_bytes, head.data() + kFileBytesAt, 8);
  SealHead(head.data(), head.size());

  const Directory directory;
  const std::string path = directory / "large";
  WriteAll(path, head);
  if (truncate(path.c_str(), static_cast<off_t>(file_bytes)) != 0) SKIP("no room for a file");
  CrossMemory memory;
  if (file_bytes > SIZE_MAX) {
    CHECK_THAT(Map(path.c_str(), &memory), IsError(kUnsupported, "addressed"));
    return;
  }
  REQUIRE_THAT(Map(path.c_str(), &memory), IsOk());
  CHECK(memory.kv_len() == kLength);
  CHECK(memory.bytes() == data_bytes);
  CHECK(data_bytes > uint64_t{1} << 33);
}

}  // namespace
}  // namespace testing
}  // namespace sightline
