// Which tiers the tests run on, and a record of those that really ran.
#ifndef SIGHTLINE_TESTS_SUPPORT_TIERS_H_
#define SIGHTLINE_TESTS_SUPPORT_TIERS_H_

#include <string>
#include <vector>

#include "support/problem.h"

namespace sightline {
namespace testing {

// Tiers this CPU can run, from the plainest to the best; only the one that the environment variable
// SIGHTLINE_TESTS_TIER names, if it is set. If the CPU lacks that one the program ends with exit
// code 4, Catch2's for "all skipped", and if it never computed anything the program fails.
std::vector<const char*> SupportedTiers();
// The best of them.
const char* BestTier();
// Those with kernels of their own for a precision. What a tier takes over from one below is the
// same functions (OVER in cmake/tiers.cmake), and those are tested there; random cases run on every
// tier.
std::vector<const char*> TiersOf(Precision precision);

// Notes that a Plan of this tier computed something, or that what its kernels packed was looked at.
// A listener prints the record after the last test.
void RecordTierRun(const char* tier);

// False for a shape so large that a slow tier (scalar code, or any code in an emulator) would take
// seconds. Remainders and dimensions are covered by small shapes, which are always affordable.
bool IsAffordable(const Case& c, const char* tier);
// The tests run in an emulator, some thirty times slower.
bool IsEmulated();
// With sanitizers, some ten times slower: most of it the reference's time.
bool IsSanitized();

// What a tier takes x for. The vectors of ARMv7 take subnormal numbers for zeros, and make zeros of
// results that are.
float AsTierSees(const char* tier, float x);

// Whether this one of many cases is run on a tier: in the scalar tier and under an emulator one of
// three is, spread evenly; with sanitizers one of six, of which each tier has its own.
bool TakesTurn(const char* tier);

}  // namespace testing
}  // namespace sightline

#endif  // SIGHTLINE_TESTS_SUPPORT_TIERS_H_
