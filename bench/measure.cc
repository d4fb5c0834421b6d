#include "bench/measure.h"

#include <benchmark/benchmark.h>
#include <math.h>

#include <algorithm>
#include <chrono>

namespace sightline {
namespace bench {
namespace {

using Clock = std::chrono::steady_clock;
double SecondsSince(Clock::time_point begin) {
  return std::chrono::duration<double>(Clock::now() - begin).count();
}

// Repetitions of one round. Six give an interval of all samples a confidence of 97 %; if a Run
// takes long, three have to do.
constexpr int kRepetitions = 6;
constexpr int kFewRepetitions = 3;
constexpr double kLongSeconds = 0.5;
constexpr int64_t kMaxIterations = 1000000;

// Takes the repetitions from Google Benchmark, prints nothing.
class Collector : public benchmark::BenchmarkReporter {
 public:
  bool ReportContext(const Context&) override { return true; }
  void ReportRuns(const std::vector<Run>& runs) override {
    for (const Run& run : runs) {
      if (run.run_type != Run::RT_Iteration) continue;
      const double iterations = static_cast<double>(run.iterations);
      cpu_seconds.push_back(run.cpu_accumulated_time / iterations);
      real_seconds.push_back(run.real_accumulated_time / iterations);
    }
  }

  std::vector<double> cpu_seconds;
  std::vector<double> real_seconds;
};

}  // namespace

Estimate EstimateMedian(std::vector<double> samples) {
  if (samples.empty()) return {};
  std::sort(samples.begin(), samples.end());
  const size_t n = samples.size();
  const double median = n % 2 != 0 ? samples[n / 2] : (samples[n / 2 - 1] + samples[n / 2]) / 2;
  // The median lies between the sorted samples number floor((n - z sqrt(n)) / 2) and ceil(1 + (n +
  // z sqrt(n)) / 2).
  const double z = 1.96;
  const double width = z * sqrt(static_cast<double>(n));
  const double low = floor((static_cast<double>(n) - width) / 2);
  const double high = ceil(1 + (static_cast<double>(n) + width) / 2);
  const size_t first = static_cast<size_t>(std::max(low, 1.0)) - 1;
  const size_t last = std::min(static_cast<size_t>(high), n) - 1;
  return {median, median > 0 ? (samples[last] - samples[first]) / median : 0.0};
}

Timing Measure(Entry* entry, int threads, const Effort& effort, Entry* other) {
  const Clock::time_point begin = Clock::now();
  if (entry->needs_reset()) entry->Reset();
  const Clock::time_point first_run = Clock::now();
  entry->Run();
  const double run_seconds = SecondsSince(first_run);

  const int64_t runs = std::clamp<int64_t>(
      static_cast<int64_t>(effort.repetition_seconds / std::max(run_seconds, 1e-9)), 1,
      kMaxIterations);
  const int repetitions = run_seconds > kLongSeconds ? kFewRepetitions : kRepetitions;
  const bool has_beside = !entry->beside().empty();
  if (has_beside) other = nullptr;
  const bool takes_turns = has_beside || other != nullptr;
  benchmark::ClearRegisteredBenchmarks();
  const auto add = [&](const char* name, auto run) {
    benchmark::RegisterBenchmark(name, run)
        ->Iterations(runs)
        ->Repetitions(takes_turns ? 1 : repetitions)
        ->MeasureProcessCPUTime();  // whatever thread a contender computes on
  };
  const auto steps_of = [](Entry* which) {
    return [which](benchmark::State& state) {
      for (auto _ : state) {
        if (which->needs_reset()) {
          state.PauseTiming();
          which->Reset();
          state.ResumeTiming();
        }
        which->Run();
      }
    };
  };
  add("step", steps_of(entry));
  if (other != nullptr) {
    add("beside", steps_of(other));
  } else {
    add("beside", [entry](benchmark::State& state) {
      for (auto _ : state) entry->RunBeside();
    });
  }

  Collector collector;
  Collector beside;
  Timing timing;
  do {
    for (int i = 0; i < (takes_turns ? repetitions : 1); ++i) {
      benchmark::RunSpecifiedBenchmarks(&collector, "step");
      if (takes_turns) benchmark::RunSpecifiedBenchmarks(&beside, "beside");
    }
    const Estimate cpu = EstimateMedian(collector.cpu_seconds);
    const Estimate real = EstimateMedian(collector.real_seconds);
    const Estimate turns = EstimateMedian(threads == 1 ? beside.cpu_seconds : beside.real_seconds);
    const double steps = static_cast<double>(entry->steps());
    const double other_steps = other != nullptr ? static_cast<double>(other->steps()) : steps;
    timing.cpu_seconds = cpu.median / steps;
    timing.real_seconds = real.median / steps;
    timing.seconds = threads == 1 ? timing.cpu_seconds : timing.real_seconds;
    timing.beside_seconds = turns.median / other_steps;
    timing.spread = std::max(threads == 1 ? cpu.spread : real.spread, turns.spread);
  } while (timing.spread > kMaxSpread && SecondsSince(begin) < effort.budget_seconds);
  timing.iterations = runs * entry->steps();
  timing.repetitions = static_cast<int64_t>(collector.cpu_seconds.size());
  return timing;
}

}  // namespace bench
}  // namespace sightline
