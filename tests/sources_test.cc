// K and V from tensors, a CrossMemory or a KvCache: the same kernels on the same bytes, so the same
// bits.
#include <math.h>
#include <string.h>
#if defined(__GLIBC__)
#include <malloc.h>
#endif

#include <algorithm>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>
#include <numeric>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

#include "kv/layout.h"
#include "kv/packed_kv.h"
#include "support/allocations.h"
#include "support/check.h"
#include "support/packed.h"
#include "support/problem.h"
#include "support/threads.h"
#include "support/tiers.h"

namespace sightline {
namespace testing {
namespace {

// i8_tensors: K and V come as int8 with scales of their own, whatever the precision stores.
Case CrossCase(int64_t q_len, int64_t kv_len, bool causal, bool i8_tensors = false) {
  Case c;
  c.q_len = q_len;
  c.kv_len = kv_len;
  c.heads = 4;
  c.kv_heads = 2;
  c.kv_batch = 2;
  c.beams = 3;
  c.head_dim = 20;
  c.v_head_dim = 33;
  c.causal = causal;
  c.k_dtype = i8_tensors ? DType::kI8 : DType::kF16;
  c.v_dtype = i8_tensors ? DType::kI8 : DType::kBF16;
  c.k_scales = kPerSequence + kPerToken + kPerHead;
  c.v_scales = kPerToken + kPerChannel;
  c.distribution = Distribution::kKBias;
  return c;
}

KvCache NewCache(const Case& c, int64_t capacity, const KvFormat& format) {
  KvCacheDesc desc;
  desc.batch = c.kv_batch;
  desc.num_kv_heads = c.kv_heads;
  desc.head_dim = c.head_dim;
  desc.v_head_dim = c.v_head_dim;
  desc.capacity = capacity;
  desc.format = format;
  KvCache cache;
  REQUIRE_THAT(KvCache::Create(desc, &cache), IsOk());
  return cache;
}

void AppendRange(const Problem& problem, int64_t begin, int64_t end, KvCache* cache,
                 const ParallelFor& parallel = {}) {
  REQUIRE_THAT(cache->Append(problem.k.Slice(begin, end), problem.v.Slice(begin, end), parallel),
               IsOk());
  REQUIRE(cache->length() == end);
}

TEST_CASE("a memory gives the bits of its tensors", "[memory]") {
  const bool i8_tensors = GENERATE(false, true);
  uint64_t seed = 100;
  for (const int64_t kv_len : {0, 1, 63, 64, 65, 128, 130, 1100}) {
    for (const int64_t q_len : {1, 33}) {
      for (const bool causal : {false, true}) {
        const Problem problem(CrossCase(q_len, kv_len, causal, i8_tensors), ++seed);
        for (const Precision precision : kPrecisions) {
          for (const char* tier : TiersOf(precision)) {
            if (!IsAffordable(problem.c, tier)) continue;
            INFO(problem.c.ToString() << ", " << Name(precision) << " on " << tier);
            const Tensor direct = Attend(problem, {tier, precision, Source::kTensors});
            CHECK_THAT(Attend(problem, {tier, precision, Source::kMemory}), Equals(direct));
          }
        }
      }
    }
  }
}

#if defined(__GLIBC__)
// Memory from the heap begins with one byte, or another.
class FilledHeap {
 public:
  explicit FilledHeap(int fill) {
    mallopt(M_MMAP_THRESHOLD, 1 << 28);  // pages of their own would be 0
    mallopt(M_PERTURB, fill);
  }
  ~FilledHeap() {
    mallopt(M_PERTURB, 0);
    mallopt(M_MMAP_THRESHOLD, 128 * 1024);
  }
  FilledHeap(const FilledHeap&) = delete;
  FilledHeap& operator=(const FilledHeap&) = delete;
};

template <class Make>
std::vector<unsigned char> BytesOf(int fill, const Make& make) {
  const FilledHeap heap(fill);
  const auto kv = make();
  return PackedBytes(*KvAccess::Get(kv));
}

TEST_CASE("equal contents are equal bytes", "[memory][cache]") {
  if (!CanCountAllocations()) SKIP("the heap cannot be filled: sanitizer, or not glibc");
  uint64_t seed = 700;
  for (const int64_t kv_len : {1, 3, 63, 64, 65, 127, 129, 1023, 1024, 1025}) {
    for (const int64_t head_dim : {1, 5, 40, 65}) {
      Case c;
      c.kv_len = kv_len;
      c.heads = c.kv_heads = 2;
      c.head_dim = head_dim;
      c.v_head_dim = 70 - head_dim;
      const Problem problem(c, ++seed);
      for (const char* tier : SupportedTiers()) {
        if (!IsAffordable(c, tier)) continue;
        for (const Precision precision : kPrecisions) {
          for (const bool rotate_k : {false, true}) {
            if (rotate_k && precision != Precision::kI8) continue;
            Setup setup = {tier, precision};
            setup.rotate_k = rotate_k;
            INFO(c.ToString() << ", " << Name(precision) << " on " << tier);
            const auto memory = [&] { return MemoryOf(problem, setup); };
            CHECK(BytesOf(0x5a, memory) == BytesOf(0xa7, memory));
            const auto cache = [&] { return CacheOf(problem, setup); };
            CHECK(BytesOf(0x5a, cache) == BytesOf(0xa7, cache));
          }
        }
      }
    }
  }
}
#endif

// Rows become the same bytes in whole vectors and one by one, on every tier.
TEST_CASE("float memories and caches hold the same bytes on every tier", "[memory][cache]") {
  uint64_t seed = 800;
  for (const int64_t kv_len : {1, 15, 16, 17, 63, 64, 65, 130, 1030}) {
    for (const int64_t head_dim : {1, 7, 16, 33, 80}) {
      Case c;
      c.kv_len = kv_len;
      c.heads = c.kv_heads = 2;
      c.head_dim = head_dim;
      c.v_head_dim = 97 - head_dim;
      constexpr DType kDTypes[] = {DType::kF32, DType::kF16, DType::kBF16, DType::kI8};
      constexpr Layout kLayouts[] = {Layout::kDense, Layout::kDimStrided, Layout::kPadded};
      c.k_dtype = kDTypes[++seed % 4];
      c.v_dtype = kDTypes[seed / 4 % 4];
      c.k_layout = kLayouts[seed % 3];
      c.v_layout = kLayouts[seed / 3 % 3];
      Problem problem(c, seed);
      // What is hard to round or to hold: ties, subnormal numbers of each type, the largest ones.
      // (Which NaN a NaN becomes is not promised.)
      constexpr float kSpecial[] = {HUGE_VALF,   -HUGE_VALF,  -0.0f,   1e-40f,
                                    3e-8f,       65520.0f,    3.4e38f, 6e-39f,
                                    1.00390625f, 1.01171875f, -2e-6f};
      for (int64_t i = 0; i < 40; ++i) {
        const float x = AsTierSees(BestTier(), kSpecial[i % 11]);
        problem.k.Set(0, i * 7 % kv_len, i % 2, i * 5 % head_dim, x);
        problem.v.Set(0, i * 11 % kv_len, i % 2, i * 3 % c.v_head_dim, x);
      }
      for (const Precision precision :
           {Precision::kF32, Precision::kF16, Precision::kBF16, Precision::kMixed16}) {
        const CrossMemory expected = MemoryOf(problem, {"scalar", precision});
        KvCache expected_cache = NewCache(c, kv_len, {precision, "scalar"});
        AppendRange(problem, 0, kv_len, &expected_cache);
        for (const char* tier : SupportedTiers()) {
          INFO(problem.c.ToString() << ", " << Name(precision) << " on " << tier);
          const CrossMemory memory = MemoryOf(problem, {tier, precision});
          CHECK(PackedBytes(*KvAccess::Get(memory)) == PackedBytes(*KvAccess::Get(expected)));
          if (precision == Precision::kMixed16) continue;  // a cache has centers of its own
          // Appends of 1, 2, 3 ... tokens begin at any place in a vector of keys.
          KvCache cache = NewCache(c, kv_len, {precision, tier});
          for (int64_t begin = 0, step = 1; begin < kv_len; ++step) {
            const int64_t end = std::min(begin + step, kv_len);
            AppendRange(problem, begin, end, &cache);
            begin = end;
          }
          CHECK(PackedBytes(*KvAccess::Get(cache)) == PackedBytes(*KvAccess::Get(expected_cache)));
        }
      }
    }
  }
}

TEST_CASE("a cache of floats gives the bits of its tensors", "[cache]") {
  const bool i8_tensors = GENERATE(false, true);
  uint64_t seed = 200;
  for (const int64_t kv_len : {1, 63, 64, 65, 128, 130, 1100}) {
    for (const int64_t q_len : {1, 33}) {
      const Problem problem(CrossCase(q_len, kv_len, true, i8_tensors), ++seed);
      for (const Precision precision : {Precision::kF32, Precision::kF16, Precision::kBF16}) {
        for (const char* tier : SupportedTiers()) {
          if (!IsAffordable(problem.c, tier)) continue;
          INFO(problem.c.ToString() << ", " << Name(precision) << " on " << tier);
          const Tensor direct = Attend(problem, {tier, precision, Source::kTensors});
          CHECK_THAT(Attend(problem, {tier, precision, Source::kCache}), Equals(direct));
        }
      }
    }
  }
}

// The centers of a cache come from its first 128 tokens: its own bits, held to the simulation.
TEST_CASE("a quantised cache has the centers of its first tokens", "[cache]") {
  const bool i8_tensors = GENERATE(false, true);
  uint64_t seed = 300;
  for (const int64_t kv_len : {1, 2, 64, 127, 128, 129, 300, 1100}) {
    const Problem problem(CrossCase(7, kv_len, true, i8_tensors), ++seed);
    Expectations expected(problem);
    for (const Precision precision : {Precision::kI8, Precision::kI8Fine, Precision::kMixed16}) {
      for (const char* tier : SupportedTiers()) {
        if (!IsAffordable(problem.c, tier)) continue;
        INFO(problem.c.ToString() << ", " << Name(precision) << " on " << tier);
        const Setup setup = {tier, precision, Source::kCache};
        CHECK_THAT(Attend(problem, setup), IsClose(expected(setup)));
      }
    }
  }
}

TEST_CASE("how tokens are grouped into appends changes no bit", "[cache]") {
  const Precision precision = GENERATE(from_range(kPrecisions));
  const bool i8_tensors = GENERATE(false, true);
  // Ends of appends; each list is compared with appending everything at once whenever both are
  // there.
  constexpr int64_t kLength = 300;
  std::vector<int64_t> one_by_one(kLength);
  std::iota(one_by_one.begin(), one_by_one.end(), 1);
  const std::vector<std::vector<int64_t>> groupings = {
      one_by_one,
      {7, 71, 72, 129, 200, 300},
      {127, 128, 129, 255, 256, 300},
      {1, 128, 300},
      {0, 1, 1, 63, 63, 64, 64, 127, 127, 128, 128, 191, 191, 300}};  // also of nothing

  const Case whole = CrossCase(2, kLength, true, i8_tensors);
  const Problem problem(whole, 400);
  for (const char* tier : TiersOf(precision)) {
    const Setup setup = {tier, precision};
    for (const std::vector<int64_t>& ends : groupings) {
      KvCache grouped = NewCache(whole, kLength + 5, {precision, tier});
      int64_t begin = 0;
      for (const int64_t end : ends) {
        AppendRange(problem, begin, end, &grouped);
        begin = end;
        // One by one, only where something may go wrong.
        const bool compare = ends.size() < 10 || end % 64 <= 1 || end % 64 == 63;
        if (!compare) continue;
        KvCache at_once = NewCache(whole, kLength, {precision, tier});
        AppendRange(problem, 0, end, &at_once);
        INFO(Name(precision) << " on " << tier << ", " << end << " tokens, " << ends.size()
                             << " appends");
        CHECK_THAT(AttendCache(problem, setup, grouped),
                   Equals(AttendCache(problem, setup, at_once)));
      }
    }
  }
}

TEST_CASE("decoding step by step is causal attention", "[cache]") {
  const Precision precision = GENERATE(from_range(kPrecisions));
  constexpr int64_t kLength = 140;
  Case c;
  c.q_len = c.kv_len = kLength;
  c.heads = 2;
  c.kv_heads = 1;
  c.head_dim = 16;
  c.causal = true;
  const Problem problem(c, 500);
  Case step_case = c;
  step_case.q_len = 1;
  for (const char* tier : TiersOf(precision)) {
    KvCache cache = NewCache(c, kLength, {precision, tier});
    for (int64_t step = 0; step < kLength; ++step) {
      AppendRange(problem, step, step + 1, &cache);
      if (step % 9 != 0 && step < 125) continue;
      Problem one(step_case, 1);
      for (int64_t h = 0; h < c.heads; ++h) {
        for (int64_t d = 0; d < c.head_dim; ++d) {
          one.q.Set(0, 0, h, d, problem.q.Get(0, step, h, d));
        }
      }
      // Its centers are those of the tokens so far.
      Case so_far = step_case;
      so_far.kv_len = step + 1;
      Problem prefix(so_far, 1);
      for (int64_t key = 0; key <= step; ++key) {
        for (int64_t d = 0; d < c.head_dim; ++d) {
          prefix.k.Set(0, key, 0, d, problem.k.Get(0, key, 0, d));
          prefix.v.Set(0, key, 0, d, problem.v.Get(0, key, 0, d));
        }
      }
      for (int64_t h = 0; h < c.heads; ++h) {
        for (int64_t d = 0; d < c.head_dim; ++d) prefix.q.Set(0, 0, h, d, one.q.Get(0, 0, h, d));
      }
      const Expected expected = Expect(prefix, {tier, precision, Source::kCache});
      INFO(Name(precision) << " on " << tier << ", step " << step);
      CHECK_THAT(AttendCache(one, {tier, precision}, cache), IsClose(expected));
    }
  }
}

// What was stored before is still in memory behind the new tokens: NaN, so that it shows.
TEST_CASE("a cleared cache starts anew in the same pages", "[cache]") {
  const Precision precision = GENERATE(from_range(kPrecisions));
  const int64_t new_length = GENERATE(1, 64, 70, 130, 140);
  Problem first(CrossCase(3, 200, true), 600);
  for (int64_t key = 0; key < 200; ++key) {
    for (int64_t d = 0; d < first.c.value_dim(); ++d) first.v.Set(1, key, 1, d, NAN);
    for (int64_t d = 0; d < first.c.head_dim; ++d) first.k.Set(0, key, 1, d, NAN);
  }
  const Problem second(CrossCase(3, new_length, true), 601);
  for (const char* tier : TiersOf(precision)) {
    KvCache cache = NewCache(first.c, 200, {precision, tier});
    AppendRange(first, 0, 200, &cache);
    cache.Clear();
    CHECK(cache.length() == 0);
    CHECK(cache.capacity() == 200);
    AppendRange(second, 0, new_length / 2, &cache);
    AppendRange(second, new_length / 2, new_length, &cache);
    INFO(Name(precision) << " on " << tier << ", " << new_length << " tokens");
    CHECK_THAT(AttendCache(second, {tier, precision}, cache),
               Equals(Attend(second, {tier, precision, Source::kCache})));
  }
}

TEST_CASE("copies of a memory share its storage and outlive it", "[memory]") {
  const Problem problem(CrossCase(5, 100, false), 700);
  const Setup setup = {BestTier(), Precision::kI8, Source::kMemory};
  const Tensor expected = Attend(problem, setup);

  CrossMemory copy;
  CHECK(copy.empty());
  CHECK(copy.bytes() == 0);
  {
    Problem source(problem.c, 700);  // the tensors do not outlive the memory either
    const CrossMemory original = MemoryOf(source, setup);
    copy = original;
    CHECK(copy.bytes() == original.bytes());
  }
  CHECK_FALSE(copy.empty());
  CHECK(copy.batch() == problem.c.kv_batch);
  CHECK(copy.kv_len() == problem.c.kv_len);
  CHECK(copy.num_kv_heads() == problem.c.kv_heads);
  CHECK(copy.head_dim() == problem.c.head_dim);
  CHECK(copy.v_head_dim() == problem.c.v_head_dim);
  CHECK(copy.precision() == Precision::kI8);

  Plan plan;
  REQUIRE_THAT(Plan::Create(DescOf(problem.c, setup), &plan), IsOk());
  GuardedBuffer scratch(plan.workspace_bytes(), Placement::kAtEnd, Workspace::kAlignmentBytes);
  Tensor out = problem.NewOut();
  AttentionArgs args;
  args.q = problem.q.view();
  args.out = out.view();
  args.memory = &copy;
  REQUIRE_THAT(Run(plan, args, {scratch.data(), scratch.size()}), IsOk());
  CHECK_THAT(out, Equals(expected));
}

TEST_CASE("one plan serves every shape up to its maxima", "[plan]") {
  const Precision precision = GENERATE(from_range(kPrecisions));
  Case largest = CrossCase(40, 200, true);
  for (const char* tier : TiersOf(precision)) {
    const Setup setup = {tier, precision};
    AttentionDesc desc = DescOf(largest, setup);
    desc.owns_workspace = true;
    Plan plan;
    REQUIRE_THAT(Plan::Create(desc, &plan), IsOk());
    uint64_t seed = 800;
    for (const int64_t q_len : {40, 1, 7}) {
      for (const int64_t kv_len : {200, 3, 64}) {
        Case c = largest;
        c.q_len = q_len;
        c.kv_len = kv_len;
        c.kv_batch = q_len == 7 ? 1 : 2;
        const Problem problem(c, ++seed);
        Tensor out = problem.NewOut();
        REQUIRE_THAT(Run(plan, TensorArgs(problem, out)), IsOk());
        INFO(c.ToString() << ", " << Name(precision) << " on " << tier);
        CHECK_THAT(out, Equals(Attend(problem, setup)));
      }
    }
  }
}

// Every plan does, also beside a memory or cache.
TEST_CASE("a plan that owns no workspace does not run without one", "[plan]") {
  const Source source = GENERATE(Source::kMemory, Source::kCache);
  const Problem problem(CrossCase(5, 70, true), 850);
  for (const Precision precision : kPrecisions) {
    for (const char* tier : SupportedTiers()) {
      const Setup setup = {tier, precision, source};
      Plan plan;
      REQUIRE_THAT(Plan::Create(DescOf(problem.c, setup), &plan), IsOk());
      const CrossMemory memory = MemoryOf(problem, setup);
      const KvCache cache = CacheOf(problem, setup);
      const Tensor out = problem.NewOut();
      AttentionArgs args;
      args.q = problem.q.view();
      args.out = out.view();
      if (source == Source::kMemory) args.memory = &memory;
      if (source == Source::kCache) args.cache = &cache;
      INFO(Name(precision) << " on " << tier << ", source " << static_cast<int>(source));
      CHECK(plan.workspace_bytes() > 0);
      CHECK_THAT(Run(plan, args, Workspace{}), IsError(StatusCode::kInvalidArgument, "workspace"));
      CHECK(out.IsWiped());
    }
  }
}

static_assert(!std::is_copy_constructible_v<KvCache> && !std::is_copy_assignable_v<KvCache>);
static_assert(std::is_nothrow_move_constructible_v<KvCache> &&
              std::is_nothrow_move_assignable_v<KvCache>);

TEST_CASE("a moved cache takes its tokens along", "[cache]") {
  const Problem problem(CrossCase(2, 70, true), 870);
  const Setup setup = {BestTier(), Precision::kI8, Source::kCache};
  KvCache from = CacheOf(problem, setup);
  const size_t bytes = from.bytes();
  KvCache to;
  to = std::move(from);
  CHECK(from.empty());  // NOLINT(bugprone-use-after-move): which is what is promised
  CHECK(from.length() == 0);
  CHECK(to.length() == 70);
  CHECK(to.bytes() == bytes);
  CHECK_THAT(AttendCache(problem, setup, to), Equals(Attend(problem, setup)));
}

// Of a cache of so many tokens.
size_t CacheBytes(int64_t length, const Case& given, const char* tier, Precision precision,
                  int64_t page_tokens = 0) {
  Case c = given;
  c.kv_len = length;
  KvCacheDesc desc;
  desc.batch = c.kv_batch;
  desc.num_kv_heads = c.kv_heads;
  desc.head_dim = c.head_dim;
  desc.v_head_dim = c.v_head_dim;
  desc.capacity = length;
  desc.format = {precision, tier};
  desc.page_tokens = page_tokens;
  KvCache cache;
  REQUIRE_THAT(KvCache::Create(desc, &cache), IsOk());
  CHECK(cache.bytes() == 0);
  AppendRange(Problem(c, 880), 0, length, &cache);
  return cache.bytes();
}

// Pages as they are needed and, where K is quantised, the open tile: up to 128 tokens in f32.
TEST_CASE("a cache takes what its pages take, and the open tile", "[cache]") {
  Case c = CrossCase(1, 0, false);
  constexpr size_t kHeads = 2;
  REQUIRE(c.kv_heads == kHeads);
  const size_t batch = static_cast<size_t>(c.kv_batch);
  for (const int64_t length : {1, 127, 128, 129, 256, 640}) {
    for (const char* tier : SupportedTiers()) {
      for (const Precision precision : kPrecisions) {
        INFO(length << " tokens in " << Name(precision) << " on " << tier);
        KvPoolDesc desc;
        desc.num_kv_heads = c.kv_heads;
        desc.head_dim = c.head_dim;
        desc.v_head_dim = c.v_head_dim;
        desc.format = {precision, tier};
        desc.page_tokens = 128;
        KvPool pool;
        REQUIRE_THAT(KvPool::Create(desc, &pool), IsOk());
        const size_t dims = static_cast<size_t>(c.head_dim + c.v_head_dim);
        const size_t num_pages = static_cast<size_t>((length + 127) / 128);
        const size_t pages = batch * num_pages * pool.page_bytes();
        const size_t bytes = CacheBytes(length, c, tier, precision, 128);
        if (HasQuantizedK(precision)) {
          const size_t tail = batch * kHeads * 128 * dims * sizeof(float);
          CHECK(bytes >= pages + tail);
          CHECK(bytes <= pages + tail + batch * kHeads * (3 * dims * sizeof(float) + 512));
        } else {
          CHECK(bytes == pages);
        }
        // The promise, without a look at the layout: elements, scales, centers, alignment.
        const size_t element_bytes = precision == Precision::kF32 ? 4 : 2;
        CHECK(pool.page_bytes() >= kHeads * 128 * dims * (precision == Precision::kI8 ? 1 : 2) / 2);
        CHECK(pool.page_bytes() <= kHeads * (128 * (dims + 16 + 4) * element_bytes + 4096));
      }
    }
  }
}

// kv.h: KvCacheDesc::page_tokens.
TEST_CASE("pages of a cache's own grow with its capacity", "[cache]") {
  const struct {
    Precision precision;
    int64_t head_dim;
    int64_t capacity;
    int64_t window_left;
    int64_t page_tokens;
  } caches[] = {
      {Precision::kI8, 64, 1, -1, 128},         {Precision::kI8, 64, 128, -1, 128},
      {Precision::kI8, 64, 129, -1, 256},       {Precision::kI8, 64, 512, -1, 512},
      {Precision::kI8, 64, 32767, -1, 512},     {Precision::kI8, 64, 32768, -1, 1024},
      {Precision::kI8, 64, 65535, -1, 1024},    {Precision::kI8, 64, 65536, -1, 2048},
      {Precision::kI8, 64, 1 << 20, -1, 2048},  {Precision::kI8, 64, 65536, 4096, 512},
      {Precision::kI8, 128, 1 << 20, -1, 1024}, {Precision::kI8Fine, 64, 1 << 20, -1, 1024},
      {Precision::kF16, 64, 1 << 20, -1, 1024}, {Precision::kMixed16, 128, 1 << 20, -1, 512},
      {Precision::kF32, 64, 1 << 20, -1, 512},  {Precision::kBF16, 32, 1 << 20, -1, 2048},
      {Precision::kF32, 512, 1 << 20, -1, 512},
  };
  for (const auto& expected : caches) {
    INFO(Name(expected.precision) << ", " << expected.head_dim << ", " << expected.capacity
                                  << " tokens, window_left " << expected.window_left);
    KvCacheDesc desc;
    desc.num_kv_heads = 1;
    desc.head_dim = expected.head_dim;
    desc.capacity = expected.capacity;
    desc.window_left = expected.window_left;
    desc.format.precision = expected.precision;
    KvCache cache;
    REQUIRE_THAT(KvCache::Create(desc, &cache), IsOk());
    CHECK(cache.page_tokens() == expected.page_tokens);
  }
}

// kv.h: below some 600 tokens int8 takes more memory than f16.
TEST_CASE("an int8 cache is smaller than an f16 one from 600 tokens on", "[cache]") {
  constexpr struct {
    int64_t length;
    double min, max;  // bytes of int8 to bytes of f16
  } kCases[] = {{64, 1.0, 2.75}, {512, 1.0, 1.1}, {640, 0.7, 1.0}, {4096, 0.5, 0.6}};
  Case c = CrossCase(1, 0, false);
  c.head_dim = c.v_head_dim = 64;
  for (const auto& row : kCases) {
    for (const char* tier : SupportedTiers()) {
      if (row.length > 1000 && strcmp(tier, "scalar") == 0) continue;  // slow
      const double i8 = static_cast<double>(CacheBytes(row.length, c, tier, Precision::kI8));
      const double f16 = static_cast<double>(CacheBytes(row.length, c, tier, Precision::kF16));
      INFO(row.length << " tokens on " << tier);
      CHECK(i8 > row.min * f16);
      CHECK(i8 < row.max * f16);
    }
  }
}

TEST_CASE("int8 takes a quarter of the memory of f32", "[memory]") {
  Case c;
  c.kv_len = 1500;
  c.heads = c.kv_heads = 8;
  c.head_dim = 64;
  const Problem problem(c, 900);
  const double elements = 2.0 * 1500 * 8 * 64;
  // Padding to whole blocks, scales and centers: at most a tenth on top.
  for (const char* tier : SupportedTiers()) {
    INFO(tier);
    CHECK(static_cast<double>(MemoryOf(problem, {tier, Precision::kF32}).bytes()) < 4.4 * elements);
    CHECK(static_cast<double>(MemoryOf(problem, {tier, Precision::kF16}).bytes()) < 2.2 * elements);
    CHECK(static_cast<double>(MemoryOf(problem, {tier, Precision::kI8}).bytes()) < 1.1 * elements);
  }
}

}  // namespace
}  // namespace testing
}  // namespace sightline
