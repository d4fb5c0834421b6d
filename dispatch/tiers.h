// The tiers of this build and the choice between them. Public side: sightline/tier.h.
#ifndef SIGHTLINE_DISPATCH_TIERS_H_
#define SIGHTLINE_DISPATCH_TIERS_H_

#include "dispatch/kernel_table.h"
#include "sightline/kv.h"
#include "sightline/status.h"

namespace sightline {
namespace internal {

// The kernels of the tier called `name`, or of the active tier if name is null or empty. Fails for
// tiers that do not exist or that this CPU cannot run: a table is only reachable through here, so
// that no code of a tier runs before its features have been checked.
Status FindKernels(const char* name, const KernelTable** table);

// Those for K and V in a format, whose precision is known to be one.
Status FindKernels(const KvFormat& format, const PrecisionKernels** kernels);

}  // namespace internal
}  // namespace sightline

#endif  // SIGHTLINE_DISPATCH_TIERS_H_
