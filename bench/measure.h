// How long a step takes, and how sure that is.
#ifndef SIGHTLINE_BENCH_MEASURE_H_
#define SIGHTLINE_BENCH_MEASURE_H_

#include <stdint.h>

#include <vector>

#include "bench/contender.h"

namespace sightline {
namespace bench {

// Time is measured in repetitions, each of as many Runs as fill repetition_seconds, until the
// spread is below kMaxSpread or budget_seconds are over.
struct Effort {
  double repetition_seconds = 0.02;
  double budget_seconds = 2.0;
};
constexpr double kMaxSpread = 0.03;

// The median of samples, and the width of its 95 % confidence interval as a fraction of it. The
// interval comes from the order of the samples alone, whatever their distribution (Hoefler and
// Belli, SC 2015, "Scientific Benchmarking of Parallel Computing Systems", rule 6); of less than
// six samples it is all of them.
struct Estimate {
  double median = 0.0;
  double spread = 0.0;
};
Estimate EstimateMedian(std::vector<double> samples);

struct Timing {
  double cpu_seconds = 0.0;   // of one step, on all threads of the process; median
  double real_seconds = 0.0;  // the same by the wall clock
  double seconds = 0.0;       // the one that counts: CPU time, with several threads the wall clock
  double spread = 0.0;        // of `seconds`
  int64_t iterations = 0;     // steps in a repetition
  int64_t repetitions = 0;
  double beside_seconds = 0.0;  // of what is beside it, as `seconds`; 0 = there is nothing
};

// Runs the entry on Google Benchmark; it must have run once before, so that it is warm. What is
// beside it, RunBeside or else the entry `other` if there is one, has a repetition after each of
// its own.
Timing Measure(Entry* entry, int threads, const Effort& effort, Entry* other = nullptr);

}  // namespace bench
}  // namespace sightline

#endif  // SIGHTLINE_BENCH_MEASURE_H_
