// What the systems' answers about ARM CPUs become: dispatch/arm_features.h given the answers of
// devices that are not here. The Features lines are those of /proc/cpuinfo, whose words stand in
// the order of the kernel's bits.
#include <stdlib.h>
#include <string.h>

#include <catch2/catch_test_macros.hpp>
#include <set>
#include <sstream>
#include <string>

#include "dispatch/arm_features.h"
#include "dispatch/cpu_features.h"

namespace sightline {
namespace testing {
namespace {

using internal::Bit;
using internal::CpuFeature;
using internal::CpuFeatures;

// hwcap_str of the kernel's arch/arm64/kernel/cpuinfo.c: AT_HWCAP from bit 0, then AT_HWCAP2.
constexpr const char* kArm64Words[] = {
    "fp",      "asimd",   "evtstrm",  "aes",      "pmull",      "sha1",    "sha2",   "crc32",
    "atomics", "fphp",    "asimdhp",  "cpuid",    "asimdrdm",   "jscvt",   "fcma",   "lrcpc",
    "dcpop",   "sha3",    "sm3",      "sm4",      "asimddp",    "sha512",  "sve",    "asimdfhm",
    "dit",     "uscat",   "ilrcpc",   "flagm",    "ssbs",       "sb",      "paca",   "pacg",
    "dcpodp",  "sve2",    "sveaes",   "svepmull", "svebitperm", "svesha3", "svesm4", "flagm2",
    "frint",   "svei8mm", "svef32mm", "svef64mm", "svebf16",    "i8mm",    "bf16",   "dgh"};
// And of arch/arm/kernel/setup.c.
constexpr const char* kArm32Words[] = {
    "swp",   "half",   "thumb",  "26bit",   "fastmult", "fpa",    "vfp",      "edsp",
    "java",  "iwmmxt", "crunch", "thumbee", "neon",     "vfpv3",  "vfpv3d16", "tls",
    "vfpv4", "idiva",  "idivt",  "vfpd32",  "lpae",     "evtstrm"};

template <size_t kCount>
unsigned IndexOf(const std::string& word, const char* const (&words)[kCount]) {
  for (unsigned i = 0; i < kCount; ++i) {
    if (word == words[i]) return i;
  }
  FAIL("no such word: " << word);
  return 0;
}

struct Hwcaps {
  uint64_t first = 0;
  uint64_t second = 0;
};
Hwcaps Arm64Hwcaps(const std::string& line) {
  Hwcaps hwcaps;
  std::istringstream words(line);
  for (std::string word; words >> word;) {
    const unsigned index = IndexOf(word, kArm64Words);
    (index < 32 ? hwcaps.first : hwcaps.second) |= uint64_t{1} << index % 32;
  }
  return hwcaps;
}
CpuFeatures OnLinux(const std::string& line, const char* board = "") {
  const Hwcaps hwcaps = Arm64Hwcaps(line);
  return internal::LinuxArm64Features(hwcaps.first, hwcaps.second, board);
}

std::string NamesOf(CpuFeatures features) {
  std::set<std::string> names;
  for (unsigned bit = 0; bit < 64; ++bit) {
    if ((features >> bit & 1) != 0) names.insert(internal::Name(static_cast<CpuFeature>(bit)));
  }
  std::string text;
  for (const std::string& name : names) text += (text.empty() ? "" : " ") + name;
  return text;
}

// Of CPUs for neon_dot, and for neon_i8mm, which are more than these need; see cmake/tiers.cmake.
constexpr char kDot[] = "asimd asimddp asimdhp asimdrdm atomics crc32 fphp";
constexpr char kI8mm[] = "asimd asimddp asimdhp asimdrdm atomics bf16 crc32 fphp i8mm";

constexpr char kCortexA76[] =
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm lrcpc dcpop "
    "asimddp";
constexpr char kNeoverseV1[] =
    "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm jscvt fcma "
    "lrcpc dcpop sha3 sm3 sm4 asimddp sha512 sve asimdfhm dit uscat ilrcpc flagm ssbs paca pacg "
    "dcpodp svei8mm svebf16 i8mm bf16 dgh";

TEST_CASE("features of Linux on 64-bit ARM", "[cpu_features]") {
  CHECK(NamesOf(OnLinux("fp asimd")) == "asimd");
  CHECK(NamesOf(OnLinux("fp asimd evtstrm crc32 cpuid")) == "asimd crc32");  // Raspberry Pi 4
  CHECK(NamesOf(OnLinux(kCortexA76)) == kDot);                               // Raspberry Pi 5
  CHECK(NamesOf(OnLinux(kNeoverseV1)) == kI8mm);                             // Graviton 3
  // Snapdragon 845: the cores multiply bytes, its kernel of 2018 does not say so.
  CHECK(NamesOf(OnLinux("fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp")) ==
        "asimd asimdhp atomics crc32 fphp");
  // A kernel that masks SVE leaves the rest as it is.
  std::string masked = kNeoverseV1;
  for (const char* word : {" sve ", " svei8mm ", " svebf16 "}) {
    masked.replace(masked.find(word), strlen(word), " ");
  }
  CHECK(NamesOf(OnLinux(masked)) == kI8mm);
  // Nor does SVE's multiplication of bytes stand for that of NEON, or one word's bits for
  // another's.
  CHECK(NamesOf(OnLinux("fp asimd sve svei8mm svebf16")) == "asimd");
  CHECK(NamesOf(internal::LinuxArm64Features(0, uint64_t{1} << 20, "")).empty());
  CHECK(NamesOf(internal::LinuxArm64Features(uint64_t{3} << 13, 0, "")).empty());
  CHECK(internal::LinuxArm64Features(0, 0, "") == 0);
}

TEST_CASE("each feature has a bit of its own", "[cpu_features]") {
  std::istringstream words(kI8mm);
  for (std::string word; words >> word;) {
    INFO(word);
    std::string line = std::string(" ") + kNeoverseV1 + " ";
    const size_t at = line.find(" " + word + " ");
    REQUIRE(at != std::string::npos);
    line.erase(at + 1, word.size());
    std::string others = std::string(" ") + kI8mm + " ";
    others.erase(others.find(" " + word + " ") + 1, word.size() + 1);
    CHECK(" " + NamesOf(OnLinux(line)) + " " == others);
    CHECK(NamesOf(OnLinux(word)) == word);
  }
}

TEST_CASE("kernels that report what not all cores have", "[cpu_features]") {
  const std::string galaxy_s9 =
      "fp asimd evtstrm aes pmull sha1 sha2 crc32 atomics fphp asimdhp cpuid asimdrdm";
  CHECK(NamesOf(OnLinux(galaxy_s9, "exynos9810")) == "asimd crc32");
  CHECK(NamesOf(OnLinux("fp asimd", "exynos9810")) == "asimd");
  CHECK(NamesOf(OnLinux(kCortexA76, "exynos9810_bsp")) == "asimd crc32");
  for (const char* other : {"", "exynos9820", "exynos981", "sdm845"}) {
    INFO(other);
    CHECK(NamesOf(OnLinux(kCortexA76, other)) == kDot);
  }
}

TEST_CASE("features of Linux on 32-bit ARM", "[cpu_features]") {
  const auto on_linux = [](const std::string& line) {
    uint64_t hwcap = 0;
    std::istringstream words(line);
    for (std::string word; words >> word;) hwcap |= uint64_t{1} << IndexOf(word, kArm32Words);
    return NamesOf(internal::LinuxArm32Features(hwcap));
  };
  // Raspberry Pi 2 (Cortex-A7), BeagleBone (Cortex-A8), Tegra 2, which has no NEON.
  CHECK(on_linux("half thumb fastmult vfp edsp neon vfpv3 tls vfpv4 idiva idivt vfpd32 lpae "
                 "evtstrm") == "neon vfpv4");
  CHECK(on_linux("half thumb fastmult vfp edsp thumbee neon vfpv3 tls vfpd32") == "neon");
  CHECK(on_linux("half thumb fastmult vfp edsp vfpv3 vfpv3d16 tls").empty());
  CHECK(on_linux("vfpv4") == "vfpv4");
}

// The sysctls that are 1; a plain function asks.
std::set<std::string> apple_names;
std::string OnApple(const std::set<std::string>& names) {
  apple_names = names;
  return NamesOf(
      internal::AppleArm64Features([](const char* name) { return apple_names.count(name) != 0; }));
}

TEST_CASE("features of Apple's systems", "[cpu_features]") {
  const std::string feat = "hw.optional.arm.FEAT_";
  const std::set<std::string> m1 = {"hw.optional.armv8_crc32",
                                    "hw.optional.armv8_1_atomics",
                                    "hw.optional.neon_fp16",
                                    "hw.optional.armv8_2_fhm",
                                    feat + "LSE",
                                    feat + "RDM",
                                    feat + "FP16",
                                    feat + "DotProd",
                                    feat + "FHM"};
  std::set<std::string> m2 = m1;
  m2.insert({feat + "I8MM", feat + "BF16"});
  CHECK(OnApple({}) == "asimd");
  CHECK(OnApple(m1) == kDot);
  CHECK(OnApple(m2) == kI8mm);
  // M1 under macOS 11, which knows no FEAT_ names; A11, which has no dot products.
  CHECK(OnApple({"hw.optional.armv8_crc32", "hw.optional.armv8_1_atomics", "hw.optional.neon_fp16",
                 "hw.optional.armv8_2_fhm"}) == "asimd asimdhp atomics crc32 fphp");
  std::set<std::string> a11 = m1;
  a11.erase(feat + "DotProd");
  CHECK(OnApple(a11) == "asimd asimdhp asimdrdm atomics crc32 fphp");
  CHECK(OnApple({feat + "I8MM"}) == "asimd i8mm");
}

std::set<uint32_t> windows_numbers;
std::string OnWindows(const std::set<uint32_t>& numbers) {
  windows_numbers = numbers;
  return NamesOf(internal::WindowsArm64Features(
      [](uint32_t number) { return windows_numbers.count(number) != 0; }));
}

TEST_CASE("features of Windows on ARM", "[cpu_features]") {
  constexpr uint32_t kCrc32 = 31, kAtomics = 34, kDotProducts = 43, kSve = 46, kI8mmNumber = 66,
                     kFp16 = 67, kBf16 = 68;
  CHECK(OnWindows({}) == "asimd");
  CHECK(OnWindows({kCrc32}) == "asimd crc32");  // Snapdragon 835
  CHECK(OnWindows({kCrc32, kAtomics, kDotProducts, kFp16}) == kDot);
  CHECK(OnWindows({kCrc32, kAtomics, kDotProducts, kI8mmNumber, kFp16, kBf16}) == kI8mm);
  // Before 24H2 nobody tells of f16: it is not taken for granted because of the dot products, which
  // come without, as in neon_dot.
  CHECK(OnWindows({kCrc32, kAtomics, kDotProducts}) == "asimd asimddp asimdrdm atomics crc32");
  CHECK(OnWindows({kSve, 57}) == "asimd");  // SVE_I8MM
}

// Signatures as CPUID reports them: extended family and model, family, model, stepping.
TEST_CASE("decode fetches ahead but on Zen 4", "[cpu_features]") {
  constexpr struct {
    const char (&vendor)[13];
    uint32_t signature;
    bool fetches;
  } kCpus[] = {{"AuthenticAMD", 0x00a10f11, false},  // Zen 4: Genoa
               {"AuthenticAMD", 0x00a60f12, false},  // Raphael
               {"AuthenticAMD", 0x00a70f41, false},  // Phoenix
               {"AuthenticAMD", 0x00aa0f02, false},  // Bergamo
               {"AuthenticAMD", 0x00a00f11, true},   // Zen 3: Milan
               {"AuthenticAMD", 0x00a50f00, true},   // Cezanne
               {"AuthenticAMD", 0x00b00f21, true},   // Zen 5: Turin
               {"GenuineIntel", 0x00a10f11, true},
               {"GenuineIntel", 0x000c06f2, true}};  // Emerald Rapids
  for (const auto& cpu : kCpus) {
    INFO(cpu.vendor << " " << std::hex << cpu.signature);
    CHECK((internal::DecodeFetchAheadOf(cpu.vendor, cpu.signature) != 0) == cpu.fetches);
  }
#if !defined(__x86_64__)
  CHECK(internal::DecodeFetchAhead() != 0);
#endif
}

TEST_CASE("this CPU's features belong to its architecture", "[cpu_features]") {
  const std::string names = " " + NamesOf(internal::SupportedCpuFeatures()) + " ";
#if defined(__x86_64__)
  CHECK(names.find(" sse3 ") != std::string::npos);
#elif defined(__aarch64__)
  CHECK(names.find(" asimd ") != std::string::npos);
#endif
#if !defined(__x86_64__)
  CHECK(names.find(" sse3 ") == std::string::npos);
#endif
#if !defined(__aarch64__)
  CHECK(names.find(" asimd ") == std::string::npos);
  CHECK(internal::SveVectorBytes() == 0);
#endif
#if !defined(__arm__)
  CHECK(names.find(" neon ") == std::string::npos);
#endif
  const size_t sve = internal::SveVectorBytes();
  CHECK((sve % 16 == 0 && sve <= 256));
  INFO("SVE vectors of " << sve << " bytes");
  if (const char* expected = getenv("SIGHTLINE_TESTS_SVE_BYTES"); expected != nullptr) {
    CHECK(std::to_string(sve) == expected);
  }
}

}  // namespace
}  // namespace testing
}  // namespace sightline
