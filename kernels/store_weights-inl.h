// Attention weights on their way to the caller's rows, or to sums of them.
//
// Lanes are queries and rows are stored along keys: kLanes scores take four shuffles, words of
// fixed point half of that. In decode lanes are keys. Weights are exp(s - lse). The drivers store
// scores as they come, and make weights of them once a row is done, when most are still in L2: no
// K·Q is computed twice. What scores cannot wait for, a second pass has tile by tile
// (weights-inl.h), when lse is known.
#ifndef SIGHTLINE_KERNELS_STORE_WEIGHTS_INL_H_
#define SIGHTLINE_KERNELS_STORE_WEIGHTS_INL_H_

#include "kernels/fixed_point-inl.h"
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

// Where scores wait: in the caller's row of weights, which is f32 and dense. Floats have their
// weight's place. Words of fixed point have the second half of the row, in the order of keys:
// weights are made from the first one on, and none reaches a word that is still to be read.
template <typename Score>
HWY_INLINE Score* WaitingRow(const AttendTask& task, size_t r) {
  unsigned char* row = RowAt(task.weights.out, r - task.weights.first_row).data;
  return reinterpret_cast<Score*>(row) +
         (sizeof(float) / sizeof(Score) - 1) * task.weights.num_keys;
}
template <typename Score>
using WaitingVectors = hn::Repartition<Score, DF>;
HWY_INLINE VF HiddenScore(DF) { return NegInf(); }
HWY_INLINE VI16 HiddenScore(DI16) { return hn::Set(di16, kHiddenScore); }

// Scores of keys [begin, end) that none of num_rows rows sees.
template <typename Score>
HWY_NOINLINE void StoreHidden(const AttendTask& task, size_t first_row, size_t num_rows,
                              size_t begin, size_t end) {
  const WaitingVectors<Score> d;
  constexpr size_t kVectorScores = hn::MaxLanes(d);
  for (size_t r = 0; r < num_rows && begin < end; ++r) {
    Score* row = WaitingRow<Score>(task, first_row + r);
    size_t key = begin;
    for (; key + kVectorScores <= end; key += kVectorScores) {
      hn::StoreU(HiddenScore(d), d, row + key);
    }
    if (key < end) hn::StoreN(HiddenScore(d), d, row + key, end - key);
  }
}

// What a vector of transposed lanes has of a row, in the order of keys. Words come two to a lane,
// of keys 0 and 2, 1 and 3.
HWY_INLINE VF InOrder(DF, VI32 lanes) { return hn::BitCast(df, lanes); }
HWY_INLINE VI16 InOrder(DI16, VI32 lanes) {
  const VU8 order =
      hn::Dup128VecFromValues(du8, 0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15);
  return hn::BitCast(di16, hn::TableLookupBytes(hn::BitCast(du8, lanes), order));
}

// Scores of n keys from `key` on, of a tile or the part of one that begins there, to where they
// wait, as far as rows see them: what is hidden from all of a vector's has been stored. Lanes are
// lanes_of(v, i), of vector v of rows and of key i of the tile, or of the pair of keys of words.
template <typename Score, class LanesOf>
HWY_INLINE void StoreWaiting(const AttendTask& task, const QueryTile& q, const TileMask& mask,
                             size_t key, size_t n, const LanesOf& lanes_of) {
  const WaitingVectors<Score> d;
  constexpr size_t kVectorScores = hn::MaxLanes(d);
  for (size_t v = 0; v < q.num_vectors; ++v) {
    const size_t num_rows = MinOf(kLanes, q.num_rows - v * kLanes);
    Score* rows[kLanes];
    for (size_t r = 0; r < num_rows; ++r) {
      rows[r] = WaitingRow<Score>(task, q.first_row + v * kLanes + r) + key;
    }
    const KeySpan& seen = mask.seen[v];
    const size_t end = MinOf(seen.padded_end(), n);
    for (size_t begin = seen.first / kVectorScores * kVectorScores; begin < end;
         begin += kVectorScores) {
      VI32 x[kLanes];
      HWY_UNROLL(16)
      for (size_t i = 0; i < kLanes; ++i) x[i] = lanes_of(v, begin * kLanes / kVectorScores + i);
      TransposeSquare(x);
      if (HWY_LIKELY(num_rows == kLanes && seen.first <= begin && begin + kVectorScores <= end)) {
        HWY_UNROLL(16)
        for (size_t r = 0; r < kLanes; ++r) hn::StoreU(InOrder(d, x[r]), d, rows[r] + begin);
        continue;
      }
      HWY_ALIGN Score scores[kLanes * kVectorScores];
      HWY_UNROLL(16)
      for (size_t r = 0; r < kLanes; ++r)
        hn::Store(InOrder(d, x[r]), d, scores + r * kVectorScores);
      const size_t first = MaxOf(seen.first, begin);
      const size_t bytes = (MinOf(begin + kVectorScores, end) - first) * sizeof(Score);
      for (size_t r = 0; r < num_rows; ++r) {
        __builtin_memcpy(rows[r] + first, scores + r * kVectorScores + (first - begin), bytes);
      }
    }
  }
}

// Of a pair of tiles, before scores become P. row_scale: what they are still to be multiplied by,
// of each row; null: nothing.
HWY_MAYBE_UNUSED HWY_NOINLINE void StoreScores(const AttendTask& task, const QueryTile& q,
                                               const TileMask& mask, size_t key,
                                               const float* HWY_RESTRICT s,
                                               const float* HWY_RESTRICT row_scale) {
  StoreWaiting<float>(task, q, mask, key, MinOf(kKvTile, task.kv_len - key),
                      [=, &q](size_t v, size_t i) HWY_ATTR {
                        VF score = hn::Load(df, s + (i * q.num_vectors + v) * kLanes);
                        if (HWY_UNLIKELY(row_scale != nullptr)) {
                          score = hn::Mul(score, hn::Load(df, row_scale + v * kLanes));
                        }
                        return hn::BitCast(di32, score);
                      });
}

// The same of words, of n keys.
HWY_MAYBE_UNUSED HWY_NOINLINE void StoreWords(const AttendTask& task, const QueryTile& q,
                                              const TileMask& mask, size_t key, size_t n,
                                              const int16_t* HWY_RESTRICT s) {
  const int32_t* HWY_RESTRICT lanes = reinterpret_cast<const int32_t*>(s);
  const size_t num_vectors = q.num_vectors;
  StoreWaiting<int16_t>(task, q, mask, key, n, [=](size_t v, size_t i) HWY_ATTR {
    return hn::Load(di32, lanes + (i * num_vectors + v) * kLanes);
  });
}

// Weights of scores that have waited: of vectors of them, and of fewer.
class FloatWeights {
 public:
  explicit FloatWeights(float reference) : reference_(hn::Set(df, reference)) {}

  HWY_INLINE void operator()(VF s, VF (&weights)[1]) const { weights[0] = WeightOf(s, reference_); }

 private:
  VF reference_;
};
template <typename Score>
using WeightsOf = hwy::If<hwy::IsSame<Score, float>(), FloatWeights, WordWeights>;

template <typename Score>
HWY_INLINE void WeighSome(const WeightsOf<Score>& weigh, const Score* from, size_t n, float* to) {
  const WaitingVectors<Score> d;
  VF weights[hn::MaxLanes(d) / kLanes];
  weigh(hn::LoadN(d, from, n), weights);
  HWY_ALIGN float all[hn::MaxLanes(d)];
  for (size_t i = 0; i < hn::MaxLanes(d); i += kLanes) hn::Store(weights[i / kLanes], df, all + i);
  __builtin_memcpy(to, all, n * sizeof(float));
}

// Weights of the first words of a row, n at most, past the caches: lines that none of them has need
// not be read to be written. Returns how many that were.
HWY_MAYBE_UNUSED HWY_INLINE size_t WeighPastCaches(const WordWeights& weigh, const int16_t* from,
                                                   size_t n, float* to) {
  const size_t address = reinterpret_cast<uintptr_t>(to);
  size_t i = (RoundUp(address, kVectorBytes) - address) / sizeof(float);
  if (i > n) return 0;
  WeighSome<int16_t>(weigh, from, i, to);
  for (; i + 2 * kLanes <= n; i += 2 * kLanes) {
    VF weights[2];
    weigh(hn::LoadU(di16, from + i), weights);
    hn::Stream(weights[0], df, to + i);
    hn::Stream(weights[1], df, to + i + kLanes);
  }
  return i;
}

// Makes weights of a row's scores, when its lse is stored; lack: of its scores, as in QueryTile.
template <typename Score>
HWY_NOINLINE void WeighRow(const AttendTask& task, size_t index, float lack) {
  const WaitingVectors<Score> d;
  constexpr size_t kVectorScores = hn::MaxLanes(d);
  const size_t num_keys = task.weights.num_keys;
  const WeightsOf<Score> weigh(ReferenceOf(task, index, lack));
  const Score* from = WaitingRow<Score>(task, index);
  float* to = WaitingRow<float>(task, index);
  size_t i = 0;
  if constexpr (hwy::IsSame<Score, int16_t>()) {
    if (task.weights.past_caches) i = WeighPastCaches(weigh, from, num_keys / 2, to);
  }
  for (; i + kVectorScores <= num_keys; i += kVectorScores) {
    VF weights[kVectorScores / kLanes];
    weigh(hn::LoadU(d, from + i), weights);
    for (size_t j = 0; j < kVectorScores; j += kLanes) {
      hn::StoreU(weights[j / kLanes], df, to + i + j);
    }
  }
  if (i < num_keys) WeighSome<Score>(weigh, from + i, num_keys - i, to + i);
}

// Those of all rows of a tile but what is left to a second pass.
template <typename Score>
HWY_NOINLINE void WeighStored(const AttendTask& task, const QueryTile& q) {
  for (size_t r = 0; r < q.num_rows; ++r) {
    if (q.unweighed[r] == 0) WeighRow<Score>(task, q.first_row + r, q.lack[r]);
  }
  if (task.weights.past_caches) EndStreaming();
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_STORE_WEIGHTS_INL_H_
