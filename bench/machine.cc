#include "bench/machine.h"

#include <stdio.h>
#include <stdlib.h>
#if defined(__linux__)
#include <sched.h>
#endif
#if defined(__unix__) || defined(__APPLE__)
#include <sys/utsname.h>
#endif
#if defined(__APPLE__)
#include <sys/sysctl.h>
#endif

#include <algorithm>
#include <fstream>
#include <map>
#include <thread>
#include <tuple>

namespace sightline {
namespace bench {
namespace {

#if defined(__linux__)
const char kCpuFolder[] = "/sys/devices/system/cpu/cpu";

std::string FirstLine(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  while (!line.empty() && line.back() == '\0')
    line.pop_back();  // the device tree's strings carry it
  return line;
}

// What the kernel takes for the relative speed of a CPU: its capacity on ARM, the highest frequency
// elsewhere.
long Speed(int cpu) {
  const std::string folder = kCpuFolder + std::to_string(cpu);
  const std::string capacity = FirstLine(folder + "/cpu_capacity");
  if (!capacity.empty()) return atol(capacity.c_str());
  return atol(FirstLine(folder + "/cpufreq/cpuinfo_max_freq").c_str());
}
#endif

}  // namespace

std::string CpuModel() {
#if defined(__APPLE__)
  char brand[128] = "";
  size_t bytes = sizeof(brand);
  if (sysctlbyname("machdep.cpu.brand_string", brand, &bytes, nullptr, 0) == 0) return brand;
#elif defined(__linux__)
  // Of an ARM board the device tree says more than /proc/cpuinfo.
  const std::string board = FirstLine("/sys/firmware/devicetree/base/model");
  std::ifstream cpuinfo("/proc/cpuinfo");
  std::string part;
  for (std::string line; std::getline(cpuinfo, line);) {
    const size_t colon = line.find(": ");
    if (colon == std::string::npos) continue;
    const std::string value = line.substr(colon + 2);
    if (line.rfind("model name", 0) == 0 && board.empty()) return value;
    // The last CPU is the largest on the usual phone.
    if (line.rfind("CPU part", 0) == 0) part = "ARM CPU part " + value;
  }
  if (!board.empty()) return part.empty() ? board : board + ", " + part;
  if (!part.empty()) return part;
#endif
  return "unknown";
}

std::string OperatingSystem() {
#if defined(__unix__) || defined(__APPLE__)
  utsname name;
  if (uname(&name) == 0) {
    return std::string(name.sysname) + " " + name.release + " " + name.machine;
  }
#endif
  return "unknown";
}

std::string Compiler() {
#if defined(__clang__)
  return "Clang " __clang_version__;
#elif defined(__GNUC__)
  return "GCC " __VERSION__;
#else
  return "unknown";
#endif
}

Caches FindCaches(int cpu) {
  Caches caches;
#if defined(__linux__)
  for (int index = 0; index < 8; ++index) {
    const std::string folder =
        kCpuFolder + std::to_string(cpu) + "/cache/index" + std::to_string(index);
    unsigned long size = 0;
    char unit = 'B';
    if (sscanf(FirstLine(folder + "/size").c_str(), "%lu%c", &size, &unit) < 1) continue;
    if (FirstLine(folder + "/type") == "Instruction") continue;
    const size_t bytes = unit == 'K' ? size << 10 : unit == 'M' ? size << 20 : size;
    const std::string level = FirstLine(folder + "/level");
    if (level == "1") caches.l1 = bytes;
    if (level == "2") caches.l2 = bytes;
    if (level == "3") caches.l3 = bytes;
  }
#elif defined(__APPLE__)
  (void)cpu;
  const auto read = [](const char* name) {
    size_t bytes = 0;
    size_t length = sizeof(bytes);
    return sysctlbyname(name, &bytes, &length, nullptr, 0) == 0 ? bytes : 0;
  };
  caches = {read("hw.l1dcachesize"), read("hw.l2cachesize"), read("hw.l3cachesize")};
#endif
  return caches;
}

std::string Governor(int cpu) {
#if defined(__linux__)
  return FirstLine(kCpuFolder + std::to_string(cpu) + "/cpufreq/scaling_governor");
#else
  (void)cpu;
  return "";
#endif
}

int NumCpus() {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) == 0) return CPU_COUNT(&allowed);
#endif
  return static_cast<int>(std::max(1u, std::thread::hardware_concurrency()));
}

std::vector<int> PinToFastestCpus(int count) {
#if defined(__linux__)
  cpu_set_t allowed;
  if (sched_getaffinity(0, sizeof(allowed), &allowed) != 0) return {};
  struct Cpu {
    int shares;  // how many CPUs of its core come before it
    long slowness;
    int from_last;
    int number;
  };
  std::vector<Cpu> cpus;
  std::map<std::string, int> cores;
  for (int cpu = CPU_SETSIZE - 1; cpu >= 0; --cpu) {
    if (!CPU_ISSET(cpu, &allowed)) continue;
    const std::string siblings =
        FirstLine(kCpuFolder + std::to_string(cpu) + "/topology/thread_siblings_list");
    const int shares = siblings.empty() ? 0 : cores[siblings]++;
    cpus.push_back({shares, -Speed(cpu), static_cast<int>(cpus.size()), cpu});
  }
  if (cpus.size() < static_cast<size_t>(count)) return {};
  std::sort(cpus.begin(), cpus.end(), [](const Cpu& a, const Cpu& b) {
    return std::tie(a.shares, a.slowness, a.from_last) <
           std::tie(b.shares, b.slowness, b.from_last);
  });
  cpu_set_t chosen;
  CPU_ZERO(&chosen);
  std::vector<int> result;
  for (size_t i = 0; i < static_cast<size_t>(count); ++i) {
    CPU_SET(cpus[i].number, &chosen);
    result.push_back(cpus[i].number);
  }
  if (sched_setaffinity(0, sizeof(chosen), &chosen) != 0) return {};
  return result;
#else
  (void)count;
  return {};
#endif
}

}  // namespace bench
}  // namespace sightline
