#include "dispatch/tiers.h"

#include <stdlib.h>
#include <string.h>

#include <atomic>

#include "dispatch/cpu_features.h"
#include "sightline/tier.h"

namespace sightline {

// Declares every tier's getter; defined in kernels/tier.cc and kernels/scalar.cc.
#define SIGHTLINE_TIER_ROW(tier, needs, tests_only, over) \
  namespace tier {                                        \
  const internal::KernelTable& GetTable();                \
  }
#include "sightline_tiers.inc"
#undef SIGHTLINE_TIER_ROW

namespace internal {
namespace {

struct Tier {
  const char* name;
  CpuFeatures needs;
  bool tests_only;  // runs when named, and is never the best
  const KernelTable& (*get_table)();
  const KernelTable& (*get_table_below)();  // for the precisions that it has no kernels for
};

// Worst to best, as in cmake/tiers.cmake.
constexpr Tier kTiers[] = {
#define SIGHTLINE_TIER_ROW(tier, needs, tests_only, over) \
  {#tier, needs, tests_only, &::sightline::tier::GetTable, &::sightline::over::GetTable},
#include "sightline_tiers.inc"
#undef SIGHTLINE_TIER_ROW
};
constexpr size_t kNumTiers = sizeof(kTiers) / sizeof(kTiers[0]);

// All features of x86-64 together need 220.
constexpr size_t kMaxListBytes = 320;

// Appends a word to a list of words, as far as there is room.
void AppendWord(const char* word, char (&list)[kMaxListBytes]) {
  if (list[0] != '\0') strncat(list, " ", sizeof(list) - strlen(list) - 1);
  strncat(list, word, sizeof(list) - strlen(list) - 1);
}

// Names of the features that `tier` needs and the CPU lacks, for all tiers, computed once.
struct MissingFeatures {
  char text[kNumTiers][kMaxListBytes];

  MissingFeatures() {
    for (size_t i = 0; i < kNumTiers; ++i) {
      text[i][0] = '\0';
      CpuFeatures missing = kTiers[i].needs & ~SupportedCpuFeatures();
      for (unsigned bit = 0; missing != 0; ++bit, missing >>= 1) {
        if ((missing & 1) != 0) AppendWord(Name(static_cast<CpuFeature>(bit)), text[i]);
      }
    }
  }
};

const char* Missing(size_t index) {
  static const MissingFeatures missing;
  return missing.text[index];
}

// What to write after "tiers are": "scalar sse4 avx2".
struct TierList {
  char text[kMaxListBytes] = "";

  TierList() {
    for (const Tier& tier : kTiers) AppendWord(tier.name, text);
  }
};

// Index of the tier called `name` if it can run here. `source` says who asked for it.
Status FindTier(const char* name, const char* source, size_t* index) {
  for (size_t i = 0; i < kNumTiers; ++i) {
    if (strcmp(kTiers[i].name, name) != 0) continue;
    if (Missing(i)[0] != '\0') {
      return Status::Error(StatusCode::kUnsupported,
                           "%s: tier \"%s\" needs what this CPU lacks: %s", source, name,
                           Missing(i));
    }
    *index = i;
    return Status();
  }
  return Status::Error(StatusCode::kInvalidArgument,
                       "%s: no tier is called \"%.40s\"; the tiers of this build are: %s", source,
                       name, TierList().text);
}

size_t BestTier() {
  size_t best = 0;
  for (size_t i = 0; i < kNumTiers; ++i) {
    if (Missing(i)[0] == '\0' && !kTiers[i].tests_only) best = i;
  }
  return best;
}

// SIGHTLINE_TIER, read once: later changes of the environment would race with readers.
struct Environment {
  size_t tier = BestTier();
  Status status;

  Environment() {
    const char* name = getenv("SIGHTLINE_TIER");
    if (name != nullptr && name[0] != '\0') status = FindTier(name, "SIGHTLINE_TIER", &tier);
  }
};

constexpr size_t kNoOverride = kNumTiers;
std::atomic<size_t> tier_override{kNoOverride};

Status FindActiveTier(size_t* index) {
  const size_t chosen = tier_override.load(std::memory_order_acquire);
  if (chosen != kNoOverride) {
    *index = chosen;
    return Status();
  }
  static const Environment environment;
  *index = environment.tier;
  return environment.status;
}

// A tier's table with nothing missing.
KernelTable CompleteTable(const Tier& tier) {
  KernelTable table = tier.get_table();
  const KernelTable& below = tier.get_table_below();
  for (size_t i = 0; i < kNumPrecisions; ++i) {
    if (table.kernels[i].prefill == nullptr) table.kernels[i] = below.kernels[i];
  }
  return table;
}

// Those of the tiers that can run here.
struct Tables {
  KernelTable tables[kNumTiers];

  Tables() {
    for (size_t i = 0; i < kNumTiers; ++i) {
      tables[i] = Missing(i)[0] == '\0' ? CompleteTable(kTiers[i]) : KernelTable();
    }
  }
};

}  // namespace

Status FindKernels(const char* name, const KernelTable** table) {
  size_t index = 0;
  const bool any = name == nullptr || name[0] == '\0';
  Status status = any ? FindActiveTier(&index) : FindTier(name, "tier", &index);
  if (!status.ok()) return status;
  static const Tables tables;
  *table = &tables.tables[index];
  return status;
}

Status FindKernels(const KvFormat& format, const PrecisionKernels** kernels) {
  const KernelTable* table = nullptr;
  Status status = FindKernels(format.tier, &table);
  if (status.ok()) *kernels = &table->kernels[static_cast<size_t>(format.precision)];
  return status;
}

}  // namespace internal

size_t NumTiers() { return internal::kNumTiers; }

TierInfo GetTier(size_t index) {
  if (index >= internal::kNumTiers) return TierInfo{"", false, ""};
  const char* missing = internal::Missing(index);
  return TierInfo{internal::kTiers[index].name, missing[0] == '\0', missing};
}

Status GetActiveTier(const char** name) {
  if (name == nullptr) return Status::Error(StatusCode::kInvalidArgument, "name is null");
  *name = nullptr;
  size_t index = 0;
  Status status = internal::FindActiveTier(&index);
  if (status.ok()) *name = internal::kTiers[index].name;
  return status;
}

Status SetActiveTier(const char* name) {
  size_t index = internal::kNoOverride;
  if (name != nullptr && name[0] != '\0') {
    if (Status status = internal::FindTier(name, "tier", &index); !status.ok()) return status;
  }
  internal::tier_override.store(index, std::memory_order_release);
  return Status();
}

}  // namespace sightline
