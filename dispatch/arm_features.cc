#include "dispatch/arm_features.h"

#include <string.h>

namespace sightline {
namespace internal {
namespace {

using F = CpuFeature;

struct HwcapBit {
  unsigned bit;
  CpuFeature feature;
};

template <size_t kCount>
CpuFeatures FromBits(uint64_t word, const HwcapBit (&bits)[kCount]) {
  CpuFeatures features = 0;
  for (const HwcapBit& row : bits) {
    if ((word >> row.bit & 1) != 0) features |= Bit(row.feature);
  }
  return features;
}

// As in the kernel's Documentation/arch/arm64/elf_hwcaps.rst.
constexpr HwcapBit kArm64Hwcap[] = {{1, F::asimd},   {7, F::crc32},    {8, F::atomics},
                                    {9, F::fphp},    {10, F::asimdhp}, {12, F::asimdrdm},
                                    {20, F::asimddp}};
constexpr HwcapBit kArm64Hwcap2[] = {{13, F::i8mm}, {14, F::bf16}};

// As in the kernel's arch/arm/include/uapi/asm/hwcap.h; 64-bit kernels tell 32-bit programs the
// same.
constexpr HwcapBit kArm32Hwcap[] = {{12, F::neon}, {16, F::vfpv4}};

// Any of the names will do: those without FEAT_ were there before macOS 12 and iOS 15.
struct AppleName {
  const char* name;
  CpuFeatures features;
};
constexpr AppleName kAppleNames[] = {
    {"hw.optional.armv8_crc32", Bit(F::crc32)},
    {"hw.optional.arm.FEAT_CRC32", Bit(F::crc32)},
    {"hw.optional.armv8_1_atomics", Bit(F::atomics)},
    {"hw.optional.arm.FEAT_LSE", Bit(F::atomics)},
    {"hw.optional.arm.FEAT_RDM", Bit(F::asimdrdm)},
    {"hw.optional.neon_fp16", Bit(F::fphp) | Bit(F::asimdhp)},
    {"hw.optional.arm.FEAT_FP16", Bit(F::fphp) | Bit(F::asimdhp)},
    {"hw.optional.arm.FEAT_DotProd", Bit(F::asimddp)},
    {"hw.optional.arm.FEAT_I8MM", Bit(F::i8mm)},
    {"hw.optional.arm.FEAT_BF16", Bit(F::bf16)},
};

// PF_ARM_* of winnt.h; the last three came with the SDK of Windows 11 24H2. There is none for
// asimdrdm, but dot products are an extension of ARMv8.2, which includes ARMv8.1, where it is
// mandatory.
struct WindowsNumber {
  uint32_t number;
  CpuFeatures features;
};
constexpr WindowsNumber kWindowsNumbers[] = {
    {31, Bit(F::crc32)},                       // V8_CRC32
    {34, Bit(F::atomics)},                     // V81_ATOMIC
    {43, Bit(F::asimddp) | Bit(F::asimdrdm)},  // V82_DP
    {66, Bit(F::i8mm)},                        // V82_I8MM
    {67, Bit(F::fphp) | Bit(F::asimdhp)},      // V82_FP16
    {68, Bit(F::bf16)},                        // V86_BF16
};

}  // namespace

CpuFeatures LinuxArm64Features(uint64_t hwcap, uint64_t hwcap2, const char* board) {
  const CpuFeatures features = FromBits(hwcap, kArm64Hwcap) | FromBits(hwcap2, kArm64Hwcap2);
  // The Galaxy S9's first kernels report what its four small cores have. The four large ones are
  // ARMv8.0, and programs that believed it died as soon as they were moved there.
  if (strncmp(board, "exynos9810", strlen("exynos9810")) == 0) {
    return features & (Bit(F::asimd) | Bit(F::crc32));
  }
  return features;
}

CpuFeatures LinuxArm32Features(uint64_t hwcap) { return FromBits(hwcap, kArm32Hwcap); }

CpuFeatures AppleArm64Features(bool (*has_sysctl)(const char* name)) {
  CpuFeatures features = Bit(F::asimd);  // part of the architecture
  for (const AppleName& row : kAppleNames) {
    if (has_sysctl(row.name)) features |= row.features;
  }
  return features;
}

CpuFeatures WindowsArm64Features(bool (*is_present)(uint32_t feature)) {
  CpuFeatures features = Bit(F::asimd);  // Windows asks for it
  for (const WindowsNumber& row : kWindowsNumbers) {
    if (is_present(row.number)) features |= row.features;
  }
  return features;
}

}  // namespace internal
}  // namespace sightline
