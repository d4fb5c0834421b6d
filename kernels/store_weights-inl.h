// Attention weights on their way to the caller's rows, or to sums of them.
//
// Lanes are queries and rows are stored along keys: kLanes scores take four shuffles. Weights are
// exp(s - lse). A second pass, when lse is known, has them tile by tile (weights-inl.h). Where
// scores are in f32 anyway, prefill stores them as they come, and makes weights of them once a row
// is done and its scores are still in L2: no K·Q is computed twice.
#ifndef SIGHTLINE_KERNELS_STORE_WEIGHTS_INL_H_
#define SIGHTLINE_KERNELS_STORE_WEIGHTS_INL_H_

#include "kernels/mask-inl.h"
#include "kernels/rows-inl.h"
#include "kernels/schemes-inl.h"
#include "kernels/score_mods-inl.h"
#include "kernels/store_output-inl.h"
#include "kernels/transpose-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// A row's lse in octaves, less what its scores are to be raised by, or any number for a row that
// sees nothing: 2^-inf is 0 all the same.
HWY_INLINE float ReferenceOf(const AttendTask& task, size_t r, float lack) {
  float lse;
  CopyElement<float>(RowAt(task.lse, r).data, &lse);
  return lse == kNegInf ? 0.0f : lse * kLog2E - RaisedBy(task, r, lack);
}

// The weight of a score. That of a hidden key is 0 in any row, also if the row's lse is NaN.
HWY_INLINE VF WeightOf(VF s, VF reference) {
  return hn::IfThenZeroElse(hn::Eq(s, NegInf()), Exp2(hn::Sub(s, reference)));
}

// Adds n elements to a row of f32.
HWY_INLINE void AddToRow(const float* HWY_RESTRICT from, size_t n, const Row& row) {
  size_t i = 0;
  if (HWY_LIKELY(IsDense(row))) {
    float* to = reinterpret_cast<float*>(row.data);
    for (; i + kLanes <= n; i += kLanes) {
      hn::StoreU(hn::Add(hn::LoadU(df, to + i), hn::Load(df, from + i)), df, to + i);
    }
  }
  for (; i < n; ++i) {
    unsigned char* at = row.data + static_cast<int64_t>(i) * row.dim_stride;
    float sum;
    CopyElement<float>(at, &sum);
    sum += from[i];
    CopyElement<float>(&sum, at);
  }
}

// Weights of `count` rows from row r on, kKvTile apart, for n keys from `key` on, to where the task
// wants them. `from` is vector-aligned.
HWY_NOINLINE void StoreWeights(const AttendTask& task, size_t r, size_t count, size_t key, size_t n,
                               const float* HWY_RESTRICT from) {
  const WeightsTask& weights = task.weights;
  if (weights.out.data != nullptr) {
    Rows out = weights.out;
    out.data += static_cast<int64_t>(key) * out.dim_stride;
    const size_t first = r - weights.first_row;
    if (weights.adds) {
      for (size_t i = 0; i < count; ++i) AddToRow(from + i * kKvTile, n, RowAt(out, first + i));
    } else {
      StoreRows(from, kKvTile, count, n, out, first);
    }
  }
  if (weights.mass.data != nullptr) {
    Row row = weights.mass;
    row.data += static_cast<int64_t>(key) * row.dim_stride;
    for (size_t i = 0; i < count; ++i) AddToRow(from + i * kKvTile, n, row);
  }
}

// What is stored of a tile: weights, or scores that are to become weights.
enum class TileOf { kWeights, kScores };

// n keys from `key` on, of which the tile has the scores that the mask shows. rows: scratch,
// [kLanes][kKvTile].
HWY_NOINLINE void StoreTile(const AttendTask& task, const QueryTile& q, const TileMask& mask,
                            TileOf kind, size_t key, size_t n, const float* HWY_RESTRICT s,
                            float* HWY_RESTRICT rows) {
  const VF factor = hn::Set(df, task.weights.factor);
  const bool weighs = kind == TileOf::kWeights;
  const VF hidden = weighs ? hn::Zero(df) : NegInf();
  for (size_t v = 0; v < q.num_vectors; ++v) {
    const VF reference = hn::Load(df, q.m + v * kLanes);
    const KeySpan& seen = mask.seen[v];
    for (size_t begin = 0; begin < RoundUp(n, kLanes); begin += kLanes) {
      VI32 x[kLanes];
      HWY_UNROLL(16)
      for (size_t i = 0; i < kLanes; ++i) {
        const size_t at = begin + i;
        VF p = hidden;
        if (seen.first <= at && at < seen.end) {
          p = hn::Load(df, s + (at * q.num_vectors + v) * kLanes);
          if (weighs) p = hn::Mul(WeightOf(p, reference), factor);
        }
        x[i] = hn::BitCast(di32, p);
      }
      TransposeSquare(x);
      HWY_UNROLL(16)
      for (size_t r = 0; r < kLanes; ++r) {
        hn::Store(hn::BitCast(df, x[r]), df, rows + r * kKvTile + begin);
      }
    }
    const size_t count = MinOf(kLanes, q.num_rows - v * kLanes);
    StoreWeights(task, q.first_row + v * kLanes, count, key, n, rows);
  }
}

// Of a first pass that weighs on the way: scores of a pair of tiles, before they become P.
HWY_INLINE void StoreScores(const AttendTask& task, const QueryTile& q, const TileMask& mask,
                            size_t key, const TileScratch& scratch, const BiasScratch& biases) {
  if (HWY_LIKELY(!WeighsOnTheWay(task))) return;
  const size_t n = MinOf(kKvTile, task.kv_len - key);
  StoreTile(task, q, mask, TileOf::kScores, key, n, scratch.s, biases.rows);
}

// The row of weights, f32 and dense, that waits for row r of the task.
HWY_INLINE float* WaitingRow(const AttendTask& task, size_t r) {
  return reinterpret_cast<float*>(RowAt(task.weights.out, r - task.weights.first_row).data);
}

// Scores of keys [begin, end) that no row of the tile sees.
HWY_MAYBE_UNUSED HWY_NOINLINE void StoreHidden(const AttendTask& task, const QueryTile& q,
                                               size_t begin, size_t end) {
  for (size_t r = 0; r < q.num_rows && begin < end; ++r) {
    float* row = WaitingRow(task, q.first_row + r);
    size_t key = begin;
    for (; key + kLanes <= end; key += kLanes) hn::StoreU(NegInf(), df, row + key);
    if (key < end) hn::StoreN(NegInf(), df, row + key, end - key);
  }
}

// Makes weights of the rows' scores, when their lse is stored.
HWY_MAYBE_UNUSED HWY_NOINLINE void WeighStored(const AttendTask& task, const QueryTile& q) {
  const size_t num_keys = task.weights.num_keys;
  for (size_t r = 0; r < q.num_rows; ++r) {
    const size_t index = q.first_row + r;
    const VF reference = hn::Set(df, ReferenceOf(task, index, q.lack[r]));
    float* row = WaitingRow(task, index);
    size_t i = 0;
    for (; i + kLanes <= num_keys; i += kLanes) {
      hn::StoreU(WeightOf(hn::LoadU(df, row + i), reference), df, row + i);
    }
    const size_t rest = num_keys - i;
    if (rest != 0) hn::StoreN(WeightOf(hn::LoadN(df, row + i, rest), reference), df, row + i, rest);
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_STORE_WEIGHTS_INL_H_
