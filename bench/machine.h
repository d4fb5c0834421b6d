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

// Data caches of one core, in bytes; 0 where the system does not tell.
struct Caches {
  size_t l1 = 0;
  size_t l2 = 0;
  size_t l3 = 0;
};
Caches FindCaches();

// Binds this thread, and those it starts, to the `count` fastest of the CPUs it may use; of equally
// fast ones the last, since the first ones serve most interrupts. Returns them; empty if there are
// not enough or the system does not bind.
std::vector<int> PinToFastestCpus(int count);

}  // namespace bench
}  // namespace sightline

#endif  // SIGHTLINE_BENCH_MACHINE_H_
