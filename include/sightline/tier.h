// File: sightline/tier.h
// The tiers: what one class of CPU runs. The best that the CPU supports is picked at run time;
// these calls, or the environment variable SIGHTLINE_TIER (for example SIGHTLINE_TIER=avx2),
// restrict it.
//
//   for (size_t i = 0; i < NumTiers(); ++i) {
//     const TierInfo tier = GetTier(i);
//     printf("%s%s%s\n", tier.name, tier.supported ? "" : " lacks ", tier.missing);
//   }
//
// All calls are thread-safe.
#ifndef SIGHTLINE_TIER_H_
#define SIGHTLINE_TIER_H_

#include <stddef.h>

#include "sightline/status.h"

namespace sightline {

struct TierInfo {
  const char* name;     // "avx2"; static storage, like `missing`
  bool supported;       // this CPU and its operating system can run it
  const char* missing;  // "avx512f avx512bw": what they lack; "" if supported
};

// Tiers compiled into the library, from the plainest (index 0, "scalar") to the best.
size_t NumTiers();
TierInfo GetTier(size_t index);  // index < NumTiers(); beyond it, a TierInfo with empty strings

// The tier that plans, memories and caches take when their description names none: the one given to
// SetActiveTier, else SIGHTLINE_TIER as it was at first use, else the best supported.
// kInvalidArgument or kUnsupported if SIGHTLINE_TIER names a tier that does not exist or cannot run
// here; *name is then null.
Status GetActiveTier(const char** name);

// Overrides the choice for what is created from now on; nullptr or "" takes the override back.
// kInvalidArgument: no such tier. kUnsupported: the message says which CPU features are missing.
// Neither changes the active tier.
Status SetActiveTier(const char* name);

}  // namespace sightline

#endif  // SIGHTLINE_TIER_H_
