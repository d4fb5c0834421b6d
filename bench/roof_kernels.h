// The border between a tier's roof kernels (roof_kernels.cc, compiled once per tier) and their
// measurement (roofs.cc).
#ifndef SIGHTLINE_BENCH_ROOF_KERNELS_H_
#define SIGHTLINE_BENCH_ROOF_KERNELS_H_

#include <stddef.h>

namespace sightline {
namespace bench {

// A loop that does nothing but one kind of multiply-add, in as many independent sums as hide its
// latency.
struct PeakKernel {
  void (*run)(size_t rounds) = nullptr;  // null: the tier has no such instruction
  double operations_per_round = 0;       // a multiplication and an addition are two
};

struct RoofKernels {
  PeakKernel fp32_fma;
  PeakKernel int8_dot;   // four products of bytes into a 32-bit sum
  PeakKernel int16_dot;  // two products of 16-bit integers into a 32-bit sum
  PeakKernel bf16_dot;   // two products of bf16 into an f32 sum
  // Reads every byte once, `passes` times over; data is aligned to 64 bytes, bytes is a multiple of
  // kReadBytes.
  void (*read)(const void* data, size_t bytes, size_t passes);
};
constexpr size_t kReadBytes = 1024;

// The kernels of a tier that this CPU supports; null if there is no tier of that name.
const RoofKernels* FindRoofKernels(const char* tier);

}  // namespace bench
}  // namespace sightline

#endif  // SIGHTLINE_BENCH_ROOF_KERNELS_H_
