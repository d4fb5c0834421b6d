#include "dispatch/relative_buckets.h"

#include <math.h>

#include <algorithm>

namespace sightline {
namespace internal {

int64_t BucketOf(const RelativeBuckets& buckets, int64_t distance) {
  const int64_t of_side = BucketsOfSide(buckets);
  const int64_t exact = ExactBuckets(buckets);
  const int64_t side = buckets.bidirectional && distance > 0 ? of_side : 0;
  const int64_t apart =
      buckets.bidirectional ? std::abs(distance) : std::max<int64_t>(-distance, 0);
  if (apart < exact) return side + apart;
  // Rounded to f32 after each step, as the reference's tensors are.
  const float ratio = static_cast<float>(apart) / static_cast<float>(exact);
  const double largest_ratio =
      static_cast<double>(buckets.max_distance) / static_cast<double>(exact);
  const float logarithm = static_cast<float>(log(static_cast<double>(ratio)));
  const float share = logarithm / static_cast<float>(log(largest_ratio));
  const float step = share * static_cast<float>(of_side - exact);
  return side + std::min(of_side - 1, exact + static_cast<int64_t>(step));
}

}  // namespace internal
}  // namespace sightline
