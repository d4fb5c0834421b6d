// What this CPU and its operating system can run. Compiled without ISA flags and without LTO.
#ifndef SIGHTLINE_DISPATCH_CPU_FEATURES_H_
#define SIGHTLINE_DISPATCH_CPU_FEATURES_H_

#include <stddef.h>
#include <stdint.h>

namespace sightline {
namespace internal {

// Every instruction-set extension that some tier's compiler flags allow the compiler to use, named
// much as /proc/cpuinfo names it. The groups x86-64-v2, -v3, -v4 and armv8.2-a are spelt out. All
// architectures are in one list, so that tests on any of them can look at every table of bits.
// clang-format off
#define SIGHTLINE_CPU_FEATURES(X)                                                            \
  /* x86-64 */                                                                               \
  X(cx16) X(lahf_lm) X(popcnt) X(sse3) X(ssse3) X(sse4_1) X(sse4_2)                          \
  X(avx) X(avx2) X(bmi1) X(bmi2) X(f16c) X(fma) X(lzcnt) X(movbe)                            \
  X(avx_vnni)                                                                                \
  X(avx512f) X(avx512bw) X(avx512cd) X(avx512dq) X(avx512vl)                                 \
  X(avx512_vnni)                                                                             \
  X(avx512vbmi) X(avx512_vbmi2) X(avx512_bitalg) X(avx512_vpopcntdq) X(avx512_bf16)          \
  X(gfni) X(vaes) X(vpclmulqdq) X(aes) X(pclmulqdq)                                          \
  /* 64-bit ARM */                                                                           \
  X(asimd) X(asimddp) X(asimdhp) X(fphp) X(atomics) X(asimdrdm) X(crc32) X(i8mm) X(bf16)     \
  /* 32-bit ARM */                                                                           \
  X(neon) X(vfpv4)                                                                           \
  /* WebAssembly */                                                                          \
  X(simd128)
// clang-format on

// NOLINTBEGIN(readability-identifier-naming): the names are the kernel's.
enum class CpuFeature : uint8_t {
#define SIGHTLINE_ENUMERATOR(name) name,
  SIGHTLINE_CPU_FEATURES(SIGHTLINE_ENUMERATOR)
#undef SIGHTLINE_ENUMERATOR
};
// NOLINTEND(readability-identifier-naming)

const char* Name(CpuFeature feature);

// A set of features, one bit each.
using CpuFeatures = uint64_t;
constexpr CpuFeatures Bit(CpuFeature feature) {
  return CpuFeatures{1} << static_cast<unsigned>(feature);
}

// Detected once; extensions whose registers the operating system does not save are left out.
CpuFeatures SupportedCpuFeatures();

// How far ahead of its products decoding should ask for K and V, in bytes: what is under way
// between memory and a core; 0 on CPUs whose own prefetchers do better left alone: Zen 4, as far as
// was measured (docs/kernels/int8.md).
size_t DecodeFetchAhead();
// The same of an x86 CPU, by the vendor's name in CPUID leaf 0 and register eax of leaf 1.
size_t DecodeFetchAheadOf(const char (&vendor)[13], uint32_t signature);

// Of this thread's SVE vectors as the system has set them, 0 without SVE. CPUs of one system differ
// in it, and so do processes: never a constant, nor read once for all.
size_t SveVectorBytes();

}  // namespace internal
}  // namespace sightline

#endif  // SIGHTLINE_DISPATCH_CPU_FEATURES_H_
