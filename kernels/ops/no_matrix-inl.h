// For CPUs without products of two rows with two rows.
#ifndef SIGHTLINE_KERNELS_OPS_NO_MATRIX_INL_H_
#define SIGHTLINE_KERNELS_OPS_NO_MATRIX_INL_H_

#include "kernels/simd-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

struct MatrixOps {
  static constexpr bool kNative = false;
};

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_OPS_NO_MATRIX_INL_H_
