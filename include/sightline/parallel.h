// File: sightline/parallel.h
// How the library asks its caller for threads. It starts none of its own.
//
//   Run(plan, args, {}, ParallelForOn(pool));  // a pthreadpool, see ParallelForOn below
//
//   ParallelFor mine;                          // or any parallel-for of yours, here OpenMP
//   mine.num_workers = 4;
//   mine.run = [](void*, size_t n, ParallelFor::Worker worker, void* context) {
//   #pragma omp parallel for
//     for (size_t i = 0; i < n; ++i) worker(context, i);
//   };
//
// Results are bit-equal for every number of workers: the split of the work depends on shapes alone.
#ifndef SIGHTLINE_PARALLEL_H_
#define SIGHTLINE_PARALLEL_H_

#include <stddef.h>

struct pthreadpool;

namespace sightline {

struct ParallelFor {
  using Worker = void (*)(void* context, size_t index);

  // How many workers may run at once. 1 = on the calling thread, `run` is not used.
  size_t num_workers = 1;

  // Calls worker(context, i) once for each i < num_workers, in any order, on any threads, and
  // returns when all have returned. Fewer threads than workers are fine: workers share one queue of
  // tasks, the first to arrive may find all the work and a late one none.
  void (*run)(void* self, size_t num_workers, Worker worker, void* context) = nullptr;

  void* self = nullptr;  // handed to `run` untouched
};

// Threads of a pthreadpool (github.com/google/pthreadpool), which must outlive the call that uses
// it. A null pool, and a build without SIGHTLINE_PTHREADPOOL, run on the calling thread. Not from
// inside a task of the same pool, which would wait for itself. An installed Sightline carries the
// pool's library but not its header: take that of the same version (THIRD_PARTY.md).
ParallelFor ParallelForOn(pthreadpool* pool);

}  // namespace sightline

#endif  // SIGHTLINE_PARALLEL_H_
