// The driver: query tiles times K/V tiles of one (batch, kv head).
//
//   for each K/V tile of 128 keys         K and V stream from memory once per task of 192 rows
//     for each query tile that sees it    Q and O of the task stay in L2, S and P in L1
//       S = K·Q, softmax, O += P·V      S in f32, in 16-bit fixed point or, for bf16, not at all
//
// Traffic per task: K and V once, Q and O once. A K/V tile hidden from a query tile (above the
// causal diagonal, outside of its window) is never computed, and of one that it sees in part
// each vector of rows has only what lies between the first key and the last that it sees. Work per
// score: head_dim + v_head_dim multiplications and one 2^x.
#ifndef SIGHTLINE_KERNELS_PREFILL_INL_H_
#define SIGHTLINE_KERNELS_PREFILL_INL_H_

#include "kernels/kv_tile-inl.h"
#include "kernels/mask-inl.h"
#include "kernels/online_softmax-inl.h"
#include "kernels/pv-inl.h"
#include "kernels/qk-inl.h"
#include "kernels/query_tiles-inl.h"
#include "kernels/score_mods-inl.h"
#include "kernels/scores_fixed-inl.h"
#include "kernels/scratch-inl.h"
#include "kernels/softmax_bf16-inl.h"
#include "kernels/store_output-inl.h"
#include "kernels/store_weights-inl.h"
#include "kernels/weights-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

// Everything a task of prefill keeps.
template <class AnyScheme>
struct TaskScratch : PassScratch<typename AnyScheme::Keys> {
  FixedScratch fixed;
  KeyFactors keys = {};
};

HWY_INLINE FixedScratch TakeFixedScratch(size_t rows, ScratchArena& arena) {
  FixedScratch scratch = {};
  scratch.s = arena.Take<int16_t>(kKvTile * rows);
  scratch.p = arena.Take<uint8_t>(kKvTile * rows);
  scratch.row_factor = arena.Take<int16_t>(2 * rows);
  scratch.gain = arena.Take<int16_t>(2 * rows);
  scratch.bound = arena.Take<int16_t>(2 * rows);
  scratch.tile_m = arena.Take<int16_t>(2 * rows);
  scratch.wide = arena.Take<int32_t>(rows);
  scratch.tile_max = arena.Take<float>(rows);
  scratch.weight = arena.Take<float>(rows);
  scratch.p_init = arena.Take<int32_t>(rows);
  scratch.table = arena.Take<int32_t>(kMaxTablePlaces);
  return scratch;
}

template <class AnyScheme>
HWY_INLINE size_t LayOutScratch(const PackedShape& shape, uint8_t* base,
                                TaskScratch<AnyScheme>& task) {
  using Keys = typename AnyScheme::Keys;
  using Values = typename AnyScheme::Values;
  constexpr size_t kRows = kTileRows<Keys>;
  ScratchArena arena(base);
  TakeQueryTiles(shape, PaddedVHeadDim(shape), arena, task.queries);
  task.floats =
      TakeTileScratch(kRows, Values::kQuantized ? 0 : kRows, kHasBF16P<Values> ? kRows : 0, arena);
  if constexpr (Values::kQuantized) {
    task.fixed = TakeFixedScratch(kRows, arena);
    task.keys.words = arena.Take<uint32_t>(kKvTile / 2);
  }
  task.biases = TakeBiasScratch(kRows, arena);
  task.own = TakeOwnTile(OwnKBytes<Keys>(shape), OwnVBytes<Values>(shape), arena);
  return arena.used();
}

template <class AnyScheme>
size_t PrefillScratchBytes(const PackedShape& shape) {
  TaskScratch<AnyScheme> scratch;
  return LayOutScratch(shape, nullptr, scratch);
}

// The empty state of softmax, whose reference begins at m.
HWY_NOINLINE void ClearState(const QueryTile& q, float m, size_t padded_channels) {
  for (size_t row = 0; row < q.num_vectors * kLanes; row += kLanes) {
    hn::Store(hn::Set(df, m), df, q.m + row);
    hn::Store(hn::Zero(df), df, q.d + row);
    hn::Store(hn::Zero(df), df, q.before_d + row);
  }
  for (size_t i = 0; i < padded_channels * q.num_vectors; ++i) {
    hn::Store(hn::Zero(df), df, q.o + i * kLanes);
  }
}

// What scores wait as for their weights.
template <class Values>
using WaitingScore = hwy::If<Values::kQuantized, int16_t, float>;

// True if they do. Words of modified scores are relative to a middle of each tile's own.
template <class Values>
HWY_INLINE bool ScoresWait(const AttendTask& task) {
  return WeighsOnTheWay(task) && !(Values::kQuantized && ModifiesScores(task));
}

// Hidden scores of keys from `done` to `key`, which nobody looked at, and of the n keys there where
// some vector of rows does not see all of them.
template <class AnyScheme>
HWY_NOINLINE void HideScores(const AttendTask& task,
                             const QueryTiles<typename AnyScheme::Keys>& queries, size_t done,
                             size_t key, size_t n) {
  using Score = WaitingScore<typename AnyScheme::Values>;
  for (size_t t = 0; t < queries.count; ++t) {
    const QueryTile& q = queries.tiles[t];
    StoreHidden<Score>(task, q.first_row, q.num_rows, done, key);
    const KeySpan& stored = queries.masks[t].common;
    if (stored.first == 0 && stored.end >= n) continue;
    StoreHidden<Score>(task, q.first_row, q.num_rows, key, key + n);
  }
}

// One pair of tiles. Every count of query vectors has code of its own: a remainder run one vector
// at a time costs 10 % of a causal prefill of 2048.
template <class AnyScheme, size_t kQV>
HWY_INLINE void AttendTilePair(const AttendTask& task, const QueryTile& q, const KvTile& kv,
                               const TileMask& mask, const TaskScratch<AnyScheme>& scratch) {
  using Keys = typename AnyScheme::Keys;
  using Values = typename AnyScheme::Values;
  constexpr size_t kStep = Keys::kStep;
  const size_t channels = PaddedVHeadDim(task.head.shape);
  if constexpr (Values::kQuantized) {
    for (size_t part = 0; part < mask.any.end; part += Values::kPTileKeys) {
      const TileMask seen = MaskFrom(mask, kQV, part, Values::kPTileKeys);
      if (seen.any.end == 0) continue;
      const KvTile part_kv = TileFrom(kv, part);
      ScoreTileFixed<Keys, kQV>(task, q, part_kv, KeyFactorsFrom(scratch.keys, part), seen,
                                scratch.fixed, scratch.floats, scratch.biases);
      if (HWY_UNLIKELY(ScoresWait<Values>(task))) {
        const size_t n = MinOf(Values::kPTileKeys, task.kv_len - part_kv.key_begin);
        StoreWords(task, q, seen, part_kv.key_begin, n, scratch.fixed.s);
      }
      SoftmaxTileFixed<Values, kQV>(q, seen, channels, scratch.fixed);
      AccumulateTileFixed<Values, kStep, kQV>(q, part_kv, seen, channels, scratch.fixed);
    }
  } else {
    if constexpr (kHasBF16P<Values>) {
      ScoreToBF16<Keys, kQV>(task, q, kv, mask, scratch.floats, scratch.biases);
    } else {
      if (HWY_LIKELY(!ModifiesScores(task))) {
        ScoreTile<Keys, kQV>(q, kv, mask, task.head.shape.head_dim, scratch.floats);
      } else {
        ScoreModifiedTile<Keys, kQV>(task, q, kv, mask, scratch.floats, scratch.biases);
      }
      if (HWY_UNLIKELY(WeighsOnTheWay(task))) {
        StoreScores(task, q, mask, kv.key_begin, scratch.floats.s, nullptr);
      }
      SoftmaxTile<kQV>(q, mask, scratch.floats);
    }
    AccumulateTile<Values, kStep, kQV>(q, kv, mask, channels, scratch.floats);
  }
}

// The keys, of the first num_keys, whose K and V some cache holds: those that the task before
// reads, if it is done or, with several workers, under way in a last-level cache that they share.
HWY_INLINE size_t WarmKeys(const AttendTask& task, size_t num_keys) {
  const PackedShape& shape = task.head.shape;
  const size_t key_bytes = PaddedHeadDim(shape) * KElementBytes(shape.layout) +
                           PaddedVHeadDim(shape) * VElementBytes(shape.layout);
  if (task.row_begin == 0 || num_keys * key_bytes > kKeptBytes) return 0;
  return RangeOf(task, task.row_begin - 1).limit;
}

// Whether the tile after that of `key`, or the first one of the part that comes next, is to be
// fetched ahead, of `visible` keys.
HWY_INLINE bool HasNextTile(const AttendTask& task, size_t key, size_t visible, size_t warm) {
  const size_t next_end = key + 2 * kKvTile;
  if (key + kKvTile >= visible) {
    return task.next != nullptr && task.next->kv_len >= kKvTile && warm == 0 &&
           KeysOfTile(*task.next, 0) != TileKeys::kNone;
  }
  return next_end <= visible && next_end > warm &&
         KeysOfTile(task, key + kKvTile) != TileKeys::kNone;
}

// Makes weights of the scores that wait, of keys up to `done`, and those of other rows by a second
// pass.
template <class AnyScheme>
HWY_NOINLINE void WeighTask(const AttendTask& task, size_t done, TaskScratch<AnyScheme>& scratch) {
  using Score = WaitingScore<typename AnyScheme::Values>;
  const QueryTiles<typename AnyScheme::Keys>& queries = scratch.queries;
  const bool waits = ScoresWait<typename AnyScheme::Values>(task);
  bool is_done = true;
  for (size_t t = 0; t < queries.count; ++t) {
    const QueryTile& q = queries.tiles[t];
    if (waits) {
      StoreHidden<Score>(task, q.first_row, q.num_rows, done, task.weights.num_keys);
      WeighStored<Score>(task, q);
    } else {
      LeaveToSecondPass(q);
    }
    is_done &= !HasUnweighed(q);
  }
  if (HWY_UNLIKELY(!is_done)) WeighTiles(task, scratch);
}

template <class AnyScheme>
void Prefill(const AttendTask& task, unsigned char* scratch_bytes) {
  using Keys = typename AnyScheme::Keys;
  using Values = typename AnyScheme::Values;
  const PackedShape& shape = task.head.shape;
  TaskScratch<AnyScheme> scratch;
  LayOutScratch(shape, scratch_bytes, scratch);
  QueryTiles<Keys>& queries = scratch.queries;
  BeginQueryTiles(task, queries);
  constexpr float kStart = kHasBF16P<Values> ? kHeadroom : kNegInf;
  for (size_t t = 0; t < queries.count; ++t) {
    const QueryTile& q = queries.tiles[t];
    if (HWY_LIKELY(!task.continues)) ClearState(q, kStart, PaddedVHeadDim(shape));
    if (HWY_UNLIKELY(IsPart(task))) OpenPart(task, kStart, kHasBF16P<Values>, q);
  }

  if constexpr (Values::kQuantized) SetWordTable(task, scratch.fixed);

  const size_t visible = MaxOf(queries.tiles[queries.count - 1].max_limit, task.prefix_len);
  // Tiles that become others are read once, from one end to the other, which hardware expects:
  // nothing is to be done for them.
  const bool owns = OwnKBytes<Keys>(shape) != 0 || OwnVBytes<Values>(shape) != 0;
  const size_t warm = WarmKeys(task, visible);
  const size_t window_begin = queries.tiles[0].min_begin / kKvTile * kKvTile;
  const bool waits = ScoresWait<Values>(task);
  size_t done = 0;
  for (size_t key = 0; key < visible; key += kKvTile) {
    if (key >= task.prefix_len) key = MaxOf(key, window_begin);  // nobody sees what is in between
    const size_t tile_keys = MinOf(kKvTile, visible - key);
    const bool is_seen = LookAtTiles(task, key, tile_keys, queries);
    if (HWY_UNLIKELY(waits)) HideScores<AnyScheme>(task, queries, done, key, tile_keys);
    done = key + tile_keys;
    if (!is_seen) continue;
    const KvTile kv = LoadKvTile<AnyScheme>(task, key, tile_keys, scratch.own);
    if constexpr (Values::kQuantized) SetKeyFactors(kv.k_scale, tile_keys, scratch.keys);
    const bool has_next = !owns && HasNextTile(task, key, visible, warm);
    KvTile next = {};
    if (has_next) {
      const bool is_last = key + kKvTile >= visible;
      next = is_last ? KvTileAt(*task.next, 0) : KvTileAt(task, key + kKvTile);
    }
    for (size_t t = 0; t < queries.count; ++t) {
      if (has_next) PrefetchKvTile<Values>(shape, next, t, queries.count);
      if (queries.masks[t].any.end == 0) continue;
      const QueryTile& q = queries.tiles[t];
      WithCount<Keys::kQueryVectors>(q.num_vectors, [&](auto vectors) HWY_ATTR {
        AttendTilePair<AnyScheme, decltype(vectors)::value>(task, q, kv, queries.masks[t], scratch);
      });
    }
  }

  const float* v_center = VCenter(task);
  if (HWY_UNLIKELY(IsPart(task))) {
    for (size_t t = 0; t < queries.count; ++t) {
      ClosePart(queries.tiles[t], v_center, PaddedVHeadDim(shape));
    }
    if (task.pauses) return;
    v_center = nullptr;
  }
  for (size_t t = 0; t < queries.count; ++t) {
    StoreOutput(task, queries.tiles[t], v_center, queries.rows);
  }
  if (HWY_UNLIKELY(WeighsOnTheWay(task))) WeighTask(task, done, scratch);
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_PREFILL_INL_H_
