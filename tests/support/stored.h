// What memories and caches hold of each key, in numbers: read where kv/layout.h says it is, and
// compared with what went in by nobody but the test.
#ifndef SIGHTLINE_TESTS_SUPPORT_STORED_H_
#define SIGHTLINE_TESTS_SUPPORT_STORED_H_

#include <stddef.h>

#include <memory>
#include <set>
#include <vector>

#include "kv/packed_kv.h"
#include "sightline/kv.h"

namespace sightline {
namespace testing {

// Keys of one sequence and kv head. K and V are worth their quanta times the steps, plus the
// centers, or, in floats, what is there; rotated K stays as it is.
struct StoredHead {
  Precision precision = Precision::kF32;
  bool rotate_k = false;
  size_t head_dim = 0;
  size_t v_head_dim = 0;
  std::vector<bool> present;           // [keys]: not evicted; of others all numbers are 0
  std::vector<double> k, v;            // [keys][head_dim], [keys][v_head_dim]: without the centers
  std::vector<double> k_step, v_step;  // [keys], [keys][v_head_dim]; of floats 0
  std::vector<float> k_center, v_center;  // of floats 0
  std::vector<float> q_factor;            // [head_dim] of rotated K, or empty

  size_t num_keys() const { return present.size(); }
};

// Of all kv heads of a sequence, the first num_keys keys.
using StoredHeads = std::shared_ptr<const std::vector<StoredHead>>;
StoredHeads ReadStored(const internal::PackedKv& packed, size_t batch, size_t num_keys);

// Adds the pages that a memory or cache holds. False if two of a sequence differ in what they have
// in common.
bool CollectPages(const internal::PackedKv& packed, std::set<const unsigned char*>* pages);

}  // namespace testing
}  // namespace sightline

#endif  // SIGHTLINE_TESTS_SUPPORT_STORED_H_
