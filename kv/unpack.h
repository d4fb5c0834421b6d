// From packed K and V back to numbers, in plain C++ and for every layout: what a machine whose
// kernels do not read a layout needs, and what a conversion starts from. Not fast: a few ns for
// each element.
#ifndef SIGHTLINE_KV_UNPACK_H_
#define SIGHTLINE_KV_UNPACK_H_

#include <stddef.h>

#include "dispatch/kernel_table.h"

namespace sightline {
namespace internal {

// Keys [key, key + num_keys) of a head, whatever its bytes are: k [num_keys][head_dim], v
// [num_keys] [v_head_dim]. Quanta times scales plus centres; rotation and balance of K are taken
// back.
void UnpackRows(const PackedHead& head, size_t key, size_t num_keys, float* k, float* v);

// V of one key alone.
void UnpackValue(const PackedHead& head, size_t key, float* out);

}  // namespace internal
}  // namespace sightline

#endif  // SIGHTLINE_KV_UNPACK_H_
