// The driver: query tiles times K/V tiles of one (batch, kv head).
//
//   for each K/V tile of 128 keys         K and V stream from memory once per task of 192 rows
//     for each query tile that sees it    Q and O of the task stay in L2, S and P in L1
//       S = K·Q, softmax, O += P·V      S in f32, in 16-bit fixed point or, for bf16, not at all
//
// Traffic per task: K and V once, Q and O once. A K/V tile hidden from a query tile (above the
// causal diagonal, outside of its window) is never computed, and of one that it sees in part only
// what lies between the first key and the last that some row sees. Work per score: head_dim +
// v_head_dim multiplications and one 2^x.
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

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

template <class Scheme>
constexpr size_t kTileRows = Scheme::kQueryVectors * kLanes;

// Everything a task keeps: its query tiles, and what they take turns to use.
template <class Scheme>
struct TaskScratch {
  static constexpr size_t kMaxTiles = kTaskRows / kTileRows<Scheme>;
  static_assert(kTaskRows % kTileRows<Scheme> == 0, "query tiles must divide a task");

  QueryTile tiles[kMaxTiles];
  TileScratch floats;
  FixedScratch fixed;
  BiasScratch biases;
  KeyFactors keys = {};
  float* rows;  // kLanes rows of Q or O on their way into or out of panels
  WideTile wide;
};

template <class Scheme>
HWY_INLINE TileScratch TakeTileScratch(size_t rows, ScratchArena& arena) {
  const size_t float_rows = Scheme::kQuantizedV ? 0 : rows;
  const size_t bf16_rows = kHasBF16P<Scheme> ? rows : 0;
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
  FixedScratch scratch;
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
  return scratch;
}

template <class Scheme>
HWY_INLINE size_t LayOutScratch(const PackedShape& shape, uint8_t* base,
                                TaskScratch<Scheme>& task) {
  constexpr size_t kRows = kTileRows<Scheme>;
  const size_t dims = RowBufferElements(shape.head_dim);
  const size_t channels = PaddedVHeadDim(shape);
  const size_t widest = MaxOf(dims, channels);
  ScratchArena arena(base);
  for (QueryTile& q : task.tiles) {
    q.panel = arena.Take<uint8_t>(dims / kQkDepth<Scheme> * kRows * kLaneBytes);
    q.row_scale = arena.Take<float>(kRows);
    q.acc_init = arena.Take<int32_t>(kRows);
    q.lack = arena.Take<float>(kRows);
    q.begin = arena.Take<int32_t>(kRows);
    q.limit = arena.Take<int32_t>(kRows);
    q.mask = arena.Take<int32_t>(kMaskWords * kRows);
    q.m = arena.Take<float>(kRows);
    q.d = arena.Take<float>(kRows);
    q.o = arena.Take<float>(channels * kRows);
  }
  task.floats = TakeTileScratch<Scheme>(kRows, arena);
  if constexpr (Scheme::kQuantizedV) {
    task.fixed = TakeFixedScratch(kRows, arena);
    task.keys.words = arena.Take<uint32_t>(kKvTile / 2);
  }
  task.biases = TakeBiasScratch(kRows, arena);
  task.rows = arena.Take<float>(kLanes * widest);
  task.wide = TakeWideTile<Scheme>(shape, arena);
  return arena.used();
}

template <class Scheme>
size_t PrefillScratchBytes(const PackedShape& shape) {
  TaskScratch<Scheme> scratch;
  return LayOutScratch<Scheme>(shape, nullptr, scratch);
}

// Ranges of keys, empty softmax state and the packed queries of one tile.
template <class Scheme>
HWY_NOINLINE void BeginQueryTile(const AttendTask& task, size_t first_row,
                                 const TaskScratch<Scheme>& scratch, QueryTile& q) {
  q.first_row = first_row;
  q.num_rows = MinOf(kTileRows<Scheme>, task.row_end - first_row);
  q.num_vectors = RoundUp(q.num_rows, kLanes) / kLanes;
  const KeyRange first = RangeOf(task, first_row);
  const KeyRange last = RangeOf(task, first_row + q.num_rows - 1);
  q.min_begin = first.begin;
  q.max_begin = last.begin;
  q.min_limit = first.limit;
  q.max_limit = last.limit;
  for (size_t r = 0; r < q.num_vectors * kLanes; ++r) {
    const KeyRange range = RangeOf(task, first_row + MinOf(r, q.num_rows - 1));
    q.begin[r] = static_cast<int32_t>(range.begin);
    q.limit[r] = static_cast<int32_t>(range.limit);
    q.m[r] = kHasBF16P<Scheme> ? kHeadroom : kNegInf;
    q.d[r] = 0.0f;
    q.lack[r] = 0.0f;
  }
  const size_t channels = PaddedVHeadDim(task.head.shape);
  for (size_t i = 0; i < channels * q.num_vectors; ++i) {
    hn::Store(hn::Zero(df), df, q.o + i * kLanes);
  }
  LoadQueries<Scheme>(task, q, scratch.rows);
}

// One pair of tiles. Every count of query vectors has code of its own: a remainder run one vector
// at a time costs 10 % of a causal prefill of 2048.
template <class Scheme, size_t kQV>
HWY_INLINE void AttendTilePair(const AttendTask& task, const QueryTile& q, const KvTile& kv,
                               const TileMask& mask, const TaskScratch<Scheme>& scratch) {
  if (q.num_vectors == kQV) {
    const size_t channels = PaddedVHeadDim(task.head.shape);
    if constexpr (Scheme::kQuantizedV) {
      for (size_t part = 0; part < mask.end; part += Scheme::kPTileKeys) {
        const TileMask seen = MaskFrom<kQV>(mask, part, Scheme::kPTileKeys);
        if (seen.first >= seen.end) continue;
        const KvTile part_kv = TileFrom(kv, part);
        ScoreTileFixed<Scheme, kQV>(task, q, part_kv, KeyFactorsFrom(scratch.keys, part), seen,
                                    scratch.fixed, scratch.floats, scratch.biases);
        SoftmaxTileFixed<Scheme, kQV>(q, channels, seen.first, RoundUp(seen.end, Scheme::kStep),
                                      scratch.fixed);
        AccumulateTileFixed<Scheme, kQV>(q, part_kv, seen, channels, scratch.fixed);
      }
    } else {
      if constexpr (kHasBF16P<Scheme>) {
        ScoreToBF16<Scheme, kQV>(task, q, kv, mask, scratch.floats, scratch.biases);
      } else {
        if (HWY_LIKELY(!ModifiesScores(task))) {
          ScoreTile<Scheme, kQV>(q, kv, mask, task.head.shape.head_dim, scratch.floats);
        } else {
          ScoreModifiedTile<Scheme, kQV>(task, q, kv, mask, scratch.floats, scratch.biases);
        }
        SoftmaxTile<kQV>(q, mask.first, RoundUp(mask.end, Scheme::kStep), scratch.floats);
      }
      AccumulateTile<Scheme, kQV>(q, kv, mask, channels, scratch.floats);
    }
  } else if constexpr (kQV > 1) {
    AttendTilePair<Scheme, kQV - 1>(task, q, kv, mask, scratch);
  }
}

// The keys, of the first num_keys, whose K and V some cache holds: those that the task before
// reads, if it is done or, with several workers, under way in a last-level cache that they share.
// Schemes that widen read each tile once, from one end to the other, which hardware expects:
// nothing is to be done for them.
template <class Scheme>
HWY_INLINE size_t WarmKeys(const AttendTask& task, size_t num_keys) {
  if constexpr (Scheme::kWidensK || Scheme::kWidensV) return num_keys;
  constexpr size_t kKeptBytes = size_t{4} << 20;
  const PackedShape& shape = task.head.shape;
  const size_t key_bytes = PaddedHeadDim(shape) * sizeof(typename Scheme::KStored) +
                           PaddedVHeadDim(shape) * sizeof(typename Scheme::VStored);
  if (task.row_begin == 0 || num_keys * key_bytes > kKeptBytes) return 0;
  return RangeOf(task, task.row_begin - 1).limit;
}

template <class Scheme>
void Prefill(const AttendTask& task, unsigned char* scratch_bytes) {
  TaskScratch<Scheme> scratch;
  LayOutScratch<Scheme>(task.head.shape, scratch_bytes, scratch);

  size_t num_tiles = 0;
  for (size_t row = task.row_begin; row < task.row_end; row += kTileRows<Scheme>) {
    BeginQueryTile<Scheme>(task, row, scratch, scratch.tiles[num_tiles++]);
  }

  const size_t visible = MaxOf(scratch.tiles[num_tiles - 1].max_limit, task.prefix_len);
  const size_t warm = WarmKeys<Scheme>(task, visible);
  const size_t window_begin = scratch.tiles[0].min_begin / kKvTile * kKvTile;
  for (size_t key = 0; key < visible; key += kKvTile) {
    if (key >= task.prefix_len) key = MaxOf(key, window_begin);  // nobody sees what is in between
    const size_t tile_keys = MinOf(kKvTile, visible - key);
    TileMask masks[TaskScratch<Scheme>::kMaxTiles];
    bool is_seen = false;
    for (size_t t = 0; t < num_tiles; ++t) {
      masks[t] = LookAtTile(task, scratch.tiles[t], key, tile_keys);
      is_seen |= masks[t].end != 0;
    }
    if (!is_seen) continue;
    const KvTile kv = BeginKvTile<Scheme>(task.head, key, tile_keys, scratch.wide);
    if constexpr (Scheme::kQuantizedV) SetKeyFactors(kv.k_scale, tile_keys, scratch.keys);
    const size_t next_end = key + 2 * kKvTile;
    const bool has_next = next_end <= visible && next_end > warm;
    KvTile next = {};
    if (has_next) next = BeginKvTile<Scheme>(task.head, key + kKvTile, kKvTile, scratch.wide);
    for (size_t t = 0; t < num_tiles; ++t) {
      if (has_next) PrefetchKvTile<Scheme>(task.head.shape, next, t, num_tiles);
      if (masks[t].end == 0) continue;
      AttendTilePair<Scheme, Scheme::kQueryVectors>(task, scratch.tiles[t], kv, masks[t], scratch);
    }
  }

  const float* v_center = VCenter<Scheme>(task);
  for (size_t t = 0; t < num_tiles; ++t) {
    StoreOutput(task, scratch.tiles[t], v_center, scratch.rows);
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_PREFILL_INL_H_
