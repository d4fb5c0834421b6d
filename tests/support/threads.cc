#include "support/threads.h"

#include <thread>
#include <vector>

namespace sightline {
namespace testing {
namespace {

// Runs the workers on `num_threads` threads, round-robin.
void RunOn(size_t num_threads, size_t num_workers, ParallelFor::Worker worker, void* context) {
  std::vector<std::thread> threads;
  for (size_t t = 0; t < num_threads; ++t) {
    threads.emplace_back([=] {
      for (size_t i = t; i < num_workers; i += num_threads) worker(context, i);
    });
  }
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

ParallelFor OneThreadPerWorker(size_t num_workers) {
  ParallelFor parallel;
  parallel.num_workers = num_workers;
  parallel.run = [](void*, size_t n, ParallelFor::Worker worker, void* context) {
    RunOn(n, n, worker, context);
  };
  return parallel;
}

ParallelFor TwoThreads(size_t num_workers) {
  ParallelFor parallel;
  parallel.num_workers = num_workers;
  parallel.run = [](void*, size_t n, ParallelFor::Worker worker, void* context) {
    RunOn(2, n, worker, context);
  };
  return parallel;
}

ParallelFor BackwardsOnThisThread(size_t num_workers) {
  ParallelFor parallel;
  parallel.num_workers = num_workers;
  parallel.run = [](void*, size_t n, ParallelFor::Worker worker, void* context) {
    for (size_t i = n; i-- > 0;) worker(context, i);
  };
  return parallel;
}

}  // namespace testing
}  // namespace sightline
