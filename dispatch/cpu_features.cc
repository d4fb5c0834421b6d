#include "dispatch/cpu_features.h"

#include <string.h>

#include "dispatch/arm_features.h"

#if defined(__x86_64__)
#include <cpuid.h>
#elif (defined(__aarch64__) || defined(__arm__)) && defined(__linux__)
#include <sys/auxv.h>
#if defined(__aarch64__)
#include <sys/prctl.h>
#endif
#if defined(__ANDROID__)
#include <sys/system_properties.h>
#endif
#elif defined(__aarch64__) && defined(__APPLE__)
#include <sys/sysctl.h>
#elif defined(__aarch64__) && defined(_WIN32)
#include <windows.h>
#endif

namespace sightline {
namespace internal {
namespace {

constexpr const char* kNames[] = {
#define SIGHTLINE_NAME(name) #name,
    SIGHTLINE_CPU_FEATURES(SIGHTLINE_NAME)
#undef SIGHTLINE_NAME
};

#if defined(__x86_64__)

class FeatureSet {
 public:
  void AddIf(bool present, CpuFeature feature) {
    if (present) bits_ |= Bit(feature);
  }
  CpuFeatures bits() const { return bits_; }

 private:
  CpuFeatures bits_ = 0;
};

struct Registers {
  unsigned a, b, c, d;
};

Registers Cpuid(unsigned leaf, unsigned subleaf) {
  Registers r = {};
  __cpuid_count(leaf, subleaf, r.a, r.b, r.c, r.d);
  return r;
}

// Which register files the operating system saves at a context switch.
uint64_t Xcr0() {
  unsigned low, high;
  __asm__ volatile(".byte 0x0f, 0x01, 0xd0" : "=a"(low), "=d"(high) : "c"(0));  // xgetbv
  return low | static_cast<uint64_t>(high) << 32;
}

bool Has(unsigned word, int bit) { return (word >> bit & 1u) != 0; }

// Bits as in the Intel SDM, volume 2A, CPUID, and the AMD APM, volume 3, appendix E.
CpuFeatures Detect() {
  using F = CpuFeature;
  FeatureSet set;
  const unsigned max_leaf = Cpuid(0, 0).a;
  const unsigned max_extended = Cpuid(0x80000000u, 0).a;
  const Registers leaf1 = max_leaf >= 1 ? Cpuid(1, 0) : Registers{};
  const Registers leaf7 = max_leaf >= 7 ? Cpuid(7, 0) : Registers{};
  const Registers leaf7_1 = max_leaf >= 7 && leaf7.a >= 1 ? Cpuid(7, 1) : Registers{};
  const Registers extended = max_extended >= 0x80000001u ? Cpuid(0x80000001u, 0) : Registers{};

  set.AddIf(Has(leaf1.c, 0), F::sse3);
  set.AddIf(Has(leaf1.c, 1), F::pclmulqdq);
  set.AddIf(Has(leaf1.c, 9), F::ssse3);
  set.AddIf(Has(leaf1.c, 13), F::cx16);
  set.AddIf(Has(leaf1.c, 19), F::sse4_1);
  set.AddIf(Has(leaf1.c, 20), F::sse4_2);
  set.AddIf(Has(leaf1.c, 22), F::movbe);
  set.AddIf(Has(leaf1.c, 23), F::popcnt);
  set.AddIf(Has(leaf1.c, 25), F::aes);
  set.AddIf(Has(extended.c, 0), F::lahf_lm);
  set.AddIf(Has(extended.c, 5), F::lzcnt);
  set.AddIf(Has(leaf7.b, 3), F::bmi1);
  set.AddIf(Has(leaf7.b, 8), F::bmi2);
  set.AddIf(Has(leaf7.c, 8), F::gfni);

  const uint64_t saved = Has(leaf1.c, 27) ? Xcr0() : 0;
  if ((saved & 0x06) != 0x06) return set.bits();  // xmm and ymm
  set.AddIf(Has(leaf1.c, 28), F::avx);
  set.AddIf(Has(leaf1.c, 12), F::fma);
  set.AddIf(Has(leaf1.c, 29), F::f16c);
  set.AddIf(Has(leaf7.b, 5), F::avx2);
  set.AddIf(Has(leaf7_1.a, 4), F::avx_vnni);
  set.AddIf(Has(leaf7.c, 9), F::vaes);
  set.AddIf(Has(leaf7.c, 10), F::vpclmulqdq);

  if ((saved & 0xe6) != 0xe6) return set.bits();  // and opmask, zmm
  set.AddIf(Has(leaf7.b, 16), F::avx512f);
  set.AddIf(Has(leaf7.b, 17), F::avx512dq);
  set.AddIf(Has(leaf7.b, 28), F::avx512cd);
  set.AddIf(Has(leaf7.b, 30), F::avx512bw);
  set.AddIf(Has(leaf7.b, 31), F::avx512vl);
  set.AddIf(Has(leaf7.c, 1), F::avx512vbmi);
  set.AddIf(Has(leaf7.c, 6), F::avx512_vbmi2);
  set.AddIf(Has(leaf7.c, 11), F::avx512_vnni);
  set.AddIf(Has(leaf7.c, 12), F::avx512_bitalg);
  set.AddIf(Has(leaf7.c, 14), F::avx512_vpopcntdq);
  set.AddIf(Has(leaf7_1.a, 5), F::avx512_bf16);
  return set.bits();
}

#elif defined(__aarch64__) && defined(__linux__)

CpuFeatures Detect() {
  // The constants are younger than some C libraries; AT_HWCAP2 is 26 everywhere.
  const uint64_t hwcap2 = getauxval(26);
#if defined(__ANDROID__)
  char board[PROP_VALUE_MAX] = "";
  __system_property_get("ro.arch", board);
#else
  constexpr char board[] = "";
#endif
  return LinuxArm64Features(getauxval(AT_HWCAP), hwcap2, board);
}

#elif defined(__arm__) && defined(__linux__)

CpuFeatures Detect() { return LinuxArm32Features(getauxval(AT_HWCAP)); }

#elif defined(__aarch64__) && defined(__APPLE__)

CpuFeatures Detect() {
  return AppleArm64Features([](const char* name) {
    int32_t value = 0;
    size_t bytes = sizeof(value);
    return sysctlbyname(name, &value, &bytes, nullptr, 0) == 0 && value != 0;
  });
}

#elif defined(__aarch64__) && defined(_WIN32)

CpuFeatures Detect() {
  return WindowsArm64Features(
      [](uint32_t feature) { return IsProcessorFeaturePresent(feature) != 0; });
}

#elif defined(__aarch64__)

CpuFeatures Detect() { return Bit(CpuFeature::asimd); }  // part of the architecture

#elif defined(__wasm__)

CpuFeatures Detect() { return Bit(CpuFeature::simd128); }  // or nothing of the module would run

#else

CpuFeatures Detect() { return 0; }

#endif

}  // namespace

const char* Name(CpuFeature feature) { return kNames[static_cast<unsigned>(feature)]; }

CpuFeatures SupportedCpuFeatures() {
  static const CpuFeatures features = Detect();
  return features;
}

size_t DecodeFetchAheadOf(const char (&vendor)[13], uint32_t signature) {
  // Family and model with their extensions, as AMD's and Intel's manuals compute them.
  const uint32_t family = (signature >> 8 & 0xf) + (signature >> 20 & 0xff);
  const uint32_t model = (signature >> 4 & 0xf) | (signature >> 12 & 0xf0);
  const bool is_zen4 = strcmp(vendor, "AuthenticAMD") == 0 && family == 0x19 &&
                       ((model >= 0x10 && model <= 0x1f) || (model >= 0x60 && model <= 0x7f) ||
                        (model >= 0xa0 && model <= 0xaf));
  constexpr size_t kUnderWay = 6144;  // 50 GB/s x 120 ns
  return is_zen4 ? 0 : kUnderWay;
}

size_t DecodeFetchAhead() {
#if defined(__x86_64__)
  static const size_t bytes = [] {
    const Registers leaf0 = Cpuid(0, 0);
    char vendor[13] = {};
    memcpy(vendor, &leaf0.b, 4);
    memcpy(vendor + 4, &leaf0.d, 4);
    memcpy(vendor + 8, &leaf0.c, 4);
    return DecodeFetchAheadOf(vendor, Cpuid(1, 0).a);
  }();
  return bytes;
#else
  return DecodeFetchAheadOf({}, 0);
#endif
}

size_t SveVectorBytes() {
#if defined(__aarch64__) && defined(__linux__)
  constexpr int kGetVectorLength = 51;  // PR_SVE_GET_VL, which older headers lack
  constexpr int kLengthMask = 0xffff;   // beside it are flags of inheritance
  const int answer = prctl(kGetVectorLength);
  return answer < 0 ? 0 : static_cast<size_t>(answer & kLengthMask);
#else
  return 0;
#endif
}

}  // namespace internal
}  // namespace sightline
