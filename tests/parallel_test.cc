// Threads: results are bit-equal for every number of workers and however they are run; a plan may
// be shared; its own workspace serves one Run at a time.
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>
#include <thread>
#include <vector>

#include "support/check.h"
#include "support/problem.h"
#include "support/threads.h"
#include "support/tiers.h"

#if defined(SIGHTLINE_TESTS_PTHREADPOOL)
#include <pthreadpool.h>
#endif

namespace sightline {
namespace testing {
namespace {

std::vector<Case> ParallelCases() {
  Case prefill;
  prefill.q_len = 210;
  prefill.kv_len = 210;
  prefill.heads = 6;
  prefill.kv_heads = 2;
  prefill.head_dim = 24;
  prefill.causal = true;

  Case decode;  // one query over many keys
  decode.kv_len = 2500;
  decode.head_dim = 32;

  Case beams;
  beams.kv_len = 700;
  beams.heads = 4;
  beams.kv_heads = 4;
  beams.kv_batch = 2;
  beams.beams = 5;
  beams.head_dim = 20;
  return {prefill, decode, beams};
}

TEST_CASE("the number of workers changes no bit", "[parallel]") {
  const Source source = GENERATE(Source::kTensors, Source::kMemory, Source::kCache);
  uint64_t seed = 0;
  for (const Case& c : ParallelCases()) {
    const Problem problem(c, ++seed);
    for (const Precision precision : kPrecisions) {
      for (const char* tier : SupportedTiers()) {
        if (!IsAffordable(c, tier)) continue;
        const Tensor alone = Attend(problem, {tier, precision, source});
        for (const size_t num_workers : {size_t{2}, size_t{3}, size_t{4}}) {
          INFO(c.ToString() << ", " << Name(precision) << " on " << tier << ", " << num_workers
                            << " workers, source " << static_cast<int>(source));
          for (const ParallelFor& parallel :
               {OneThreadPerWorker(num_workers), TwoThreads(num_workers),
                BackwardsOnThisThread(num_workers)}) {
            CHECK_THAT(Attend(problem, {tier, precision, source, parallel}), Equals(alone));
          }
        }
      }
    }
  }
}

#if defined(SIGHTLINE_TESTS_PTHREADPOOL)
TEST_CASE("a pthreadpool changes no bit", "[parallel]") {
  CHECK(ParallelForOn(nullptr).num_workers == 1);
  uint64_t seed = 100;
  for (const Case& c : ParallelCases()) {
    const Problem problem(c, ++seed);
    for (const Precision precision : kPrecisions) {
      const Tensor alone = Attend(problem, {BestTier(), precision});
      for (const size_t num_threads : {size_t{1}, size_t{2}, size_t{3}, size_t{4}}) {
        pthreadpool_t pool = pthreadpool_create(num_threads);
        REQUIRE(pool != nullptr);
        const ParallelFor parallel = ParallelForOn(pool);
        CHECK(parallel.num_workers == num_threads);
        INFO(c.ToString() << ", " << Name(precision) << ", " << num_threads << " threads");
        CHECK_THAT(Attend(problem, {BestTier(), precision, Source::kTensors, parallel}),
                   Equals(alone));
        pthreadpool_destroy(pool);
      }
    }
  }
}
#endif

TEST_CASE("threads share a plan and a memory", "[parallel]") {
  const Precision precision = GENERATE(from_range(kPrecisions));
  constexpr int kThreads = 4;
  const int repeats = IsEmulated() ? 3 : 20;
  Case c = ParallelCases().front();
  c.causal = false;
  const Setup setup = {BestTier(), precision, Source::kMemory};
  const Problem problem(c, 200);
  const Tensor expected = Attend(problem, setup);

  Plan plan;
  REQUIRE_THAT(Plan::Create(DescOf(c, setup), &plan), IsOk());
  const CrossMemory memory = MemoryOf(problem, setup);
  std::vector<Tensor> outs;
  for (int t = 0; t < kThreads; ++t) outs.push_back(problem.NewOut());
  std::atomic<int> num_errors{0};
  std::atomic<int> num_differences{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      const Plan copy = plan;
      Tensor& out = outs[static_cast<size_t>(t)];
      GuardedBuffer scratch(copy.workspace_bytes(), Placement::kAtEnd, Workspace::kAlignmentBytes);
      AttentionArgs args;
      args.q = problem.q.view();
      args.out = out.view();
      args.memory = &memory;
      for (int i = 0; i < repeats; ++i) {
        out.Wipe();
        if (!Run(copy, args, {scratch.data(), scratch.size()}).ok()) ++num_errors;
        if (!SameBits(out, expected)) ++num_differences;
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  CHECK(num_errors == 0);
  CHECK(num_differences == 0);
}

// A ParallelFor that calls Run again, while the outer Run is under way.
struct Reentry {
  const Plan* plan;
  const AttentionArgs* args;
  Workspace workspace;
  int num_calls;
  Status status;
};

ParallelFor Reenter(Reentry* reentry) {
  ParallelFor parallel;
  parallel.num_workers = 2;
  parallel.self = reentry;
  parallel.run = [](void* self, size_t n, ParallelFor::Worker worker, void* context) {
    Reentry& inner = *static_cast<Reentry*>(self);
    ++inner.num_calls;
    inner.status = Run(*inner.plan, *inner.args, inner.workspace);
    for (size_t i = 0; i < n; ++i) worker(context, i);
  };
  return parallel;
}

TEST_CASE("a plan's own workspace serves one Run at a time", "[parallel]") {
  const Precision precision = GENERATE(from_range(kPrecisions));
  const Problem problem(ParallelCases().front(), 300);
  Setup setup = {BestTier(), precision};
  const Tensor expected = Attend(problem, setup);

  AttentionDesc desc = DescOf(problem.c, setup);
  desc.owns_workspace = true;
  desc.max_workers = 2;
  Plan plan;
  REQUIRE_THAT(Plan::Create(desc, &plan), IsOk());
  const Tensor outer_out = problem.NewOut();
  const Tensor inner_out = problem.NewOut();
  const AttentionArgs outer = TensorArgs(problem, outer_out);
  const AttentionArgs inner = TensorArgs(problem, inner_out);
  const Plan copy = plan;  // shares the workspace
  GuardedBuffer scratch(plan.workspace_bytes(), Placement::kAtEnd, Workspace::kAlignmentBytes);

  SECTION("the second Run is told so and writes nothing") {
    Reentry reentry = {&copy, &inner, {}, 0, {}};
    REQUIRE_THAT(Run(plan, outer, {}, Reenter(&reentry)), IsOk());
    REQUIRE(reentry.num_calls > 0);
    CHECK_THAT(reentry.status, IsError(StatusCode::kBusy, "workspace"));
    CHECK(inner_out.IsWiped());
    CHECK_THAT(outer_out, Equals(expected));
    // And the workspace is free again.
    REQUIRE_THAT(Run(plan, inner), IsOk());
    CHECK_THAT(inner_out, Equals(expected));
  }
  SECTION("a second Run with a workspace of its own is served") {
    Reentry reentry = {&copy, &inner, {scratch.data(), scratch.size()}, 0, {}};
    REQUIRE_THAT(Run(plan, outer, {}, Reenter(&reentry)), IsOk());
    REQUIRE(reentry.num_calls > 0);
    CHECK_THAT(reentry.status, IsOk());
    CHECK_THAT(inner_out, Equals(expected));
    CHECK_THAT(outer_out, Equals(expected));
  }
  SECTION("a workspace that the caller brought does not occupy the plan's") {
    Reentry reentry = {&copy, &inner, {}, 0, {}};
    REQUIRE_THAT(Run(plan, outer, {scratch.data(), scratch.size()}, Reenter(&reentry)), IsOk());
    REQUIRE(reentry.num_calls > 0);
    CHECK_THAT(reentry.status, IsOk());
    CHECK_THAT(inner_out, Equals(expected));
    CHECK_THAT(outer_out, Equals(expected));
  }
  SECTION("a failed Run frees it") {
    AttentionArgs bad = outer;
    bad.q.data = nullptr;
    CHECK_FALSE(Run(plan, bad).ok());
    CHECK_THAT(Run(plan, outer), IsOk());
  }
}

TEST_CASE("threads that race for a plan's own workspace", "[parallel]") {
  const Precision precision = GENERATE(from_range(kPrecisions));
  constexpr int kThreads = 4;
  const int repeats = IsEmulated() ? 5 : 50;
  const Problem problem(ParallelCases().front(), 350);
  const Setup setup = {BestTier(), precision};
  const Tensor expected = Attend(problem, setup);

  AttentionDesc desc = DescOf(problem.c, setup);
  desc.owns_workspace = true;
  Plan plan;
  REQUIRE_THAT(Plan::Create(desc, &plan), IsOk());
  std::vector<Tensor> outs;
  for (int t = 0; t < kThreads; ++t) outs.push_back(problem.NewOut());
  std::atomic<int> num_ready{0};
  std::atomic<int> num_served{0};
  std::atomic<int> num_busy{0};
  std::atomic<int> num_differences{0};  // served with other bits, or refused and written to
  std::vector<std::thread> threads;
  for (int t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {
      Tensor& out = outs[static_cast<size_t>(t)];
      const AttentionArgs args = TensorArgs(problem, out);
      ++num_ready;
      while (num_ready < kThreads) std::this_thread::yield();
      for (int i = 0; i < repeats; ++i) {
        out.Wipe();
        const Status status = Run(plan, args);
        if (status.ok()) {
          ++num_served;
          if (!SameBits(out, expected)) ++num_differences;
        } else if (status.code() == StatusCode::kBusy) {
          ++num_busy;
          if (!out.IsWiped()) ++num_differences;
        }
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  INFO(Name(precision));
  CHECK(num_served + num_busy == kThreads * repeats);
  CHECK(num_served >= 1);
  CHECK(num_differences == 0);
}

TEST_CASE("memories and caches are packed alike by any number of workers", "[parallel]") {
  const Precision precision = GENERATE(from_range(kPrecisions));
  const Source source = GENERATE(Source::kMemory, Source::kCache);
  Case c = ParallelCases().back();
  c.kv_len = 1100;
  const Problem problem(c, 400);
  const Setup setup = {BestTier(), precision, source};
  const Tensor alone = Attend(problem, setup);
  // Packed by several workers, attended by one.
  Plan plan;
  AttentionDesc desc = DescOf(c, setup);
  desc.owns_workspace = true;
  REQUIRE_THAT(Plan::Create(desc, &plan), IsOk());
  for (const size_t num_workers : {size_t{2}, size_t{4}}) {
    Setup packing = setup;
    packing.parallel = OneThreadPerWorker(num_workers);
    CrossMemory memory;
    KvCache cache;
    Tensor out = problem.NewOut();
    AttentionArgs args;
    args.q = problem.q.view();
    args.out = out.view();
    if (source == Source::kMemory) {
      memory = MemoryOf(problem, packing);
      args.memory = &memory;
    } else {
      cache = CacheOf(problem, packing);
      args.cache = &cache;
    }
    INFO(Name(precision) << ", " << num_workers << " workers, source " << static_cast<int>(source));
    REQUIRE_THAT(Run(plan, args), IsOk());
    CHECK_THAT(out, Equals(alone));
  }
}

}  // namespace
}  // namespace testing
}  // namespace sightline
