// What both adapters of oneDNN need: its engine, what it uses of this CPU, and its threads.
#ifndef SIGHTLINE_BENCH_PEERS_ONEDNN_COMMON_H_
#define SIGHTLINE_BENCH_PEERS_ONEDNN_COMMON_H_

#include <omp.h>
#include <dnnl.hpp>

#include <string>

namespace sightline {
namespace bench {

inline const dnnl::engine& OnednnEngine() {
  static const dnnl::engine engine(dnnl::engine::kind::cpu, 0);
  return engine;
}

inline std::string OnednnVersion() {
  const dnnl_version_t* v = dnnl_version();
  return std::to_string(v->major) + "." + std::to_string(v->minor) + "." + std::to_string(v->patch);
}

inline bool OnednnUses(dnnl::cpu_isa isa) {
  const auto wanted = static_cast<unsigned>(isa);
  return (static_cast<unsigned>(dnnl::get_effective_cpu_isa()) & wanted) == wanted;
}
inline bool OnednnUsesInt8DotProducts() {
  return OnednnUses(dnnl::cpu_isa::avx2_vnni) || OnednnUses(dnnl::cpu_isa::avx512_core_vnni);
}
inline bool OnednnUsesBf16() {
  return OnednnUses(dnnl::cpu_isa::avx2_vnni_2) || OnednnUses(dnnl::cpu_isa::avx512_core_bf16);
}

// Whether OmpThreads decides how many threads this oneDNN uses.
constexpr bool kOnednnHasOmp = DNNL_CPU_THREADING_RUNTIME == DNNL_RUNTIME_OMP;

// The threads of this thread's parallel regions, and of all that oneDNN compiles or executes
// meanwhile.
class OmpThreads {
 public:
  explicit OmpThreads(int threads) : before_(omp_get_max_threads()) {
    omp_set_num_threads(threads);
  }
  ~OmpThreads() { omp_set_num_threads(before_); }
  OmpThreads(const OmpThreads&) = delete;
  OmpThreads& operator=(const OmpThreads&) = delete;

 private:
  int before_;
};

}  // namespace bench
}  // namespace sightline

#endif  // SIGHTLINE_BENCH_PEERS_ONEDNN_COMMON_H_
