#include "bench/roofs.h"

#include <stdlib.h>
#include <string.h>
#include <time.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <algorithm>
#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <new>
#include <thread>

#include "bench/roof_kernels.h"

namespace sightline {

// Declares every tier's getter; defined in roof_kernels.cc and roof_kernels_scalar.cc.
#define SIGHTLINE_TIER_ROW(tier, needs, tests_only, over) \
  namespace tier {                                        \
  const bench::RoofKernels& GetRoofKernels();             \
  }
#include "sightline_tiers.inc"
#undef SIGHTLINE_TIER_ROW

namespace bench {
namespace {

// One thread is timed by its CPU time, so that having to wait for the core does not lower a roof.
// With several, rows are timed by the wall clock, and so are roofs.
double Seconds(int threads) {
#if defined(CLOCK_THREAD_CPUTIME_ID)
  if (threads == 1) {
    timespec now;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
  }
#else
  (void)threads;
#endif
  return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// An attempt is short enough to fall between two interruptions by the system, and long enough for
// the clock.
constexpr double kAttemptSeconds = 2e-3;
constexpr int kAttempts = 50;  // the first ones bring the core to its speed
constexpr int kMinAttempts = 5;

// Where the system does not tell the size of the last cache.
constexpr size_t kAssumedLastCache = size_t{32} << 20;
// Larger than the last-level cache of today's cores; what is larger still streams just the same.
constexpr size_t kMaxFootprint = size_t{512} << 20;

// Runs work(thread) on all threads at once and returns how long each took.
std::vector<double> RunTogether(int threads, const std::function<void(int)>& work) {
  std::atomic<int> missing{threads};
  std::vector<double> seconds(static_cast<size_t>(threads));
  const auto run = [&](int thread) {
    --missing;
    while (missing.load() != 0) std::this_thread::yield();
    const double begin = Seconds(threads);
    work(thread);
    seconds[static_cast<size_t>(thread)] = Seconds(threads) - begin;
  };
  std::vector<std::thread> others;
  for (int thread = 1; thread < threads; ++thread) others.emplace_back(run, thread);
  run(0);
  for (std::thread& other : others) other.join();
  return seconds;
}

// Best rate of `work(thread, repeats)`, of which each repeat does `amount`: the sum over threads,
// whose cores may differ.
double BestRate(int threads, double amount, const std::function<void(int, size_t)>& work) {
  size_t repeats = 1;
  double slowest = 0.0;
  const auto attempt = [&] {
    double rate = 0.0;
    slowest = 0.0;
    for (const double seconds : RunTogether(threads, [&](int thread) { work(thread, repeats); })) {
      rate += amount * static_cast<double>(repeats) / std::max(seconds, 1e-9);
      slowest = std::max(slowest, seconds);
    }
    return rate;
  };
  double best = attempt();
  while (slowest < kAttemptSeconds / 2) {
    repeats *= 2;
    best = attempt();
  }
  // Attempts that cannot be made short are fewer.
  const int attempts =
      std::clamp(static_cast<int>(kAttempts * kAttemptSeconds / slowest), kMinAttempts, kAttempts);
  for (int i = 0; i < attempts; ++i) best = std::max(best, attempt());
  return best;
}

// Memory of defined contents, in large pages where the system gives them: translations must not
// limit the bandwidth.
using Buffer = std::unique_ptr<unsigned char, decltype(&free)>;
Buffer MakeBuffer(size_t bytes) {
  constexpr size_t kLargePage = size_t{2} << 20;
  const size_t rounded = (bytes + kLargePage - 1) / kLargePage * kLargePage;
  Buffer buffer(static_cast<unsigned char*>(aligned_alloc(kLargePage, rounded)), &free);
  if (buffer == nullptr) throw std::bad_alloc();
#if defined(MADV_HUGEPAGE)
  madvise(buffer.get(), rounded, MADV_HUGEPAGE);
#endif
  memset(buffer.get(), 1, rounded);
  return buffer;
}

const PeakKernel* FindPeak(const RoofKernels& kernels, const std::string& unit) {
  if (unit == "fp32_fma") return &kernels.fp32_fma;
  if (unit == "int8_dot") return &kernels.int8_dot;
  if (unit == "int16_dot") return &kernels.int16_dot;
  if (unit == "bf16_dot") return &kernels.bf16_dot;
  return nullptr;
}

// 2^n or 1.5 * 2^n, the largest that is not above.
size_t RoundDown(double bytes) {
  size_t power = kReadBytes;
  while (static_cast<double>(2 * power) <= bytes) power *= 2;
  const size_t middle = power + power / 2;
  return middle % kReadBytes == 0 && static_cast<double>(middle) <= bytes ? middle : power;
}

}  // namespace

const RoofKernels* FindRoofKernels(const char* tier) {
#define SIGHTLINE_TIER_ROW(name, needs, tests_only, over) \
  if (strcmp(tier, #name) == 0) return &::sightline::name::GetRoofKernels();
#include "sightline_tiers.inc"
#undef SIGHTLINE_TIER_ROW
  return nullptr;
}

Roofs::Roofs(std::string tier, int threads) : tier_(std::move(tier)), threads_(threads) {}

double Roofs::Arithmetic(const std::string& unit) {
  const auto known = arithmetic_.find(unit);
  return known != arithmetic_.end() ? known->second : arithmetic_[unit] = MeasureArithmetic(unit);
}

std::string Roofs::UnitOf(const std::string& precision) {
  // i8_fine too: what its 16-bit scores cost shows as a lower fraction of one roof. mixed16 without
  // dot products of bf16 multiplies half of its numbers as f32: likewise.
  const std::string unit = precision == "i8"           ? "int8_dot"
                           : precision == "i8_rotated" ? "int8_dot"
                           : precision == "i8_fine"    ? "int8_dot"
                           : precision == "q8_0"       ? "int8_dot"
                           : precision == "bf16"       ? "bf16_dot"
                           : precision == "mixed16"    ? MixedUnit()
                                                       : "fp32_fma";
  return Arithmetic(unit) > 0.0 ? unit : "fp32_fma";
}

std::string Roofs::MixedUnit() { return Arithmetic("bf16_dot") > 0.0 ? "bf16_dot" : "int16_dot"; }

double Roofs::ReadBandwidth(double footprint_bytes) {
  const size_t threads = static_cast<size_t>(threads_);
  const size_t footprint = RoundDown(
      std::clamp(footprint_bytes / static_cast<double>(threads), static_cast<double>(kReadBytes),
                 static_cast<double>(kMaxFootprint) / static_cast<double>(threads)));
  const auto known = bandwidth_.find(footprint);
  return known != bandwidth_.end() ? known->second
                                   : bandwidth_[footprint] = MeasureBandwidth(footprint);
}

double Roofs::Remeasure() {
  const double before = Arithmetic("fp32_fma");
  double after = before;
  for (auto& [unit, rate] : arithmetic_) {
    const double now = MeasureArithmetic(unit);
    if (unit == "fp32_fma") after = now;
    rate = std::max(rate, now);
  }
  for (auto& [footprint, rate] : bandwidth_) rate = std::max(rate, MeasureBandwidth(footprint));
  return after / before - 1.0;
}

double Roofs::MeasureArithmetic(const std::string& unit) const {
  const PeakKernel* kernel = FindPeak(*FindRoofKernels(tier_.c_str()), unit);
  if (kernel == nullptr || kernel->run == nullptr) return 0.0;
  constexpr size_t kRounds = 1000;
  return BestRate(threads_, kernel->operations_per_round * static_cast<double>(kRounds),
                  [kernel](int, size_t repeats) { kernel->run(repeats * kRounds); });
}

double Roofs::MeasureBandwidth(size_t footprint) const {
  const RoofKernels& kernels = *FindRoofKernels(tier_.c_str());
  // Each thread reads a part of its own, as the workers of an attention do.
  const Buffer buffer = MakeBuffer(footprint * static_cast<size_t>(threads_));
  return BestRate(threads_, static_cast<double>(footprint), [&](int thread, size_t repeats) {
    kernels.read(buffer.get() + static_cast<size_t>(thread) * footprint, footprint, repeats);
  });
}

std::vector<Roofs::Level> Roofs::Levels(const Caches& caches) {
  std::vector<Level> levels;
  if (caches.l1 != 0) levels.push_back({"L1", caches.l1 / 2});
  if (caches.l2 != 0) levels.push_back({"L2", caches.l2 / 2});
  if (caches.l3 != 0) levels.push_back({"L3", caches.l3 / 2});
  const size_t last = std::max({caches.l1, caches.l2, caches.l3});
  levels.push_back({"DRAM", std::min(8 * (last != 0 ? last : kAssumedLastCache), kMaxFootprint)});
  return levels;
}

}  // namespace bench
}  // namespace sightline
