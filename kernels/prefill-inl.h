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
#include "kernels/load_queries-inl.h"
#include "kernels/mask-inl.h"
#include "kernels/online_softmax-inl.h"
#include "kernels/pv-inl.h"
#include "kernels/qk-inl.h"
#include "kernels/score_mods-inl.h"
#include "kernels/scores_fixed-inl.h"
#include "kernels/scratch-inl.h"
#include "kernels/softmax_bf16-inl.h"
#include "kernels/store_output-inl.h"
#include "kernels/store_weights-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

template <class Keys>
constexpr size_t kTileRows = Keys::kQueryVectors * kLanes;

// The query tiles of a task, and what any pass over them keeps.
template <class Keys>
struct QueryTiles {
  static constexpr size_t kMax = kTaskRows / kTileRows<Keys>;
  static_assert(kTaskRows % kTileRows<Keys> == 0, "query tiles must divide a task");

  QueryTile tiles[kMax];
  size_t count = 0;
  TileMask masks[kMax];       // what they see of the tile of keys at hand
  bool unweighed[kMax] = {};  // whose weights a second pass is for
  float* rows;                // kLanes rows of Q or O on their way into or out of panels
};

// Everything a task of prefill keeps: besides, what its tiles take turns to use.
template <class AnyScheme>
struct TaskScratch {
  QueryTiles<typename AnyScheme::Keys> queries;
  TileScratch floats;
  FixedScratch fixed;
  BiasScratch biases;
  KeyFactors keys = {};
  OwnTile own;
};

// v_channels: of O, with padding; 0 if there is none.
template <class Keys>
HWY_INLINE void TakeQueryTiles(const PackedShape& shape, size_t v_channels, ScratchArena& arena,
                               QueryTiles<Keys>& queries) {
  constexpr size_t kRows = kTileRows<Keys>;
  const size_t dims = RowBufferElements(shape.head_dim);
  for (QueryTile& q : queries.tiles) {
    q.panel = arena.Take<uint8_t>(dims / kDepthOf<Keys> * kRows * kLaneBytes);
    q.row_scale = arena.Take<float>(kRows);
    q.acc_init = arena.Take<int32_t>(kRows);
    q.lack = arena.Take<float>(kRows);
    q.begin = arena.Take<int32_t>(kRows);
    q.limit = arena.Take<int32_t>(kRows);
    q.mask = arena.Take<int32_t>(kMaskWords * kRows);
    q.m = arena.Take<float>(kRows);
    q.d = arena.Take<float>(kRows);
    q.offset = arena.Take<float>(kRows);
    q.before_m = arena.Take<float>(kRows);
    q.before_d = arena.Take<float>(kRows);
    q.kept_m = arena.Take<float>(kRows);
    q.o = arena.Take<float>(v_channels * kRows);
  }
  queries.rows = arena.Take<float>(kLanes * MaxOf(dims, v_channels));
}

// float_rows, bf16_rows: rows whose P is in floats, in bf16.
HWY_INLINE TileScratch TakeTileScratch(size_t rows, size_t float_rows, size_t bf16_rows,
                                       ScratchArena& arena) {
  TileScratch scratch;
  scratch.s = arena.Take<float>(kKvTile * rows);
  scratch.tile_m = arena.Take<float>(rows);
  scratch.rescale = arena.Take<float>(float_rows);
  scratch.start = arena.Take<float>(bf16_rows);
  scratch.bits = arena.Take<int32_t>(bf16_rows);
  scratch.sum = arena.Take<float>(bf16_rows);
  return scratch;
}

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

// Of up to max_rows rows: which they are, and their ranges of keys.
HWY_NOINLINE void BeginQueryTile(const AttendTask& task, size_t first_row, size_t max_rows,
                                 QueryTile& q) {
  q.first_row = first_row;
  q.num_rows = MinOf(max_rows, task.row_end - first_row);
  q.num_vectors = RoundUp(q.num_rows, kLanes) / kLanes;
  const KeyRange first = RangeOf(task, first_row);
  const KeyRange last = RangeOf(task, first_row + q.num_rows - 1);
  q.min_begin = first.begin;
  q.max_begin = last.begin;
  q.min_limit = first.limit;
  q.max_limit = last.limit;
  const bool differ = q.min_begin != q.max_begin || q.min_limit != q.max_limit;
  for (size_t r = 0; r < q.num_vectors * kLanes; ++r) {
    const KeyRange range = differ ? RangeOf(task, first_row + MinOf(r, q.num_rows - 1)) : first;
    q.begin[r] = static_cast<int32_t>(range.begin);
    q.limit[r] = static_cast<int32_t>(range.limit);
    q.lack[r] = 0.0f;
  }
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

// All tiles of the task, with their packed queries, which are in scratch if the task continues.
template <class Keys>
HWY_NOINLINE void BeginQueryTiles(const AttendTask& task, QueryTiles<Keys>& queries) {
  for (size_t row = task.row_begin; row < task.row_end; row += kTileRows<Keys>) {
    QueryTile& q = queries.tiles[queries.count++];
    BeginQueryTile(task, row, kTileRows<Keys>, q);
    if (HWY_LIKELY(!task.continues)) {
      LoadQueries<Keys>(task, queries.rows, q);
    } else {
      ReloadQueries<Keys>(task, queries.rows, q);
    }
  }
}

// Finds out what all tiles see of keys [key, key + n): false if that is nothing.
template <class Keys>
HWY_INLINE bool LookAtTiles(const AttendTask& task, size_t key, size_t n,
                            QueryTiles<Keys>& queries) {
  bool is_seen = false;
  for (size_t t = 0; t < queries.count; ++t) {
    queries.masks[t] = LookAtTile(task, queries.tiles[t], key, n);
    is_seen |= queries.masks[t].any.end != 0;
  }
  return is_seen;
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
    StoreHidden<Score>(task, queries.tiles[t], done, key);
    const KeySpan& stored = queries.masks[t].common;
    if (stored.first == 0 && stored.end >= n) continue;
    StoreHidden<Score>(task, queries.tiles[t], key, key + n);
  }
}

// Weights of the tiles that have none.
template <class Keys>
HWY_NOINLINE void WeighTiles(const AttendTask& task, QueryTiles<Keys>& queries,
                             const TileScratch& floats, const BiasScratch& biases,
                             const OwnTile& own) {
  for (size_t t = 0; t < queries.count; ++t) {
    QueryTile& q = queries.tiles[t];
    for (size_t r = 0; r < q.num_vectors * kLanes; ++r) {
      const size_t real = MinOf(r, q.num_rows - 1);
      q.m[r] = ReferenceOf(task, q.first_row + real, q.lack[real]);
    }
  }
  for (size_t key = 0; key < task.weights.num_keys; key += kKvTile) {
    const size_t n = MinOf(kKvTile, task.weights.num_keys - key);
    const size_t in_use = key < task.kv_len ? MinOf(n, task.kv_len - key) : 0;
    KvTile kv = {};
    if (LookAtTiles(task, key, in_use, queries)) kv = LoadKTile<Keys>(task, key, in_use, own);
    for (size_t t = 0; t < queries.count; ++t) {
      if (!queries.unweighed[t]) continue;
      PrefetchWeights(task, queries.tiles[t], key, n);
      WeighTile<Keys>(task, queries.tiles[t], kv, queries.masks[t], key, n, floats, biases);
    }
  }
}

// One pair of tiles. Every count of query vectors has code of its own: a remainder run one vector
// at a time costs 10 % of a causal prefill of 2048. False if some scores cannot wait for weights.
template <class AnyScheme, size_t kQV>
HWY_INLINE bool AttendTilePair(const AttendTask& task, const QueryTile& q, const KvTile& kv,
                               const TileMask& mask, const TaskScratch<AnyScheme>& scratch) {
  using Keys = typename AnyScheme::Keys;
  using Values = typename AnyScheme::Values;
  constexpr size_t kStep = Keys::kStep;
  const size_t channels = PaddedVHeadDim(task.head.shape);
  if constexpr (Values::kQuantized) {
    bool wide = false;
    for (size_t part = 0; part < mask.any.end; part += Values::kPTileKeys) {
      const TileMask seen = MaskFrom(mask, kQV, part, Values::kPTileKeys);
      if (seen.any.end == 0) continue;
      const KvTile part_kv = TileFrom(kv, part);
      wide |= ScoreTileFixed<Keys, kQV>(task, q, part_kv, KeyFactorsFrom(scratch.keys, part), seen,
                                        scratch.fixed, scratch.floats, scratch.biases);
      if (HWY_UNLIKELY(ScoresWait<Values>(task))) {
        const size_t n = MinOf(Values::kPTileKeys, task.kv_len - part_kv.key_begin);
        StoreWords(task, q, seen, part_kv.key_begin, n, scratch.fixed.s);
      }
      SoftmaxTileFixed<Values, kQV>(q, seen, channels, scratch.fixed);
      AccumulateTileFixed<Values, kStep, kQV>(q, part_kv, seen, channels, scratch.fixed);
    }
    return !wide;
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
        StoreScores<false>(task, q, mask, kv.key_begin, scratch.floats.s);
      }
      SoftmaxTile<kQV>(q, mask, scratch.floats);
    }
    AccumulateTile<Values, kStep, kQV>(q, kv, mask, channels, scratch.floats);
    return true;
  }
}

// The keys, of the first num_keys, whose K and V some cache holds: those that the task before
// reads, if it is done or, with several workers, under way in a last-level cache that they share.
HWY_INLINE size_t WarmKeys(const AttendTask& task, size_t num_keys) {
  constexpr size_t kKeptBytes = size_t{4} << 20;
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

// Makes weights of the scores that wait, of keys up to `done`, and of the others by a second pass.
template <class AnyScheme>
HWY_NOINLINE void Weigh(const AttendTask& task, size_t done, TaskScratch<AnyScheme>& scratch) {
  using Keys = typename AnyScheme::Keys;
  using Score = WaitingScore<typename AnyScheme::Values>;
  QueryTiles<Keys>& queries = scratch.queries;
  const bool waits = ScoresWait<typename AnyScheme::Values>(task);
  bool all = true;
  for (size_t t = 0; t < queries.count; ++t) {
    queries.unweighed[t] |= !waits;
    all &= !queries.unweighed[t];
    if (queries.unweighed[t]) continue;
    StoreHidden<Score>(task, queries.tiles[t], done, task.weights.num_keys);
    WeighStored<Score>(task, queries.tiles[t]);
  }
  if (!all) WeighTiles<Keys>(task, queries, scratch.floats, scratch.biases, scratch.own);
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
        queries.unweighed[t] |= !AttendTilePair<AnyScheme, decltype(vectors)::value>(
            task, q, kv, queries.masks[t], scratch);
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
  if (HWY_UNLIKELY(WeighsOnTheWay(task))) Weigh(task, done, scratch);
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_PREFILL_INL_H_
