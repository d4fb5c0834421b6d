// Attention over several memories and caches in double precision, on what they have stored: what
// comes out, lse and weights, and how far off a kernel may be.
//
//   s[j] = softcap(scale * (q'·k'[j] + q·k_center)) + biases + the segment's bias
//
// q': the query as the segment's precision takes it; everything else as in support/oracle.h. There
// one matrix of K serves all keys, and one bound a row: here each key has its own, so that a
// segment with a large mean or bias does not excuse the others.
#ifndef SIGHTLINE_TESTS_SUPPORT_SEGMENT_ORACLE_H_
#define SIGHTLINE_TESTS_SUPPORT_SEGMENT_ORACLE_H_

#include <stdint.h>

#include <functional>
#include <vector>

#include "support/oracle.h"
#include "support/problem.h"
#include "support/stored.h"
#include "support/tensor.h"

namespace sightline {
namespace testing {

// Keys of a sequence that come from one segment.
struct StoredPart {
  StoredHeads heads;
  size_t count = 0;         // keys in use
  std::vector<float> bias;  // [heads]; empty: 0
};

struct SegmentInput : Masks {
  const Tensor* q = nullptr;  // f32
  const char* tier = nullptr;
  int64_t kv_heads = 1;
  int64_t v_head_dim = 1;
  int64_t beams = 1;
  float scale = 0.0f;
  float softcap = 0.0f;
  std::function<double(int64_t b, int64_t l, int64_t h, int64_t j)> bias;
  RelativeBuckets relative_buckets;
  std::vector<float> relative_bias;            // [num_buckets][heads]
  std::vector<float> alibi_slopes, sinks;      // [heads]
  std::vector<std::vector<StoredPart>> parts;  // of each sequence of K and V
  std::vector<int32_t> prefix_lens;            // of each; empty: 0
};

struct SegmentOutput {
  Expected out;                               // with lse
  Expected weights;                           // [batch, q_len, heads, longest sequence]
  std::vector<double> second_pass_tolerance;  // of the same
  std::vector<bool> empty;                    // [batch][q_len][heads]: the row sees no key
};

SegmentOutput ComputeSegments(const SegmentInput& in);

// Sums of weights over queries, and over groups or beams if mass has so many heads or entries.
Expected MassOf(const SegmentOutput& output, int64_t batch, int64_t heads);

}  // namespace testing
}  // namespace sightline

#endif  // SIGHTLINE_TESTS_SUPPORT_SEGMENT_ORACLE_H_
