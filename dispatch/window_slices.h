// Windows over K and V given as tensors: a long call as several short ones, one after the other.
//
// A query that sees a window of keys needs the packed form of no others. So a call whose sequences
// are much longer than their windows is cut along the queries into slices, each with the keys that
// it sees: what is packed stays in the caches until it is read, where all of it would not. Keys
// that two slices see are packed twice, a third of them at most. No bit of the result changes:
// tasks and tiles begin where they would, and int8 has the means of all keys.
#ifndef SIGHTLINE_DISPATCH_WINDOW_SLICES_H_
#define SIGHTLINE_DISPATCH_WINDOW_SLICES_H_

#include <stddef.h>

#include "dispatch/plan.h"
#include "sightline/attention.h"

namespace sightline {
namespace internal {

// Queries of a slice of these validated arguments: all of q where they are not to be cut.
int64_t QueriesOfSlice(const PlanImpl& plan, const AttentionArgs& args, size_t num_workers);

// Queries of the one that begins there: the last one takes up to a task more.
int64_t QueriesFrom(const AttentionArgs& args, int64_t begin, int64_t queries);

// The call for these queries: with the keys that they see, to a tile's bounds.
AttentionArgs SliceOf(const AttentionDesc& desc, const AttentionArgs& args, int64_t begin,
                      int64_t count);

// Keys that any of these slices has, at most.
int64_t KeysOfSlice(const AttentionDesc& desc, const AttentionArgs& args, int64_t queries);

}  // namespace internal
}  // namespace sightline

#endif  // SIGHTLINE_DISPATCH_WINDOW_SLICES_H_
