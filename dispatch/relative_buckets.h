// T5's buckets of relative positions, in f32 as the reference computes them (Raffel et al. 2020;
// relative_attention in mesh-tensorflow and transformers): the bucket of a distance on the border
// of two is part of what a model was trained with.
#ifndef SIGHTLINE_DISPATCH_RELATIVE_BUCKETS_H_
#define SIGHTLINE_DISPATCH_RELATIVE_BUCKETS_H_

#include <stdint.h>

#include "sightline/attention.h"

namespace sightline {
namespace internal {

// Buckets of one side, and how many of them hold one distance each.
inline int64_t BucketsOfSide(const RelativeBuckets& buckets) {
  return buckets.bidirectional ? buckets.num_buckets / 2 : buckets.num_buckets;
}
inline int64_t ExactBuckets(const RelativeBuckets& buckets) { return BucketsOfSide(buckets) / 2; }

// The bucket of a key `distance` positions behind the query (negative: before it).
int64_t BucketOf(const RelativeBuckets& buckets, int64_t distance);

}  // namespace internal
}  // namespace sightline

#endif  // SIGHTLINE_DISPATCH_RELATIVE_BUCKETS_H_
