// The second pass, for who asks for weights: exp(s - lse) of rows whose lse the first pass has
// stored, written out row by row or summed over rows, key by key. No tile of weights is ever larger
// than what one pair of tiles has. The first pass makes most weights on the way
// (store_weights-inl.h); prefill leaves some rows to this one.
//
// Many rows: S = K·Q once more and a 2^x for each score, then a transpose, since lanes are queries
// and rows are stored along keys: per kLanes scores four shuffles. Few rows: lanes are keys, as in
// decode. Traffic: K once per task of 192 rows, and what is written.
#ifndef SIGHTLINE_KERNELS_WEIGHTS_INL_H_
#define SIGHTLINE_KERNELS_WEIGHTS_INL_H_

#include "kernels/decode-inl.h"
#include "kernels/kv_tile-inl.h"
#include "kernels/mask-inl.h"
#include "kernels/qk-inl.h"
#include "kernels/query_tiles-inl.h"
#include "kernels/store_weights-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// Leaves all rows of a tile to this pass.
HWY_INLINE void LeaveToSecondPass(const QueryTile& q) {
  for (size_t r = 0; r < q.num_rows; ++r) q.unweighed[r] = -1;
}
HWY_INLINE bool HasUnweighed(const QueryTile& q) {
  for (size_t r = 0; r < q.num_rows; ++r) {
    if (q.unweighed[r] != 0) return true;
  }
  return false;
}

// Asks for the rows' places of keys [key, key + n) to write to: while their scores are computed
// they come from memory, where no hardware prefetcher expects them.
HWY_INLINE void PrefetchWeights(const AttendTask& task, const QueryTile& q, size_t key, size_t n) {
  const WeightsTask& weights = task.weights;
  if (weights.out.data == nullptr || !IsDense(RowAt(weights.out, 0))) return;
  for (size_t r = 0; r < q.num_rows; ++r) {
    if (q.unweighed[r] == 0) continue;
    const Row row = RowAt(weights.out, q.first_row + r - weights.first_row);
    const unsigned char* begin = row.data + static_cast<int64_t>(key) * row.dim_stride;
    const unsigned char* end = begin + static_cast<int64_t>(n) * row.dim_stride;
    for (; begin < end; begin += kPackedAlignBytes) __builtin_prefetch(begin, 1);
  }
}

// Stores those of rows [first, end) of a tile that are left to this pass; rows: of `first`.
HWY_INLINE void StoreUnweighed(const AttendTask& task, const QueryTile& q, size_t first, size_t end,
                               size_t key, size_t n, const float* HWY_RESTRICT rows) {
  for (size_t r = first; r < end;) {
    size_t next = r;
    while (next < end && q.unweighed[next] != 0) ++next;
    if (next != r) {
      StoreWeights(task, q.first_row + r, next - r, key, n, rows + (r - first) * kKvTile);
    }
    r = next + 1;
  }
}

// Weights of n keys from `key` on, whose scores are those of the tile, as far as the mask shows
// any. Rows have their reference (ReferenceOf) in q.m.
HWY_NOINLINE void StoreTile(const AttendTask& task, const QueryTile& q, const TileMask& mask,
                            size_t key, size_t n, const TileBuffers& buffers) {
  const float* HWY_RESTRICT s = buffers.floats.s;
  float* HWY_RESTRICT rows = buffers.biases.rows;
  const VF factor = hn::Set(df, task.weights.factor);
  for (size_t v = 0; v < q.num_vectors; ++v) {
    const VF reference = hn::Load(df, q.m + v * kLanes);
    const KeySpan& seen = mask.seen[v];
    for (size_t begin = 0; begin < RoundUp(n, kLanes); begin += kLanes) {
      VI32 x[kLanes];
      HWY_UNROLL(16)
      for (size_t i = 0; i < kLanes; ++i) {
        const size_t at = begin + i;
        VF p = hn::Zero(df);
        if (seen.first <= at && at < seen.end) {
          p = hn::Load(df, s + (at * q.num_vectors + v) * kLanes);
          p = hn::Mul(WeightOf(p, reference), factor);
        }
        x[i] = hn::BitCast(di32, p);
      }
      TransposeSquare(x);
      HWY_UNROLL(16)
      for (size_t r = 0; r < kLanes; ++r) {
        hn::Store(hn::BitCast(df, x[r]), df, rows + r * kKvTile + begin);
      }
    }
    const size_t first = v * kLanes;
    StoreUnweighed(task, q, first, MinOf(first + kLanes, q.num_rows), key, n, rows);
  }
}

// The same, whose K, as far as the mask shows any of it, is `kv`.
template <class Keys>
HWY_NOINLINE void WeighTile(const AttendTask& task, const PassScratch<Keys>& pass, size_t t,
                            const KvTile& kv, size_t key, size_t n) {
  const QueryTile& q = pass.queries.tiles[t];
  const TileMask& mask = pass.queries.masks[t];
  WithCount<Keys::kQueryVectors>(q.num_vectors, [&](auto vectors) HWY_ATTR {
    if (mask.any.end == 0) return;
    ScoreToStore<Keys, decltype(vectors)::value>(task, q, kv, mask, pass.floats, pass.biases);
  });
  StoreTile(task, q, mask, key, n, pass);
}

// Weights of the rows that are left to this pass.
template <class Keys>
HWY_NOINLINE void WeighTiles(const AttendTask& task, PassScratch<Keys>& pass) {
  QueryTiles<Keys>& queries = pass.queries;
  for (size_t t = 0; t < queries.count; ++t) {
    const QueryTile& q = queries.tiles[t];
    for (size_t r = 0; r < q.num_vectors * kLanes; ++r) {
      const size_t real = MinOf(r, q.num_rows - 1);
      q.m[r] = ReferenceOf(task, q.first_row + real, q.lack[real]);
    }
  }
  for (size_t key = 0; key < task.weights.num_keys; key += kKvTile) {
    const size_t n = MinOf(kKvTile, task.weights.num_keys - key);
    const size_t in_use = key < task.kv_len ? MinOf(n, task.kv_len - key) : 0;
    KvTile kv = {};
    if (LookAtTiles(task, key, in_use, queries)) kv = LoadKTile<Keys>(task, key, in_use, pass.own);
    for (size_t t = 0; t < queries.count; ++t) {
      if (!HasUnweighed(queries.tiles[t])) continue;
      PrefetchWeights(task, queries.tiles[t], key, n);
      WeighTile(task, pass, t, kv, key, n);
    }
  }
}

template <class Keys>
HWY_INLINE size_t LayOutPass(const PackedShape& shape, uint8_t* base, PassScratch<Keys>& pass) {
  ScratchArena arena(base);
  TakeQueryTiles(shape, 0, arena, pass.queries);
  pass.floats = TakeTileScratch(kTileRows<Keys>, 0, 0, arena);
  pass.biases = TakeBiasScratch(kTileRows<Keys>, arena);
  pass.own = TakeOwnTile(OwnKBytes<Keys>(shape), 0, arena);
  return arena.used();
}

template <class Keys>
size_t WeighManyScratchBytes(const PackedShape& shape) {
  PassScratch<Keys> pass;
  return LayOutPass(shape, nullptr, pass);
}

// Weights of up to kTaskRows rows.
template <class Keys>
void WeighMany(const AttendTask& task, unsigned char* scratch_bytes) {
  PassScratch<Keys> pass;
  LayOutPass(task.head.shape, scratch_bytes, pass);
  BeginQueryTiles(task, pass.queries);
  for (size_t t = 0; t < pass.queries.count; ++t) LeaveToSecondPass(pass.queries.tiles[t]);
  WeighTiles(task, pass);
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
