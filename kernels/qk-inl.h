// S = K·Q in f32 for one pair of tiles, and the rows' maxima over the tile. Where V is quantised:
// scores_fixed-inl.h; where P is bf16, softmax_bf16-inl.h mostly goes straight to P.
//
// Cost per kStep keys: head_dim / depth steps of BlockProduct, then for each of the kStep * kQV
// vectors one store and one maximum; of integers also a conversion and two multiplications.
#ifndef SIGHTLINE_KERNELS_QK_INL_H_
#define SIGHTLINE_KERNELS_QK_INL_H_

#include "kernels/kv_tile-inl.h"
#include "kernels/schemes-inl.h"
#include "kernels/score_mods-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// A vector of sums as scores. row_scale, k_scale: of integers, see QueryTile and KvTile.
HWY_INLINE VF ScoreOf(VF sum, VF, VF) { return sum; }
HWY_INLINE VF ScoreOf(VI32 sum, VF row_scale, VF k_scale) {
  return hn::Mul(hn::Mul(hn::ConvertTo(df, sum), k_scale), row_scale);
}

// Keys [key, key + kStep) of the tile, counted from its beginning.
template <class Scheme, size_t kQV, bool kMasked>
HWY_INLINE void ScoreStep(const QueryTile& q, const KvTile& kv, size_t num_steps, size_t key,
                          const TileScratch& scratch) {
  constexpr size_t kStep = Scheme::kStep;
  using Product = typename Scheme::QkProduct;
  using Acc = typename Product::Acc;
  Acc acc[kStep][kQV];
  HWY_UNROLL(8)
  for (size_t v = 0; v < kQV; ++v) {
    HWY_UNROLL(8)
    for (size_t n = 0; n < kStep; ++n) acc[n][v] = hn::Zero(hn::DFromV<Acc>());
  }

  BlockProduct<Product, kStep, kQV>(KeyColumns<Scheme>(kv, key), kKeyBlock * kLaneBytes, q.panel,
                                    num_steps, acc);

  float* HWY_RESTRICT s_out = scratch.s + key * kQV * kLanes;
  HWY_UNROLL(8)
  for (size_t v = 0; v < kQV; ++v) {
    VF tile_m = hn::Load(df, scratch.tile_m + v * kLanes);
    const VF row_scale =
        Scheme::kQuantizedK ? hn::Load(df, q.row_scale + v * kLanes) : hn::Zero(df);
    HWY_UNROLL(8)
    for (size_t n = 0; n < kStep; ++n) {
      const VF k_scale = Scheme::kQuantizedK ? hn::Set(df, kv.k_scale[key + n]) : hn::Zero(df);
      VF s = ScoreOf(acc[n][v], row_scale, k_scale);
      if constexpr (kMasked) {
        const VI32 index = hn::Set(di32, static_cast<int32_t>(kv.key_begin + key + n));
        s = Hide(s, index, hn::Load(di32, q.limit + v * kLanes));
      }
      tile_m = hn::Max(tile_m, s);
      hn::Store(s, df, s_out + (n * kQV + v) * kLanes);
    }
    hn::Store(tile_m, df, scratch.tile_m + v * kLanes);
  }
}

// The tile's first num_keys keys, rounded up to kStep: what is beyond is hidden.
template <class Scheme, size_t kQV>
HWY_INLINE void ScoreTile(const QueryTile& q, const KvTile& kv, size_t head_dim, size_t num_keys,
                          const TileScratch& scratch) {
  const size_t num_steps = RoundUp(head_dim, kQkDepth<Scheme>) / kQkDepth<Scheme>;
  for (size_t v = 0; v < kQV; ++v) hn::Store(NegInf(), df, scratch.tile_m + v * kLanes);
  for (size_t key = 0; key < num_keys; key += Scheme::kStep) {
    if (kv.key_begin + key + Scheme::kStep <= q.min_limit) {
      ScoreStep<Scheme, kQV, false>(q, kv, num_steps, key, scratch);
    } else {
      ScoreStep<Scheme, kQV, true>(q, kv, num_steps, key, scratch);
    }
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_QK_INL_H_
