#include "sightline/parallel.h"

#if SIGHTLINE_HAS_PTHREADPOOL
#include <pthreadpool.h>
#endif

namespace sightline {

ParallelFor ParallelForOn(pthreadpool* pool) {
  ParallelFor parallel;
#if SIGHTLINE_HAS_PTHREADPOOL
  if (pool == nullptr) return parallel;
  parallel.num_workers = pthreadpool_get_threads_count(pool);
  parallel.self = pool;
  parallel.run = [](void* self, size_t num_workers, ParallelFor::Worker worker, void* context) {
    pthreadpool_parallelize_1d(static_cast<pthreadpool*>(self), worker, context, num_workers,
                               /*flags=*/0);
  };
#else
  (void)pool;
#endif
  return parallel;
}

}  // namespace sightline
