// What happens to a score between Q·K and softmax. One function per modification, composed by the
// caller at compile time. Limits express every mask that shows a row a prefix of the keys: causal,
// padding.
#ifndef SIGHTLINE_KERNELS_SCORE_MODS_INL_H_
#define SIGHTLINE_KERNELS_SCORE_MODS_INL_H_

#include "kernels/simd-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// Lanes whose key index is below their row's limit.
HWY_INLINE hn::Mask<DF> Visible(VI32 index, VI32 limit) {
  return hn::RebindMask(df, hn::Gt(limit, index));
}

// Hidden scores become -inf, whatever the product was (NaN included).
HWY_INLINE VF Hide(VF s, VI32 index, VI32 limit) {
  return hn::IfThenElse(Visible(index, limit), s, NegInf());
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_SCORE_MODS_INL_H_
