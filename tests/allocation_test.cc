// Run, Append and the calls that report errors allocate nothing, memories in a placement of the
// caller's their handle alone; large blocks ask for large pages.
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>
#include <fstream>
#include <memory>
#include <new>
#include <string>
#include <vector>

#include "dispatch/memory.h"
#include "support/allocations.h"
#include "support/check.h"
#include "support/problem.h"
#include "support/threads.h"
#include "support/tiers.h"

namespace sightline {
namespace testing {
namespace {

#define SKIP_UNLESS_COUNTING() \
  if (!CanCountAllocations()) SKIP("allocations cannot be counted: sanitizer, or not glibc")

// Keeps the compiler from removing what it allocates.
void Use(void* p) { asm volatile("" : : "r"(p) : "memory"); }

TEST_CASE("the counter counts", "[allocation]") {
  SKIP_UNLESS_COUNTING();
  {
    AllocationCounter counter;
    CHECK(counter.Stop() == 0);
  }
  AllocationCounter counter;
  std::unique_ptr<int> by_new(new int(1));
  Use(by_new.get());
  struct alignas(256) Wide {
    char bytes[256];
  };
  std::unique_ptr<Wide> by_aligned_new(new Wide);
  Use(by_aligned_new.get());
  void* by_malloc = malloc(10);
  Use(by_malloc);
  void* by_calloc = calloc(3, 10);
  Use(by_calloc);
  by_malloc = realloc(by_malloc, 1000);
  Use(by_malloc);
  void* by_posix_memalign = nullptr;
  const int error = posix_memalign(&by_posix_memalign, 64, 640);
  Use(by_posix_memalign);
  const int64_t count = counter.Stop();
  CHECK(error == 0);
  CHECK(count == 6);
  CHECK(counter.bytes() == sizeof(int) + sizeof(Wide) + 10 + 30 + 1000 + 640);
  free(by_malloc);
  free(by_calloc);
  free(by_posix_memalign);
}

#if defined(__linux__)
// What /proc/self/smaps says of the mapping with an address; "" if no mapping has it.
std::string FlagsOfMapping(const void* address) {
  auto a = reinterpret_cast<uintptr_t>(address);
  if (sizeof(a) == 8) a &= UINT64_C(0x00ffffffffffffff);  // Android's allocator tags pointers
  std::ifstream maps("/proc/self/smaps");
  bool is_here = false;
  for (std::string line; std::getline(maps, line);) {
    unsigned long begin = 0;
    unsigned long end = 0;
    if (sscanf(line.c_str(), "%lx-%lx ", &begin, &end) == 2) {
      is_here = begin <= a && a < end;
    } else if (is_here && line.rfind("VmFlags:", 0) == 0) {
      return line;
    }
  }
  return "";
}

TEST_CASE("large blocks ask for large pages", "[allocation]") {
  if (IsEmulated()) SKIP("QEMU passes no such advice on");
  if (!std::ifstream("/sys/kernel/mm/transparent_hugepage/enabled")) SKIP("the kernel has none");
  constexpr size_t kBytes = (size_t{5} << 20) + 100;
  unsigned char* block = internal::AllocateAligned(kBytes);
  REQUIRE(block != nullptr);
  if (FlagsOfMapping(block).empty()) SKIP("the kernel does not say what it was asked for");
  CHECK(reinterpret_cast<uintptr_t>(block) % internal::kPackedAlignBytes == 0);
  for (const size_t i : {size_t{0}, kBytes / 2, kBytes - 1}) {
    CHECK_THAT(FlagsOfMapping(block + i), Catch::Matchers::ContainsSubstring(" hg"));
  }
  memset(block, 1, kBytes);
  internal::FreeAligned(block);
}
#endif

TEST_CASE("Run allocates nothing", "[allocation]") {
  SKIP_UNLESS_COUNTING();
  const Precision precision = GENERATE(from_range(kPrecisions));
  const Source source = GENERATE(Source::kTensors, Source::kMemory, Source::kCache);
  const bool owns_workspace = GENERATE(true, false);
  const size_t num_workers = GENERATE(size_t{1}, size_t{3});
  Case c;
  c.q_len = 70;
  c.kv_len = 300;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = 40;
  c.causal = true;
  c.out_dtype = DType::kF16;
  const Problem problem(c, 1);
  for (const char* tier : SupportedTiers()) {
    const Setup setup = {tier, precision, source, BackwardsOnThisThread(num_workers)};
    AttentionDesc desc = DescOf(c, setup);
    desc.owns_workspace = owns_workspace;
    Plan plan;
    REQUIRE_THAT(Plan::Create(desc, &plan), IsOk());
    Tensor out = problem.NewOut();
    AttentionArgs args = TensorArgs(problem, out);
    CrossMemory memory;
    KvCache cache;
    if (source != Source::kTensors) args.k = args.v = ConstTensorView();
    if (source == Source::kMemory) {
      memory = MemoryOf(problem, setup);
      args.memory = &memory;
    } else if (source == Source::kCache) {
      cache = CacheOf(problem, setup);
      args.cache = &cache;
    }
    GuardedBuffer scratch(plan.workspace_bytes(), Placement::kAtEnd, Workspace::kAlignmentBytes);
    Workspace workspace;
    if (!owns_workspace) workspace = {scratch.data(), scratch.size()};

    // The very first Run as well: nothing is set up lazily.
    AllocationCounter counter;
    const Status status = Run(plan, args, workspace, setup.parallel);
    const Status again = Run(plan, args, workspace, setup.parallel);
    const int64_t count = counter.Stop();
    INFO(Name(precision) << " on " << tier << ", source " << static_cast<int>(source)
                         << ", own workspace " << owns_workspace << ", " << num_workers
                         << " workers");
    CHECK_THAT(status, IsOk());
    CHECK_THAT(again, IsOk());
    CHECK(count == 0);
    CHECK_FALSE(out.IsWiped());
    if (status.ok()) RecordTierRun(plan.tier());
  }
}

TEST_CASE("Append and Clear allocate nothing", "[allocation]") {
  SKIP_UNLESS_COUNTING();
  const Precision precision = GENERATE(from_range(kPrecisions));
  const size_t num_workers = GENERATE(size_t{1}, size_t{3});
  Case c;
  c.kv_len = 300;
  c.heads = c.kv_heads = 2;
  c.kv_batch = 2;
  c.head_dim = 40;
  const Problem problem(c, 2);
  const ParallelFor parallel = BackwardsOnThisThread(num_workers);
  for (const char* tier : SupportedTiers()) {
    KvCache cache = CacheOf(problem, {tier, precision});
    AllocationCounter counter;
    cache.Clear();
    Status status = cache.Append(problem.k.Slice(0, 1), problem.v.Slice(0, 1), parallel);
    if (status.ok()) {
      status = cache.Append(problem.k.Slice(1, 200), problem.v.Slice(1, 200), parallel);
    }
    const int64_t count = counter.Stop();
    INFO(Name(precision) << " on " << tier << ", " << num_workers << " workers");
    CHECK_THAT(status, IsOk());
    CHECK(cache.length() == 200);
    CHECK(count == 0);
  }
}

// "The handle's few hundred bytes" of CrossMemory::Create: an object, and what counts references.
constexpr int64_t kHandleAllocations = 2;
constexpr int64_t kHandleBytes = 400;

TEST_CASE("a memory takes its block and a handle, one that is placed the handle alone",
          "[allocation]") {
  SKIP_UNLESS_COUNTING();
  const Precision precision = GENERATE(from_range(kPrecisions));
  const int64_t kv_len = GENERATE(0, 1, 300, 700);
  Case c;
  c.kv_len = kv_len;
  c.heads = c.kv_heads = 2;
  c.kv_batch = 3;
  c.head_dim = 40;
  const Problem problem(c, 5);
  const std::vector<int32_t> kv_lens = {static_cast<int32_t>(kv_len / 2), 0,
                                        static_cast<int32_t>(kv_len)};
  for (const char* tier : SupportedTiers()) {
    for (const size_t num_workers : {size_t{1}, size_t{3}}) {
      const ParallelFor parallel = BackwardsOnThisThread(num_workers);
      INFO(kv_len << " keys, " << Name(precision) << " on " << tier << ", " << num_workers
                  << " workers");
      CrossMemoryDesc desc;
      desc.batch = c.kv_batch;
      desc.kv_len = kv_len;
      desc.num_kv_heads = c.kv_heads;
      desc.head_dim = c.head_dim;
      desc.format = {precision, tier};
      size_t bytes = 0;
      REQUIRE_THAT(CrossMemory::Bytes(desc, &bytes), IsOk());
      GuardedBuffer block(2 * bytes, Placement::kAtEnd, KvPlacement::kAlignmentBytes);
      CrossMemoryOptions options;
      if (num_workers == 3) options.kv_lens = kv_lens.data();
      const auto create = [&](CrossMemory* memory) {
        return CrossMemory::Create(problem.k.view(), problem.v.view(), desc.format, memory,
                                   parallel, options);
      };
      CrossMemory own;
      AllocationCounter of_own;
      Status status = create(&own);
      const int64_t count_of_own = of_own.Stop();
      REQUIRE_THAT(status, IsOk());
      CHECK(count_of_own <= 1 + kHandleAllocations);

      CrossMemory placed;
      options.placement = {block.data(), bytes};
      AllocationCounter of_placed;
      status = create(&placed);
      const int64_t count_of_placed = of_placed.Stop();
      REQUIRE_THAT(status, IsOk());
      CHECK(count_of_placed <= kHandleAllocations);
      CHECK(of_placed.bytes() <= kHandleBytes);
      CHECK(count_of_own == count_of_placed + 1);
      placed = CrossMemory();

      // The set has all blocks, wherever they are.
      const bool is_placed = num_workers == 1;
      KvPlacement placement;
      if (is_placed) placement = {block.data(), 2 * bytes};
      CrossMemorySet set;
      REQUIRE_THAT(CrossMemorySet::Create(desc, 2, &set, placement), IsOk());
      AllocationCounter of_layer;
      status = set.Fill(1, problem.k.view(), problem.v.view(), parallel, options.kv_lens);
      const int64_t count_of_layer = of_layer.Stop();
      REQUIRE_THAT(status, IsOk());
      CHECK(count_of_layer <= kHandleAllocations);
      CHECK(of_layer.bytes() <= kHandleBytes);
    }
    RecordTierRun(tier);
  }
}

// Over parts of other precisions as well, and with all outputs.
TEST_CASE("Run over segments and pages allocates nothing", "[allocation]") {
  SKIP_UNLESS_COUNTING();
  const int64_t q_len = GENERATE(1, 70);
  const size_t num_workers = GENERATE(size_t{1}, size_t{3});
  Case c;
  c.q_len = q_len;
  c.kv_len = 300;
  c.heads = 4;
  c.kv_heads = 2;
  c.head_dim = 40;
  c.features.lse = true;
  const Problem problem(c, 3);
  for (const char* tier : SupportedTiers()) {
    for (const Precision precision : kPrecisions) {
      const Setup setup = {tier, precision, Source::kCache, BackwardsOnThisThread(num_workers)};
      AttentionDesc desc = DescOf(c, setup);
      desc.any_precision = true;
      Plan plan;
      REQUIRE_THAT(Plan::Create(desc, &plan), IsOk());
      const CrossMemory memory = MemoryOf(problem, {tier, Precision::kF16});
      KvCache cache = CacheOf(problem, setup);
      const std::vector<int32_t> evicted = {3, 130, 299};
      REQUIRE_THAT(cache.Evict(0, evicted.data(), 3), IsOk());
      KvSegment segments[3];
      segments[0].cache = segments[2].cache = &cache;
      segments[1].memory = &memory;
      const Tensor out = problem.NewOut();
      const Tensor lse = problem.NewLse();
      const Tensor weights(DType::kF32, {1, q_len, 4, 900});
      const Tensor mass(DType::kF32, {1, 1, 2, 900});
      AttentionArgs args;
      args.q = problem.q.view();
      args.out = out.view();
      args.lse = lse.view();
      args.weights.out = weights.view();
      args.mass = mass.view();
      args.segments = segments;
      args.num_segments = 3;
      GuardedBuffer scratch(plan.workspace_bytes(), Placement::kAtEnd, Workspace::kAlignmentBytes);
      AllocationCounter counter;
      const Status status = Run(plan, args, {scratch.data(), scratch.size()}, setup.parallel);
      const int64_t count = counter.Stop();
      INFO(Name(precision) << " on " << tier << ", " << num_workers << " workers");
      CHECK_THAT(status, IsOk());
      CHECK(count == 0);
      if (status.ok()) RecordTierRun(plan.tier());
    }
  }
}

TEST_CASE("Append allocates when a page begins", "[allocation]") {
  SKIP_UNLESS_COUNTING();
  const Precision precision = GENERATE(from_range(kPrecisions));
  const bool is_pooled = GENERATE(false, true);
  Case c;
  c.kv_len = 300;
  c.heads = c.kv_heads = 2;
  c.head_dim = 40;
  const Problem problem(c, 4);
  for (const char* tier : SupportedTiers()) {
    KvPoolDesc pool_desc;
    pool_desc.num_kv_heads = 2;
    pool_desc.head_dim = 40;
    pool_desc.format = {precision, tier};
    pool_desc.page_tokens = 128;
    pool_desc.max_pages = 3;
    pool_desc.preallocate = true;
    KvPool pool;
    REQUIRE_THAT(KvPool::Create(pool_desc, &pool), IsOk());
    KvCacheDesc desc;
    desc.capacity = 300;
    if (is_pooled) {
      desc.pool = &pool;
    } else {
      desc.num_kv_heads = 2;
      desc.head_dim = 40;
      desc.format = pool_desc.format;
      desc.page_tokens = 128;
    }
    KvCache cache;
    REQUIRE_THAT(KvCache::Create(desc, &cache), IsOk());
    for (int64_t i = 0; i < 300; ++i) {
      const TensorView k = problem.k.Slice(i, i + 1);
      const TensorView v = problem.v.Slice(i, i + 1);
      AllocationCounter counter;
      const Status status = cache.Append(k, v);
      const int64_t count = counter.Stop();
      INFO("token " << i << ", " << Name(precision) << " on " << tier);
      REQUIRE_THAT(status, IsOk());
      if (i % 128 != 0) CHECK(count == 0);
      if (i % 128 == 0 && !is_pooled) CHECK(count > 0);
    }
  }
}

TEST_CASE("errors allocate nothing", "[allocation]") {
  SKIP_UNLESS_COUNTING();
  Plan plan;
  AttentionDesc desc;
  AttentionArgs args;
  KvCache cache;
  AllocationCounter counter;
  const Status created = Plan::Create(desc, &plan);
  const Status run = Run(plan, args);
  const Status appended = cache.Append(args.k, args.v);
  const Status tier = SetActiveTier("no such tier");
  const int64_t count = counter.Stop();
  CHECK_FALSE(created.ok());
  CHECK_FALSE(run.ok());
  CHECK_FALSE(appended.ok());
  CHECK_FALSE(tier.ok());
  CHECK(count == 0);
}

}  // namespace
}  // namespace testing
}  // namespace sightline
