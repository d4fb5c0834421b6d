// The machine that a run happened on, as far as the system tells: what a reader needs to compare
// two runs.
#ifndef SIGHTLINE_BENCH_MACHINE_H_
#define SIGHTLINE_BENCH_MACHINE_H_

#include <stddef.h>

#include <string>
#include <vector>

namespace sightline {
namespace bench {

std::string CpuModel();         // "AMD EPYC 7B13", "Raspberry Pi 5 Model B"; "unknown"
std::string OperatingSystem();  // "Linux 6.1.0 x86_64"
std::string Compiler();         // of this program: "GCC 12.2.0"

// "performance", "schedutil"; "" where the system does not tell. Others than "performance" change
// the CPU's speed while it is measured.
std::string Governor(int cpu);

// Data caches of one core, in bytes; 0 where the system does not tell.
struct Caches {
  size_t l1 = 0;
  size_t l2 = 0;
  size_t l3 = 0;
};
Caches FindCaches(int cpu);

// How many CPUs this thread may use.
int NumCpus();

// Binds this thread, and those it starts, to the `count` fastest of the CPUs it may use, on a core
// each as far as there are cores; of equally fast ones the last, since the first ones serve most
// interrupts. Returns them; empty if there are not enough or the system does not bind.
std::vector<int> PinToFastestCpus(int count);

}  // namespace bench
}  // namespace sightline

#endif  // SIGHTLINE_BENCH_MACHINE_H_
