// Tasks over workers: the queue behind every parallel loop of the library.
#ifndef SIGHTLINE_DISPATCH_PARALLEL_H_
#define SIGHTLINE_DISPATCH_PARALLEL_H_

#include <stddef.h>

#include <atomic>

#include "sightline/parallel.h"

namespace sightline {
namespace internal {

// Calls body(task, worker) once for each task < num_tasks; worker < parallel.num_workers names
// scratch that no other call uses at the same time. Workers draw tasks from one counter, so that a
// slow core holds nobody up; which worker runs a task must not matter to the result.
template <class Body>
void ForEachTask(const ParallelFor& parallel, size_t num_tasks, const Body& body) {
  const size_t num_workers = parallel.num_workers < num_tasks ? parallel.num_workers : num_tasks;
  if (num_workers <= 1 || parallel.run == nullptr) {
    for (size_t task = 0; task < num_tasks; ++task) body(task, size_t{0});
    return;
  }
  struct Queue {
    const Body& body;
    size_t num_tasks;
    std::atomic<size_t> next;
  };
  Queue queue{body, num_tasks, {0}};
  parallel.run(
      parallel.self, num_workers,
      [](void* context, size_t worker) {
        Queue& shared = *static_cast<Queue*>(context);
        for (;;) {
          const size_t task = shared.next.fetch_add(1, std::memory_order_relaxed);
          if (task >= shared.num_tasks) return;
          shared.body(task, worker);
        }
      },
      &queue);
}

}  // namespace internal
}  // namespace sightline

#endif  // SIGHTLINE_DISPATCH_PARALLEL_H_
