// What operating systems on ARM say about the CPU, as features: functions of their answers alone,
// so that tests on any machine can put the answers of phones to them. Who asks is cpu_features.cc.
//
// Whatever the instruction set would allow, only what the system reports is used: a kernel that
// masks a feature has its reasons, such as an erratum or a core of the same chip without it. Linux
// reports what all cores share, and so do the others; where that went wrong in the field is an
// exception in arm_features.cc.
#ifndef SIGHTLINE_DISPATCH_ARM_FEATURES_H_
#define SIGHTLINE_DISPATCH_ARM_FEATURES_H_

#include <stdint.h>

#include "dispatch/cpu_features.h"

namespace sightline {
namespace internal {

// Of getauxval(AT_HWCAP) and (AT_HWCAP2), and of Android's property ro.arch, "" on other systems.
CpuFeatures LinuxArm64Features(uint64_t hwcap, uint64_t hwcap2, const char* board);
CpuFeatures LinuxArm32Features(uint64_t hwcap);

// has_sysctl(name): whether sysctlbyname knows the name and says 1.
CpuFeatures AppleArm64Features(bool (*has_sysctl)(const char* name));

// is_present(feature): IsProcessorFeaturePresent.
CpuFeatures WindowsArm64Features(bool (*is_present)(uint32_t feature));

}  // namespace internal
}  // namespace sightline

#endif  // SIGHTLINE_DISPATCH_ARM_FEATURES_H_
