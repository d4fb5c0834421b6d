// S = K·Q in f32 for one pair of tiles, and the rows' maxima over the tile. Prefill goes other ways
// where V is quantised (scores_fixed-inl.h) and where P is bf16 (softmax_bf16-inl.h), and comes
// here for what these have no form for: modified scores, rows that do not fit.
//
// Cost per kStep keys: head_dim / depth steps of BlockProduct, then for each of the kStep * kQV
// vectors one store and one maximum; of integers also a conversion and two multiplications.
#ifndef SIGHTLINE_KERNELS_QK_INL_H_
#define SIGHTLINE_KERNELS_QK_INL_H_

#include "kernels/fixed_point-inl.h"
#include "kernels/kv_tile-inl.h"
#include "kernels/mask-inl.h"
#include "kernels/schemes-inl.h"
#include "kernels/score_mods-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// Scales of integers, see QueryTile and KvTile, from row `row` and of key `key` of the tile.
template <class Keys>
HWY_INLINE VF RowScale(const QueryTile& q, size_t row) {
  return Keys::kQuantized ? hn::Load(df, q.row_scale + row) : hn::Zero(df);
}
template <class Keys>
HWY_INLINE VF KeyScale(const KvTile& kv, size_t key) {
  return Keys::kQuantized ? hn::Set(df, kv.k_scale[key]) : hn::Zero(df);
}

// A vector of sums as scores.
HWY_INLINE VF ScoreOf(VF sum, VF, VF) { return sum; }
HWY_INLINE VF ScoreOf(VI32 sum, VF row_scale, VF k_scale) {
  return hn::Mul(hn::Mul(hn::ConvertTo(df, sum), k_scale), row_scale);
}

// Where sums of Q·K begin: at 0 or, for what goes on in fixed point, at half of what a shift to
// that would drop.
enum class SumsBegin { kAtZero, kRounded };

// Sums of the products of keys [key, key + kKeys) of the tile, counted from its beginning, with
// kVectors vectors of rows from vector `first` on, of kQV.
template <class Keys, size_t kQV, SumsBegin kBegin, size_t kKeys, size_t kVectors>
HWY_INLINE void SumScores(const QueryTile& q, const KvTile& kv, size_t num_steps, size_t key,
                          size_t first, typename Keys::Product::Acc (&acc)[kKeys][kVectors]) {
  using Acc = typename Keys::Product::Acc;
  HWY_UNROLL(8)
  for (size_t v = 0; v < kVectors; ++v) {
    Acc init = hn::Zero(hn::DFromV<Acc>());
    if constexpr (kBegin == SumsBegin::kAtZero && Keys::kQuantized) {
      static_assert(Keys::kAdded == 0, "what K's bias adds is taken back by acc_init alone");
    }
    if constexpr (kBegin == SumsBegin::kRounded) {
      init = hn::Load(di32, q.acc_init + (first + v) * kLanes);
    }
    HWY_UNROLL(8)
    for (size_t n = 0; n < kKeys; ++n) acc[n][v] = init;
  }
  BlockProduct<typename Keys::Product, kKeys, kVectors>(
      KeyColumns<Keys>(kv, key), kKeyBlock * kLaneBytes, q.panel + first * kVectorBytes,
      kQV * kVectorBytes, num_steps, acc);
}

// Goes through the keys of a tile by blocks of them and of vectors of rows. whole(key): kStep keys
// that all rows see, and all kQV vectors. part(key): the same where all vectors see some of them.
// The rest, vector by vector, is alone(key, v): kMaskAlign keys of which vector v sees some. Tiles
// with fewer than Keys::kQueryVectors vectors are rare: they do without the second.
template <class Keys, size_t kQV, class WholeBody, class PartBody, class AloneBody>
HWY_INLINE void ForEachBlock(const TileMask& mask, const WholeBody& whole,
                             [[maybe_unused]] const PartBody& part, const AloneBody& alone) {
  constexpr size_t kStep = Keys::kStep;
  static_assert(kMaskAlign % kStep == 0 && kStep % 4 == 0, "whole steps, of whole lanes of bytes");
  for (size_t key = mask.any.first; key < mask.any.end; key += kMaskAlign) {
    if (AllSee(mask, key, kMaskAlign)) {
      for (size_t i = 0; i < kMaskAlign; i += kStep) whole(key + i);
      continue;
    }
    if constexpr (kQV == Keys::kQueryVectors) {
      if (HasSome(mask.common, key)) {
        for (size_t i = 0; i < kMaskAlign; i += kStep) part(key + i);
        continue;
      }
    }
    for (size_t v = 0; v < kQV; ++v) {
      if (HasSome(mask.seen[v], key)) alone(key, v);
    }
  }
}

// What becomes of the scores of such a block: they go on to be modified or weighed, or first to be
// multiplied by the scales of rows; or they are what all rows see, and their maxima are kept; or
// what is hidden has to be hidden first.
enum class ScoresAre { kRaw, kUnscaled, kSeen, kMasked };
template <class Keys, size_t kQV, ScoresAre kKind, size_t kKeys, size_t kVectors>
HWY_INLINE void ScoreStep(const QueryTile& q, const KvTile& kv, const TileMask& mask,
                          size_t head_dim, size_t key, size_t first, const TileScratch& scratch) {
  // Raw scores are also those of tiles whose sums go on in fixed point.
  constexpr bool kWithMaxima = kKind == ScoresAre::kSeen || kKind == ScoresAre::kMasked;
  constexpr SumsBegin kBegin =
      kKind == ScoresAre::kRaw && Keys::kQuantized ? SumsBegin::kRounded : SumsBegin::kAtZero;
  const size_t num_steps = RoundUp(head_dim, kDepthOf<Keys>) / kDepthOf<Keys>;
  typename Keys::Product::Acc acc[kKeys][kVectors];
  SumScores<Keys, kQV, kBegin>(q, kv, num_steps, key, first, acc);

  float* HWY_RESTRICT s_out = scratch.s + key * kQV * kLanes;
  HWY_UNROLL(8)
  for (size_t v = 0; v < kVectors; ++v) {
    const size_t row = (first + v) * kLanes;
    VF tile_m = hn::Load(df, scratch.tile_m + row);
    const bool is_scaled = kKind != ScoresAre::kUnscaled;
    const VF row_scale = is_scaled ? RowScale<Keys>(q, row) : hn::Set(df, 1.0f);
    HWY_UNROLL(8)
    for (size_t n = 0; n < kKeys; ++n) {
      if constexpr (kBegin == SumsBegin::kRounded) {
        acc[n][v] = hn::Sub(acc[n][v], hn::Set(di32, q.rounding));
      }
      VF s = ScoreOf(acc[n][v], row_scale, KeyScale<Keys>(kv, key + n));
      if constexpr (kKind == ScoresAre::kMasked) s = Hide<kQV>(s, mask, key + n, first + v);
      if constexpr (kWithMaxima) tile_m = hn::Max(tile_m, s);
      hn::Store(s, df, s_out + n * kQV * kLanes + row);
    }
    if constexpr (kWithMaxima) hn::Store(tile_m, df, scratch.tile_m + row);
  }
}

// Scores of what each vector of rows sees, to its padded end: what is beyond is hidden.
template <class Keys, size_t kQV>
HWY_INLINE void ScoreTile(const QueryTile& q, const KvTile& kv, const TileMask& mask,
                          size_t head_dim, const TileScratch& scratch) {
  for (size_t v = 0; v < kQV; ++v) hn::Store(NegInf(), df, scratch.tile_m + v * kLanes);
  ForEachBlock<Keys, kQV>(
      mask,
      [&](size_t key) HWY_ATTR {
        ScoreStep<Keys, kQV, ScoresAre::kSeen, Keys::kStep, kQV>(q, kv, mask, head_dim, key, 0,
                                                                 scratch);
      },
      [&](size_t key) HWY_ATTR {
        ScoreStep<Keys, kQV, ScoresAre::kMasked, Keys::kStep, kQV>(q, kv, mask, head_dim, key, 0,
                                                                   scratch);
      },
      [&](size_t key, size_t v) HWY_ATTR {
        ScoreStep<Keys, kQV, ScoresAre::kMasked, kMaskAlign, 1>(q, kv, mask, head_dim, key, v,
                                                                scratch);
      });
}

// Modifies the tile's scores, hides again what is hidden, and takes the maxima anew.
template <size_t kQV, class Mods>
HWY_NOINLINE void ModifyTile(Mods mods, const TileMask& mask, const TileScratch& scratch) {
  const bool all_see_all = AllSeeAll(mask, kMaskAlign);
  const size_t end = mask.any.padded_end();
  for (size_t v = 0; v < kQV; ++v) {
    float* HWY_RESTRICT row = scratch.s + v * kLanes;
    VF tile_m = NegInf();
    for (size_t key = mask.any.first; key < end; ++key) {
      float* at = row + key * kQV * kLanes;
      VF s = mods(hn::Load(df, at), key, v * kLanes);
      if (HWY_UNLIKELY(!all_see_all && !AllSee(mask, key, 1))) s = Hide<kQV>(s, mask, key, v);
      tile_m = hn::Max(tile_m, s);
      hn::Store(s, df, at);
    }
    hn::Store(tile_m, df, scratch.tile_m + v * kLanes);
  }
}

// Raw scores of what any vector of rows sees, to its padded end. One copy for all callers: here
// they go on to be modified, or are not what a task's time is made of.
template <class Keys, size_t kQV, ScoresAre kKind = ScoresAre::kRaw>
HWY_NOINLINE void ScoreAll(const QueryTile& q, const KvTile& kv, const TileMask& mask,
                           size_t head_dim, const TileScratch& scratch) {
  for (size_t key = mask.any.first; key < mask.any.padded_end(); key += Keys::kStep) {
    ScoreStep<Keys, kQV, kKind, Keys::kStep, kQV>(q, kv, mask, head_dim, key, 0, scratch);
  }
}

// Scores before the modifications of one pass over the tile, for which body(mods) is called: all of
// them, but where biases have to be added row by row. What is hidden is still to be hidden.
template <class Keys, size_t kQV, class Body>
HWY_INLINE void WithScores(const AttendTask& task, const QueryTile& q, const KvTile& kv,
                           const TileMask& mask, const TileScratch& scratch,
                           const BiasScratch& biases, const Body& body) {
  ScoreAll<Keys, kQV>(q, kv, mask, task.head.shape.head_dim, scratch);
  bool capped = task.softcap_log2e != 0.0f;
  if (HasBiasByRow(task)) {  // after the softcap and before biases by distance
    if (capped) {
      ModifyTile<kQV>(ScoreMods<true, false>(task, q, {nullptr}), mask, scratch);
    }
    capped = false;
    AddBiasByRow(task, q, kv.key_begin, mask.any.first, mask.any.end, kQV * kLanes, scratch.s,
                 biases);
  }
  WithScoreMods(task, q, capped, BiasOfTile(task, q, kv.key_begin, biases), body);
}

// Scores with all modifications of the task, if it has any, and their maxima; what is hidden is.
template <class Keys, size_t kQV>
HWY_NOINLINE void ScoreModifiedTile(const AttendTask& task, const QueryTile& q, const KvTile& kv,
                                    const TileMask& mask, const TileScratch& scratch,
                                    const BiasScratch& biases) {
  WithScores<Keys, kQV>(task, q, kv, mask, scratch, biases,
                        [&](const auto& mods) HWY_ATTR { ModifyTile<kQV>(mods, mask, scratch); });
}

// The same for who needs no maxima: raw scores where that is all there is to it.
template <class Keys, size_t kQV>
HWY_INLINE void ScoreToStore(const AttendTask& task, const QueryTile& q, const KvTile& kv,
                             const TileMask& mask, const TileScratch& scratch,
                             const BiasScratch& biases) {
  if (!ModifiesScores(task) && AllSeeAll(mask, kMaskAlign)) {
    ScoreAll<Keys, kQV>(q, kv, mask, task.head.shape.head_dim, scratch);
  } else {
    ScoreModifiedTile<Keys, kQV>(task, q, kv, mask, scratch, biases);
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_QK_INL_H_
