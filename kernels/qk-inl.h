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

// Scales of integers, see QueryTile and KvTile, from row `row` and of key `key` of the tile.
template <class Scheme>
HWY_INLINE VF RowScale(const QueryTile& q, size_t row) {
  return Scheme::kQuantizedK ? hn::Load(df, q.row_scale + row) : hn::Zero(df);
}
template <class Scheme>
HWY_INLINE VF KeyScale(const KvTile& kv, size_t key) {
  return Scheme::kQuantizedK ? hn::Set(df, kv.k_scale[key]) : hn::Zero(df);
}

// A vector of sums as scores.
HWY_INLINE VF ScoreOf(VF sum, VF, VF) { return sum; }
HWY_INLINE VF ScoreOf(VI32 sum, VF row_scale, VF k_scale) {
  return hn::Mul(hn::Mul(hn::ConvertTo(df, sum), k_scale), row_scale);
}

// Where key `key` of the tile is among all.
HWY_INLINE VI32 KeyIndex(const KvTile& kv, size_t key) {
  return hn::Set(di32, static_cast<int32_t>(kv.key_begin + key));
}

// Sums of the products of keys [key, key + kStep) of the tile, counted from its beginning.
template <class Scheme, size_t kQV>
HWY_INLINE void SumScores(const QueryTile& q, const KvTile& kv, size_t num_steps, size_t key,
                          typename Scheme::QkProduct::Acc (&acc)[Scheme::kStep][kQV]) {
  using Product = typename Scheme::QkProduct;
  HWY_UNROLL(8)
  for (size_t v = 0; v < kQV; ++v) {
    HWY_UNROLL(8)
    for (size_t n = 0; n < Scheme::kStep; ++n) {
      acc[n][v] = hn::Zero(hn::DFromV<typename Product::Acc>());
    }
  }
  BlockProduct<Product, Scheme::kStep, kQV>(KeyColumns<Scheme>(kv, key), kKeyBlock * kLaneBytes,
                                            q.panel, num_steps, acc);
}

// Scores of these keys.
template <class Scheme, size_t kQV, bool kMasked>
HWY_INLINE void ScoreStep(const QueryTile& q, const KvTile& kv, size_t num_steps, size_t key,
                          const TileScratch& scratch) {
  constexpr size_t kStep = Scheme::kStep;
  typename Scheme::QkProduct::Acc acc[kStep][kQV];
  SumScores<Scheme, kQV>(q, kv, num_steps, key, acc);

  float* HWY_RESTRICT s_out = scratch.s + key * kQV * kLanes;
  HWY_UNROLL(8)
  for (size_t v = 0; v < kQV; ++v) {
    const size_t row = v * kLanes;
    VF tile_m = hn::Load(df, scratch.tile_m + row);
    const VF row_scale = RowScale<Scheme>(q, row);
    HWY_UNROLL(8)
    for (size_t n = 0; n < kStep; ++n) {
      VF s = ScoreOf(acc[n][v], row_scale, KeyScale<Scheme>(kv, key + n));
      if constexpr (kMasked) s = Hide(s, KeyIndex(kv, key + n), hn::Load(di32, q.limit + row));
      tile_m = hn::Max(tile_m, s);
      hn::Store(s, df, s_out + n * kQV * kLanes + row);
    }
    hn::Store(tile_m, df, scratch.tile_m + row);
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
