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

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// A row's lse in octaves, less what its scores lack, or any number for a row that sees nothing:
// 2^-inf is 0 all the same.
HWY_INLINE float ReferenceOf(const AttendTask& task, size_t r, float lack) {
  float lse;
  CopyElement<float>(RowAt(task.lse, r).data, &lse);
  return lse == kNegInf ? 0.0f : lse * kLog2E - LackAtEnd(task, lack);
}

// The weight of a score. That of a hidden key is 0 in any row, also if the row's lse is NaN.
HWY_INLINE VF WeightOf(VF s, VF reference) {
  return hn::IfThenZeroElse(hn::Eq(s, NegInf()), Exp2(hn::Sub(s, reference)));
}

// Adds n elements to a row of f32.
HWY_INLINE void AddToRow(const float* HWY_RESTRICT from, size_t n, const Row& row) {
  for (size_t i = 0; i < n; ++i) {
    unsigned char* at = row.data + static_cast<int64_t>(i) * row.dim_stride;
    float sum;
    CopyElement<float>(at, &sum);
    sum += from[i];
    CopyElement<float>(&sum, at);
  }
}

// Weights of row r for n keys from `key` on, to where the task wants them. `from` is
// vector-aligned.
HWY_NOINLINE void StoreWeights(const AttendTask& task, size_t r, size_t key, size_t n,
                               const float* HWY_RESTRICT from) {
  const WeightsTask& weights = task.weights;
  if (weights.out.data != nullptr) {
    Row row = RowAt(weights.out, r - weights.first_row);
    row.data += static_cast<int64_t>(key) * row.dim_stride;
    if (weights.adds) {
      AddToRow(from, n, row);
    } else {
      StoreRow(from, n, row);
    }
  }
  if (weights.mass.data != nullptr) {
    Row row = weights.mass;
    row.data += static_cast<int64_t>(key) * row.dim_stride;
    AddToRow(from, n, row);
  }
}

// Where a task's weights are stored or summed, keys of weights begin with `key`: n of them, of
// which the tile's scores are those that the mask shows. rows: [kLanes][kKvTile].
template <size_t kQV>
HWY_NOINLINE void WeighScores(const AttendTask& task, const QueryTile& q, const TileMask& mask,
                              size_t key, size_t n, const float* HWY_RESTRICT s,
                              float* HWY_RESTRICT rows) {
  const VF factor = hn::Set(df, task.weights.factor);
  for (size_t v = 0; v < kQV && v * kLanes < q.num_rows; ++v) {
    const VF reference = hn::Load(df, q.m + v * kLanes);
    for (size_t begin = 0; begin < RoundUp(n, kLanes); begin += kLanes) {
      VI32 x[kLanes];
      HWY_UNROLL(16)
      for (size_t i = 0; i < kLanes; ++i) {
        const size_t at = begin + i;
        VF p = hn::Zero(df);
        if (mask.first <= at && at < mask.end) {
          p = WeightOf(hn::Load(df, s + (at * kQV + v) * kLanes), reference);
        }
        x[i] = hn::BitCast(di32, hn::Mul(p, factor));
      }
      TransposeSquare(x);
      HWY_UNROLL(16)
      for (size_t r = 0; r < kLanes; ++r) {
        hn::Store(hn::BitCast(df, x[r]), df, rows + r * kKvTile + begin);
      }
    }
    const size_t count = MinOf(kLanes, q.num_rows - v * kLanes);
    for (size_t r = 0; r < count; ++r) {
      StoreWeights(task, q.first_row + v * kLanes + r, key, n, rows + r * kKvTile);
    }
  }
}

template <class Scheme, size_t kQV>
HWY_INLINE void WeighTilePair(const AttendTask& task, const QueryTile& q, const KvTile& kv,
                              const TileMask& mask, size_t key, size_t n,
                              const TaskScratch<Scheme>& scratch) {
  if (q.num_vectors == kQV) {
    if (mask.end != 0) {
      ScoreModifiedTile<Scheme, kQV>(task, q, kv, mask, scratch.floats, scratch.biases);
    }
    WeighScores<kQV>(task, q, mask, key, n, scratch.floats.s, scratch.biases.rows);
  } else if constexpr (kQV > 1) {
    WeighTilePair<Scheme, kQV - 1>(task, q, kv, mask, key, n, scratch);
  }
}

// Weights of up to kTaskRows rows.
template <class Scheme>
void WeighMany(const AttendTask& task, unsigned char* scratch_bytes) {
  TaskScratch<Scheme> scratch;
  LayOutScratch<Scheme>(task.head.shape, scratch_bytes, scratch);
  size_t num_tiles = 0;
  for (size_t row = task.row_begin; row < task.row_end; row += kTileRows<Scheme>) {
    QueryTile& q = scratch.tiles[num_tiles++];
    BeginQueryTile<Scheme>(task, row, scratch, q);
    for (size_t r = 0; r < q.num_vectors * kLanes; ++r) {
      const size_t real = MinOf(r, q.num_rows - 1);
      q.m[r] = ReferenceOf(task, row + real, q.lack[real]);
    }
  }
  for (size_t key = 0; key < task.weights.num_keys; key += kKvTile) {
    const size_t n = MinOf(kKvTile, task.weights.num_keys - key);
    const size_t in_use = key < task.kv_len ? MinOf(n, task.kv_len - key) : 0;
    TileMask masks[TaskScratch<Scheme>::kMaxTiles];
    bool is_seen = false;
    for (size_t t = 0; t < num_tiles; ++t) {
      masks[t] = in_use == 0 ? TileMask() : LookAtTile(task, scratch.tiles[t], key, in_use);
      is_seen |= masks[t].end != 0;
    }
    KvTile kv = {};
    if (is_seen) kv = BeginKvTile<Scheme>(task.head, key, in_use, scratch.wide);
    for (size_t t = 0; t < num_tiles; ++t) {
      WeighTilePair<Scheme, Scheme::kQueryVectors>(task, scratch.tiles[t], kv, masks[t], key, n,
                                                   scratch);
    }
  }
}

// Scores of n keys of a tile for num_rows <= kRows rows.
template <class Scheme, size_t kRows>
HWY_INLINE void WeighRows(const AttendTask& task, const DecodeRow* rows, size_t num_rows,
                          const KvTile& kv, size_t n, float* HWY_RESTRICT biases) {
  if (num_rows == kRows) {
    constexpr size_t kStepKeys = VectorsPerBlock(kRows) * kLanes;
    const size_t num_steps = PaddedHeadDim(task.head.shape) / kKLaneDepth<Scheme>;
    const size_t num_scores = RoundUp(n, kStepKeys);
    for (size_t key = 0; key < n; key += kStepKeys) {
      DecodeScores<Scheme, VectorsPerBlock(kRows), kRows>(rows, kv, num_steps, 0, key);
    }
    for (size_t r = 0; r < kRows; ++r) {
      FinishScores(task, rows[r], kv.key_begin, n, num_scores, ScoresOf<Scheme>(rows[r], 0),
                   biases);
    }
  } else if constexpr (kRows > 1) {
    WeighRows<Scheme, kRows - 1>(task, rows, num_rows, kv, n, biases);
  }
}

// Scores of n keys of a row to weights; what follows is 0.
HWY_INLINE void ExpWeights(float factor, float reference, size_t n, float* HWY_RESTRICT s) {
  const VI32 end = hn::Set(di32, static_cast<int32_t>(n));
  for (size_t i = 0; i < kKvTile; i += kLanes) {
    const auto in_use = hn::Lt(hn::Iota(di32, static_cast<int32_t>(i)), end);
    const VF p = WeightOf(hn::Load(df, s + i), hn::Set(df, reference));
    hn::Store(hn::IfThenElseZero(hn::RebindMask(df, in_use), hn::Mul(p, hn::Set(df, factor))), df,
              s + i);
  }
}

// Weights of up to kDecodeRows rows.
template <class Scheme>
void WeighFew(const AttendTask& task, unsigned char* scratch_bytes) {
  DecodeScratch scratch;
  LayOutDecodeScratch<Scheme>(task.head.shape, scratch_bytes, scratch);
  const size_t num_rows = task.row_end - task.row_begin;
  for (size_t r = 0; r < num_rows; ++r) {
    BeginDecodeRow<Scheme>(task, task.row_begin + r, scratch.query, scratch.rows[r]);
  }
  const SeenRuns runs(task, scratch.rows, num_rows);
  for (size_t key = 0; key < task.weights.num_keys; key += kKvTile) {
    const size_t n = MinOf(kKvTile, task.weights.num_keys - key);
    const size_t in_use = key < task.kv_len && runs.IsSeen(key) ? MinOf(n, task.kv_len - key) : 0;
    if (in_use != 0) {
      const KvTile kv = BeginKvTile<Scheme>(task.head, key, in_use, WideTile());
      for (size_t r = 0; r < num_rows; r += kRowBlock<Scheme>) {
        WeighRows<Scheme, kRowBlock<Scheme>>(task, scratch.rows + r,
                                             MinOf(kRowBlock<Scheme>, num_rows - r), kv, in_use,
                                             scratch.biases);
      }
    }
    for (size_t r = 0; r < num_rows; ++r) {
      float* s = ScoresOf<Scheme>(scratch.rows[r], 0);
      ExpWeights(task.weights.factor, ReferenceOf(task, task.row_begin + r, scratch.rows[r].lack),
                 in_use, s);
      StoreWeights(task, task.row_begin + r, key, n, s);
    }
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_WEIGHTS_INL_H_
