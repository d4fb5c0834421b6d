// How fast this build is on this CPU: prefill of 2048 tokens and one decoding step over 1500 keys,
// in every precision, full and causal, on one thread.
//
//   cmake --preset release -DSIGHTLINE_BUILD_BENCH=ON && cmake --build build/release --target
//   sightline_speed taskset -c 1 build/release/bench/sightline_speed
//
// Prints the median of the CPU time over repetitions, and operations (a multiplication and an
// addition are two; half of them for causal) per second. K and V are packed beforehand.
#include <stdint.h>
#include <stdio.h>
#include <time.h>

#include <algorithm>
#include <random>
#include <vector>

#include "sightline/attention.h"

namespace {

using sightline::ConstTensorView;
using sightline::DType;
using sightline::Mask;
using sightline::Precision;
using sightline::Status;

constexpr int64_t kHeads = 8;
constexpr double kSecondsPerCase = 0.5;
constexpr size_t kMinRuns = 7;

double CpuSeconds() {
  timespec now;
  clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + 1e-9 * static_cast<double>(now.tv_nsec);
}

std::vector<float> Gaussian(int64_t count) {
  std::mt19937 rng(1);
  std::normal_distribution<float> normal;
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = normal(rng);
  return values;
}

struct Case {
  int64_t q_len;
  int64_t kv_len;
  int64_t head_dim;
  Mask mask;
};

Status Measure(const Case& c, Precision precision) {
  const std::vector<float> q = Gaussian(c.q_len * kHeads * c.head_dim);
  const std::vector<float> kv = Gaussian(c.kv_len * kHeads * c.head_dim);
  std::vector<float> out(q.size());

  sightline::AttentionDesc desc;
  desc.num_heads = desc.num_kv_heads = kHeads;
  desc.head_dim = c.head_dim;
  desc.max_q_len = c.q_len;
  desc.mask = c.mask;
  desc.precision = precision;
  sightline::Plan plan;
  Status status = sightline::Plan::Create(desc, &plan);
  if (!status.ok()) return status;
  const auto k = ConstTensorView::Dense(kv.data(), DType::kF32, 1, c.kv_len, kHeads, c.head_dim);
  sightline::CrossMemory memory;
  status = sightline::CrossMemory::Create(k, k, {precision}, &memory);
  if (!status.ok()) return status;

  sightline::AttentionArgs args;
  args.q = ConstTensorView::Dense(q.data(), DType::kF32, 1, c.q_len, kHeads, c.head_dim);
  args.memory = &memory;
  args.out = sightline::TensorView::Dense(out.data(), DType::kF32, 1, c.q_len, kHeads, c.head_dim);
  std::vector<double> seconds;
  const double start = CpuSeconds();
  while (CpuSeconds() - start < kSecondsPerCase || seconds.size() < kMinRuns) {
    const double begin = CpuSeconds();
    status = Run(plan, args);
    if (!status.ok()) return status;
    seconds.push_back(CpuSeconds() - begin);
  }
  std::nth_element(seconds.begin(), seconds.begin() + static_cast<int64_t>(seconds.size() / 2),
                   seconds.end());
  const double median = seconds[seconds.size() / 2];
  const bool halved = c.mask == Mask::kCausal && c.q_len > 1;
  const double operations =
      (halved ? 2.0 : 4.0) * static_cast<double>(c.q_len * c.kv_len * c.head_dim * kHeads);
  printf("%-4s %4lld x %-4lld  D %-3lld  %-6s  %8.1f GOP/s  %10.1f us\n", Name(precision),
         static_cast<long long>(c.q_len), static_cast<long long>(c.kv_len),
         static_cast<long long>(c.head_dim), c.mask == Mask::kCausal ? "causal" : "full",
         operations / median * 1e-9, median * 1e6);
  return Status();
}

}  // namespace

int main() {
  const char* tier = nullptr;
  Status status = sightline::GetActiveTier(&tier);
  if (status.ok()) printf("tier %s, %d heads, one thread\n", tier, static_cast<int>(kHeads));
  for (const Precision precision : {Precision::kF32, Precision::kF16, Precision::kI8}) {
    for (const Case& c : {Case{2048, 2048, 64, Mask::kNone}, Case{2048, 2048, 64, Mask::kCausal},
                          Case{2048, 2048, 128, Mask::kNone}, Case{2048, 2048, 128, Mask::kCausal},
                          Case{1, 1500, 64, Mask::kNone}}) {
      if (status.ok()) status = Measure(c, precision);
    }
  }
  if (status.ok()) return 0;
  fprintf(stderr, "%s\n", status.message());
  return 1;
}
