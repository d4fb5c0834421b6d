// Ways a caller may run the library's workers.
#ifndef SIGHTLINE_TESTS_SUPPORT_THREADS_H_
#define SIGHTLINE_TESTS_SUPPORT_THREADS_H_

#include <stddef.h>

#include "sightline/parallel.h"

namespace sightline {
namespace testing {

// One thread per worker, started for each call.
ParallelFor OneThreadPerWorker(size_t num_workers);
// More workers than threads: two threads, each running its share of the workers one after another.
ParallelFor TwoThreads(size_t num_workers);
// No threads at all, the last worker first.
ParallelFor BackwardsOnThisThread(size_t num_workers);

}  // namespace testing
}  // namespace sightline

#endif  // SIGHTLINE_TESTS_SUPPORT_THREADS_H_
