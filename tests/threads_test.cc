// One process that serves: threads that know nothing of each other, each inside another call of the
// library. What they share is what the API lets them share: plans, memories and what the library
// itself finds out once. Every result has to have the bits of the same call made alone; what
// ThreadSanitizer has to say about it is the rest of the test (PRESET=tsan ./run test).
#include <algorithm>
#include <atomic>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>
#include <functional>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#include "sightline/kv_file.h"
#include "sightline/tier.h"
#include "support/check.h"
#include "support/directory.h"
#include "support/problem.h"
#include "support/threads.h"
#include "support/tiers.h"

#if defined(SIGHTLINE_TESTS_PTHREADPOOL)
#include <pthreadpool.h>
#endif

namespace sightline {
namespace testing {
namespace {

int NumRepeats() { return IsEmulated() ? 2 : 20; }

// Bodies that all start when the last of their threads is there. A body returns what went wrong;
// Catch2's assertions belong to one thread.
class Crowd {
 public:
  using Body = std::function<std::string()>;

  void Add(std::string name, Body body) {
    members_.push_back({std::move(name), std::move(body), ""});
  }

  void Run() {
    std::atomic<size_t> num_missing{members_.size()};
    std::vector<std::thread> threads;
    for (Member& member : members_) {
      threads.emplace_back([&member, &num_missing] {
        --num_missing;
        while (num_missing != 0) std::this_thread::yield();
        for (int i = 0; i < NumRepeats() && member.error.empty(); ++i) member.error = member.body();
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const Member& member : members_) {
      INFO(member.name);
      CHECK(member.error == "");
    }
  }

 private:
  struct Member {
    std::string name;
    Body body;
    std::string error;
  };

  std::vector<Member> members_;
};

// `status` of what a thread called, and whether `out` is as expected.
std::string Compare(const Status& status, const Tensor& out, const Tensor& expected) {
  if (!status.ok()) return status.message();
  return SameBits(out, expected) ? "" : "other bits than alone";
}

// A plan's Run with a workspace and an output of one thread.
class OwnRun {
 public:
  OwnRun(const Plan& plan, const Problem& problem)
      : plan_(plan),
        out_(problem.NewOut()),
        scratch_(plan.workspace_bytes(), Placement::kAtEnd, Workspace::kAlignmentBytes) {
    args_.q = problem.q.view();
    args_.out = out_.view();
  }

  AttentionArgs& args() { return args_; }

  std::string Check(const Tensor& expected, const ParallelFor& parallel = {}) {
    out_.Wipe();
    const Status status = Run(plan_, args_, {scratch_.data(), scratch_.size()}, parallel);
    return Compare(status, out_, expected);
  }

 private:
  const Plan& plan_;
  Tensor out_;
  GuardedBuffer scratch_;
  AttentionArgs args_;
};

// A cross-attention of a few beams, and a self-attention whose cache goes past its first tile.
Case CrossCase() {
  Case c;
  c.q_len = 3;
  c.kv_len = 333;
  c.heads = 4;
  c.kv_heads = 2;
  c.kv_batch = 2;
  c.beams = 2;
  c.head_dim = 20;
  c.v_head_dim = 33;
  c.distribution = Distribution::kKBias;
  return c;
}

Case SelfCase() {
  Case c;
  c.q_len = 30;
  c.kv_len = 200;
  c.heads = 2;
  c.kv_heads = 2;
  c.head_dim = 24;
  c.causal = true;
  return c;
}

KvCacheDesc CacheDescOf(const Case& c, const Setup& setup) {
  KvCacheDesc desc;
  desc.batch = c.kv_batch;
  desc.num_kv_heads = c.kv_heads;
  desc.head_dim = c.head_dim;
  desc.v_head_dim = c.v_head_dim;
  desc.capacity = c.kv_len;
  desc.format = {setup.precision, setup.tier, setup.rotate_k};
  return desc;
}

Plan PlanOf(const Case& c, const Setup& setup) {
  AttentionDesc desc = DescOf(c, setup);
  desc.max_workers = 2;
  Plan plan;
  REQUIRE_THAT(Plan::Create(desc, &plan), IsOk());
  return plan;
}

TEST_CASE("threads inside every call of the library at once", "[threads]") {
  const Precision precision = GENERATE(from_range(kPrecisions));
  INFO(Name(precision));
  const Setup from_memory = {BestTier(), precision, Source::kMemory};
  const Setup from_cache = {BestTier(), precision, Source::kCache};
  const Problem cross(CrossCase(), 1);
  const Problem self(SelfCase(), 2);
  const Problem other_self(SelfCase(), 3);
  const Tensor cross_out = Attend(cross, from_memory);
  const Tensor self_out = Attend(self, from_cache);
  const Tensor other_self_out = Attend(other_self, from_cache);

  const Plan cross_plan = PlanOf(cross.c, from_memory);
  const Plan self_plan = PlanOf(self.c, from_cache);
  const CrossMemory shared = MemoryOf(cross, from_memory);

  Crowd crowd;
  // One plan and one memory, with workspaces of their own; one of the threads brings workers.
  std::vector<std::unique_ptr<OwnRun>> runs;
  for (const size_t num_workers : {size_t{1}, size_t{1}, size_t{2}}) {
    runs.push_back(std::make_unique<OwnRun>(cross_plan, cross));
    runs.back()->args().memory = &shared;
    const ParallelFor parallel = num_workers == 1 ? ParallelFor{} : OneThreadPerWorker(num_workers);
    crowd.Add("runs over the shared memory", [&cross_out, run = runs.back().get(), parallel] {
      return run->Check(cross_out, parallel);
    });
  }
  // Handles of that memory come and go, and the last use of one is a Run.
  for (int t = 0; t < 2; ++t) {
    runs.push_back(std::make_unique<OwnRun>(cross_plan, cross));
    crowd.Add("copies and drops handles", [&, run = runs.back().get()] {
      std::vector<CrossMemory> handles;
      for (int i = 0; i < 50; ++i) handles.push_back(shared);
      CrossMemory last = handles[20];
      handles.clear();
      const CrossMemory moved = std::move(last);
      run->args().memory = &moved;
      return run->Check(cross_out);
    });
  }
  // Memories made at the same time from the same tensors.
  for (const size_t num_workers : {size_t{1}, size_t{2}}) {
    runs.push_back(std::make_unique<OwnRun>(cross_plan, cross));
    const ParallelFor parallel = num_workers == 1 ? ParallelFor{} : OneThreadPerWorker(num_workers);
    crowd.Add("creates memories", [&, run = runs.back().get(), parallel]() -> std::string {
      CrossMemory memory;
      const Status status = CrossMemory::Create(
          cross.k.view(), cross.v.view(), {precision, from_memory.tier, false}, &memory, parallel);
      if (!status.ok()) return status.message();
      run->args().memory = &memory;
      return run->Check(cross_out);
    });
  }
  // Caches, each of one thread, which grow while the others read theirs: two of the same tokens and
  // one of others.
  struct Sequence {
    const Problem* problem;
    const Tensor* expected;
    int64_t step;
  };
  for (const Sequence& sequence : {Sequence{&self, &self_out, 7}, Sequence{&self, &self_out, 64},
                                   Sequence{&other_self, &other_self_out, 33}}) {
    runs.push_back(std::make_unique<OwnRun>(self_plan, *sequence.problem));
    crowd.Add("appends to a cache", [&, run = runs.back().get(), sequence]() -> std::string {
      const Problem& problem = *sequence.problem;
      KvCache cache;
      Status status = KvCache::Create(CacheDescOf(problem.c, from_cache), &cache);
      for (int64_t begin = 0; begin < problem.c.kv_len && status.ok(); begin += sequence.step) {
        const int64_t end = std::min(begin + sequence.step, problem.c.kv_len);
        status = cache.Append(problem.k.Slice(begin, end), problem.v.Slice(begin, end));
      }
      if (!status.ok()) return status.message();
      run->args().cache = &cache;
      return run->Check(*sequence.expected);
    });
  }
  // Plans made and dropped, copies of the one that runs among them.
  crowd.Add("creates and copies plans", [&]() -> std::string {
    Plan plan;
    const Status status = Plan::Create(DescOf(cross.c, from_memory), &plan);
    if (!status.ok()) return status.message();
    const Plan copy = cross_plan;
    plan = copy;
    return plan.workspace_bytes() == cross_plan.workspace_bytes() ? "" : "another workspace";
  });
  crowd.Run();
}

// The memory dies in whichever thread is the last to let go of it, after all have read it.
TEST_CASE("the last of several threads frees a memory", "[threads]") {
  const Precision precision = GENERATE(from_range(kPrecisions));
  INFO(Name(precision));
  const Setup setup = {BestTier(), precision, Source::kMemory};
  const Problem problem(CrossCase(), 11);
  const Tensor expected = Attend(problem, setup);
  const Plan plan = PlanOf(problem.c, setup);
  constexpr size_t kThreads = 4;
  std::vector<std::unique_ptr<OwnRun>> runs;
  for (size_t t = 0; t < kThreads; ++t) runs.push_back(std::make_unique<OwnRun>(plan, problem));
  std::vector<std::string> errors(kThreads);

  for (int i = 0; i < NumRepeats(); ++i) {
    std::vector<CrossMemory> handles(kThreads, MemoryOf(problem, setup));
    std::vector<std::thread> threads;
    for (size_t t = 0; t < kThreads; ++t) {
      threads.emplace_back([&, t, memory = std::move(handles[t])]() mutable {
        runs[t]->args().memory = &memory;
        errors[t] = runs[t]->Check(expected);
        memory = CrossMemory();
      });
    }
    for (std::thread& thread : threads) thread.join();
    for (const std::string& error : errors) CHECK(error == "");
  }
}

// Reading is free for all between appends: the appending thread hands over by whatever
// synchronises, here by threads that start after an append and end before the next.
TEST_CASE("threads read a cache between appends", "[threads]") {
  const Precision precision = GENERATE(from_range(kPrecisions));
  INFO(Name(precision));
  const Setup setup = {BestTier(), precision, Source::kCache};
  const Problem problem(SelfCase(), 21);
  const Tensor expected = Attend(problem, setup);
  const Plan plan = PlanOf(problem.c, setup);
  KvCache cache;
  REQUIRE_THAT(KvCache::Create(CacheDescOf(problem.c, setup), &cache), IsOk());
  std::vector<std::unique_ptr<OwnRun>> runs;
  for (int t = 0; t < 3; ++t) {
    runs.push_back(std::make_unique<OwnRun>(plan, problem));
    runs.back()->args().cache = &cache;
  }
  // Until the last append the outputs are of fewer tokens: only that all threads have the same.
  for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{
           {0, 100}, {100, 128}, {128, 131}, {131, problem.c.kv_len}}) {
    REQUIRE_THAT(cache.Append(problem.k.Slice(begin, end), problem.v.Slice(begin, end),
                              OneThreadPerWorker(2)),
                 IsOk());
    Tensor alone = problem.NewOut();
    AttentionArgs args;
    args.q = problem.q.view();
    args.out = alone.view();
    args.cache = &cache;
    GuardedBuffer scratch(plan.workspace_bytes(), Placement::kAtEnd, Workspace::kAlignmentBytes);
    REQUIRE_THAT(Run(plan, args, {scratch.data(), scratch.size()}), IsOk());
    Crowd crowd;
    for (const std::unique_ptr<OwnRun>& run : runs) {
      crowd.Add("reads the cache", [&alone, reader = run.get()] { return reader->Check(alone); });
    }
    crowd.Run();
    if (end == problem.c.kv_len) CHECK_THAT(alone, Equals(expected));
  }
}

// Requests that share a prompt and a pool: each forks, goes on, takes back, forgets and reads its
// own cache, and drops it, while the others do, and while somebody reads what the prompt was. Two
// take it from a file that they both write.
TEST_CASE("threads fork one prompt and go their own ways", "[threads]") {
  const Precision precision = GENERATE(from_range(kPrecisions));
  INFO(Name(precision));
  const Setup setup = {BestTier(), precision, Source::kCache};
  const Problem problem(SelfCase(), 31);
  const Case& c = problem.c;
  KvPoolDesc pool_desc;
  pool_desc.num_kv_heads = c.kv_heads;
  pool_desc.head_dim = c.head_dim;
  pool_desc.v_head_dim = c.value_dim();
  pool_desc.format = {precision, setup.tier};
  pool_desc.page_tokens = 128;
  pool_desc.max_pages = 64;
  KvPool pool;
  REQUIRE_THAT(KvPool::Create(pool_desc, &pool), IsOk());
  KvCacheDesc desc;
  desc.capacity = 2 * c.kv_len;
  desc.pool = &pool;
  KvCache prompt;
  REQUIRE_THAT(KvCache::Create(desc, &prompt), IsOk());
  const int64_t num_prompt = 150;  // within a page and a tile
  REQUIRE_THAT(prompt.Append(problem.k.Slice(0, num_prompt), problem.v.Slice(0, num_prompt)),
               IsOk());
  CrossMemory memory;
  REQUIRE_THAT(CrossMemory::From(prompt, &memory), IsOk());
  const std::vector<int32_t> gone = {3, 127, 128, 149};

  // What thread `t` does to a cache that holds the prompt.
  const auto go_on = [&](int t, KvCache* cache) {
    const int64_t end = num_prompt + 7 * t;
    Status status =
        cache->Append(problem.k.Slice(num_prompt, end + 20), problem.v.Slice(num_prompt, end + 20));
    if (status.ok()) status = cache->Truncate(end);
    if (status.ok()) status = cache->Evict(0, gone.data(), t % 2 == 0 ? 0 : 4);
    if (!status.ok()) return status;
    return cache->Append(problem.k.Slice(end, c.kv_len), problem.v.Slice(end, c.kv_len));
  };
  const Plan plan = PlanOf(c, setup);
  const auto run_alone = [&](const AttentionArgs& source) {
    Tensor out = problem.NewOut();
    AttentionArgs args = source;
    args.q = problem.q.view();
    args.out = out.view();
    GuardedBuffer scratch(plan.workspace_bytes(), Placement::kAtEnd, Workspace::kAlignmentBytes);
    REQUIRE_THAT(Run(plan, args, {scratch.data(), scratch.size()}), IsOk());
    return out;
  };
  constexpr int kThreads = 4;
  std::vector<Tensor> expected;
  std::vector<std::unique_ptr<OwnRun>> runs;
  Crowd crowd;
  for (int t = 0; t < kThreads; ++t) {
    KvCache cache;
    REQUIRE_THAT(prompt.Fork(&cache), IsOk());
    REQUIRE_THAT(go_on(t, &cache), IsOk());
    AttentionArgs args;
    args.cache = &cache;
    expected.push_back(run_alone(args));
    runs.push_back(std::make_unique<OwnRun>(plan, problem));
  }
  AttentionArgs of_memory;
  of_memory.memory = &memory;
  const Tensor expected_of_memory = run_alone(of_memory);
  OwnRun reader(plan, problem);
  reader.args().memory = &memory;
  const Directory directory;
  const std::string path = directory / "prompt";
  for (int t = 0; t < 2; ++t) {
    runs.push_back(std::make_unique<OwnRun>(plan, problem));
    crowd.Add("file " + std::to_string(t), [&, t]() -> std::string {
      KvCache cache;
      Status status = Save(prompt, path.c_str());
      if (status.ok()) status = Load(path.c_str(), desc, &cache);
      if (status.ok()) status = go_on(t, &cache);
      if (!status.ok()) return status.message();
      OwnRun& run = *runs[static_cast<size_t>(kThreads + t)];
      run.args().cache = &cache;
      return run.Check(expected[static_cast<size_t>(t)]);
    });
  }
  for (int t = 0; t < kThreads; ++t) {
    crowd.Add("fork " + std::to_string(t), [&, t]() -> std::string {
      KvCache cache;
      Status status = prompt.Fork(&cache);
      if (status.ok()) status = go_on(t, &cache);
      if (!status.ok()) return status.message();
      runs[static_cast<size_t>(t)]->args().cache = &cache;
      return runs[static_cast<size_t>(t)]->Check(expected[static_cast<size_t>(t)]);
    });
  }
  crowd.Add("the prompt", [&] { return reader.Check(expected_of_memory); });
  crowd.Run();
  prompt = KvCache();
  memory = CrossMemory();
  CHECK(pool.pages_in_use() == 0);
}

// What the library finds out once about the CPU and the environment, asked for by many; and the
// active tier, which a thread may restrict while others make plans.
TEST_CASE("threads ask for tiers while one restricts them", "[threads]") {
  const Setup setup = {nullptr, Precision::kF32};
  const Case c = SelfCase();
  const char* best = BestTier();
  Crowd crowd;
  crowd.Add("sets the active tier", [best]() -> std::string {
    for (const char* tier : {"scalar", best}) {
      if (!SetActiveTier(tier).ok()) return std::string(tier) + " was refused";
    }
    return "";
  });
  for (int t = 0; t < 3; ++t) {
    crowd.Add("makes plans of the active tier", [&c, &setup, best]() -> std::string {
      Plan plan;
      const Status status = Plan::Create(DescOf(c, setup), &plan);
      if (!status.ok()) return status.message();
      const char* active = nullptr;
      if (!GetActiveTier(&active).ok()) return "no tier is active";
      for (const std::string name : {plan.tier(), active}) {
        if (name != "scalar" && name != best) return name;
      }
      return "";
    });
  }
  REQUIRE_THAT(SetActiveTier(best), IsOk());
  crowd.Run();
  REQUIRE_THAT(SetActiveTier(nullptr), IsOk());
}

#if defined(SIGHTLINE_TESTS_PTHREADPOOL)
// A pool serves one call at a time; callers on several threads take turns.
TEST_CASE("threads share a pthreadpool", "[threads]") {
  const Precision precision = GENERATE(from_range(kPrecisions));
  INFO(Name(precision));
  const Setup setup = {BestTier(), precision, Source::kMemory};
  const Problem problem(CrossCase(), 31);
  const Tensor expected = Attend(problem, setup);
  const Plan plan = PlanOf(problem.c, setup);
  const CrossMemory memory = MemoryOf(problem, setup);
  const std::unique_ptr<pthreadpool, decltype(&pthreadpool_destroy)> pool(pthreadpool_create(2),
                                                                          &pthreadpool_destroy);
  REQUIRE(pool != nullptr);
  std::vector<std::unique_ptr<OwnRun>> runs;
  Crowd crowd;
  for (int t = 0; t < 3; ++t) {
    runs.push_back(std::make_unique<OwnRun>(plan, problem));
    runs.back()->args().memory = &memory;
    crowd.Add("runs on the pool", [&expected, &pool, run = runs.back().get()] {
      return run->Check(expected, ParallelForOn(pool.get()));
    });
  }
  crowd.Run();
}
#endif

}  // namespace
}  // namespace testing
}  // namespace sightline
