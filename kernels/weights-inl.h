// The second pass, for who asks for weights: exp(s - lse) of rows whose lse the first pass has
// stored, written out row by row or summed over rows, key by key. No tile of weights is ever larger
// than what one pair of tiles has.
//
// Many rows: S = K·Q once more and a 2^x for each score, then a transpose, since lanes are queries
// and rows are stored along keys: per kLanes scores four shuffles. Few rows: lanes are keys, as in
// decode. Traffic: K once per task of 192 rows, and what is written.
#ifndef SIGHTLINE_KERNELS_WEIGHTS_INL_H_
#define SIGHTLINE_KERNELS_WEIGHTS_INL_H_

#include "kernels/decode-inl.h"
#include "kernels/prefill-inl.h"
#include "kernels/store_weights-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// What a task of many rows keeps.
template <class Keys>
struct WeighScratch {
  QueryTiles<Keys> queries;
  TileScratch floats;
  BiasScratch biases;
  OwnTile own;
};

template <class Keys>
HWY_INLINE size_t LayOutWeighScratch(const PackedShape& shape, uint8_t* base,
                                     WeighScratch<Keys>& scratch) {
  ScratchArena arena(base);
  TakeQueryTiles(shape, 0, arena, scratch.queries);
  scratch.floats = TakeTileScratch(kTileRows<Keys>, 0, 0, arena);
  scratch.biases = TakeBiasScratch(kTileRows<Keys>, arena);
  scratch.own = TakeOwnTile(OwnKBytes<Keys>(shape), 0, arena);
  return arena.used();
}

template <class Keys>
size_t WeighManyScratchBytes(const PackedShape& shape) {
  WeighScratch<Keys> scratch;
  return LayOutWeighScratch(shape, nullptr, scratch);
}

// Weights of up to kTaskRows rows.
template <class Keys>
void WeighMany(const AttendTask& task, unsigned char* scratch_bytes) {
  WeighScratch<Keys> scratch;
  LayOutWeighScratch(task.head.shape, scratch_bytes, scratch);
  QueryTiles<Keys>& queries = scratch.queries;
  BeginQueryTiles(task, queries);
  for (size_t t = 0; t < queries.count; ++t) queries.unweighed[t] = true;
  WeighTiles<Keys>(task, queries, scratch.floats, scratch.biases, scratch.own);
}

// Scores of n keys of a row to weights; what follows is 0.
HWY_NOINLINE void ExpWeights(float factor, float reference, size_t n, float* HWY_RESTRICT s) {
  const VI32 end = hn::Set(di32, static_cast<int32_t>(n));
  for (size_t i = 0; i < kKvTile; i += kLanes) {
    const auto in_use = hn::Lt(hn::Iota(di32, static_cast<int32_t>(i)), end);
    const VF p = WeightOf(hn::Load(df, s + i), hn::Set(df, reference));
    hn::Store(hn::IfThenElseZero(hn::RebindMask(df, in_use), hn::Mul(p, hn::Set(df, factor))), df,
              s + i);
  }
}

template <class Keys>
HWY_INLINE size_t LayOutWeighFew(const PackedShape& shape, size_t num_rows, uint8_t* base,
                                 DecodeScratch& scratch) {
  return LayOutDecodeScratch(shape, num_rows, kDepthOf<Keys>, 1, 0, base, scratch);
}

template <class Keys>
size_t WeighFewScratchBytes(const PackedShape& shape) {
  DecodeScratch scratch;
  return LayOutWeighFew<Keys>(shape, kDecodeRows, nullptr, scratch);
}

// Weights of up to kDecodeRows rows.
template <class Keys>
void WeighFew(const AttendTask& task, unsigned char* scratch_bytes) {
  DecodeScratch scratch;
  const size_t num_rows = task.row_end - task.row_begin;
  LayOutWeighFew<Keys>(task.head.shape, num_rows, scratch_bytes, scratch);
  for (size_t r = 0; r < num_rows; ++r) {
    LoadDecodeRow<Keys>(task, task.row_begin + r, scratch.rows[r]);
  }
  const SeenKeys seen(task, scratch.rows, num_rows);
  for (size_t key = 0; key < task.weights.num_keys; key += kKvTile) {
    const size_t n = MinOf(kKvTile, task.weights.num_keys - key);
    const size_t in_use = key < task.kv_len && seen.IsSeen(key) ? MinOf(n, task.kv_len - key) : 0;
    if (in_use != 0) {
      const KvTile kv = KTileAt(task, key);
      for (size_t r = 0; r < num_rows; r += kRowBlock<Keys>) {
        ScoreRows<Keys>(task, scratch.rows + r, MinOf(kRowBlock<Keys>, num_rows - r), kv, 0, in_use,
                        scratch.biases);
      }
    }
    for (size_t r = 0; r < num_rows; ++r) {
      float* s = ScoresOf(scratch.rows[r], 0);
      ExpWeights(task.weights.factor, ReferenceOf(task, task.row_begin + r, scratch.rows[r].lack),
                 in_use, s);
      StoreWeights(task, task.row_begin + r, 1, key, n, s);
    }
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_WEIGHTS_INL_H_
