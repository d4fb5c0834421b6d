// The driver: query tiles times K/V tiles of one (batch, kv head).
//
//   for each K/V tile of 128 keys         K and V stream from memory once per task of 192 rows
//     for each query tile that sees it    Q and O of the task stay in L2, S and P in L1
//       S = K·Q, softmax, O += P·V
//
// Traffic per task: K and V once, Q and O once. A K/V tile hidden from a query tile (above the
// causal diagonal) is never computed. Work per score: head_dim + v_head_dim multiplications and one
// 2^x.
#ifndef SIGHTLINE_KERNELS_PREFILL_INL_H_
#define SIGHTLINE_KERNELS_PREFILL_INL_H_

#include "kernels/kv_tile-inl.h"
#include "kernels/load_queries-inl.h"
#include "kernels/online_softmax-inl.h"
#include "kernels/pv-inl.h"
#include "kernels/qk-inl.h"
#include "kernels/scratch-inl.h"
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
  TileScratch shared;
  uint8_t* chunks;
  float* row;
  WideTile wide;
};

template <class Scheme>
HWY_INLINE size_t LayOutScratch(const PackedShape& shape, uint8_t* base,
                                TaskScratch<Scheme>& task) {
  constexpr size_t kRows = kTileRows<Scheme>;
  const size_t dims = RowBufferElements(shape.head_dim);
  const size_t channels = PaddedVHeadDim(shape);
  const size_t widest = MaxOf(dims, channels);
  ScratchArena arena(base);
  for (QueryTile& q : task.tiles) {
    q.panel = arena.Take<uint8_t>(dims / kDepth<Scheme> * kRows * kLaneBytes);
    q.row_scale = arena.Take<float>(kRows);
    q.acc_init = arena.Take<int32_t>(kRows);
    q.limit = arena.Take<int32_t>(kRows);
    q.m = arena.Take<float>(kRows);
    q.d = arena.Take<float>(kRows);
    q.o = arena.Take<float>(channels * kRows);
  }
  task.shared.s = arena.Take<float>(kKvTile * kRows);
  task.shared.p = arena.Take<uint8_t>(Scheme::kI8 ? kKvTile * kRows : 0);
  task.shared.tile_m = arena.Take<float>(kRows);
  task.shared.rescale = arena.Take<float>(kRows);
  task.shared.weight = arena.Take<float>(kRows);
  task.shared.p_init = arena.Take<int32_t>(kRows);
  task.chunks = arena.Take<uint8_t>(kLanes * widest * sizeof(float));
  task.row = arena.Take<float>(widest);
  task.wide = TakeWideTile<Scheme>(shape, arena);
  return arena.used();
}

template <class Scheme>
size_t PrefillScratchBytes(const PackedShape& shape) {
  TaskScratch<Scheme> scratch;
  return LayOutScratch<Scheme>(shape, nullptr, scratch);
}

// Limits, empty softmax state and the packed queries of one tile.
template <class Scheme>
HWY_INLINE void BeginQueryTile(const AttendTask& task, size_t first_row,
                               const TaskScratch<Scheme>& scratch, QueryTile& q) {
  q.first_row = first_row;
  q.num_rows = MinOf(kTileRows<Scheme>, task.row_end - first_row);
  q.num_vectors = RoundUp(q.num_rows, kLanes) / kLanes;
  q.min_limit = KeyLimit(task, first_row);
  q.max_limit = KeyLimit(task, first_row + q.num_rows - 1);
  for (size_t r = 0; r < q.num_vectors * kLanes; ++r) {
    q.limit[r] = static_cast<int32_t>(KeyLimit(task, first_row + MinOf(r, q.num_rows - 1)));
    q.m[r] = kNegInf;
    q.d[r] = 0.0f;
  }
  const size_t channels = PaddedVHeadDim(task.head.shape);
  for (size_t i = 0; i < channels * q.num_vectors; ++i) {
    hn::Store(hn::Zero(df), df, q.o + i * kLanes);
  }
  LoadQueries<Scheme>(task, q, scratch.chunks, scratch.row);
}

// One pair of tiles. Every count of query vectors has code of its own: a remainder run one vector
// at a time costs 10 % of a causal prefill of 2048.
template <class Scheme, size_t kQV>
HWY_INLINE void AttendTilePair(const AttendTask& task, const QueryTile& q, const KvTile& kv,
                               size_t num_keys, const TileScratch& scratch) {
  if (q.num_vectors == kQV) {
    ScoreTile<Scheme, kQV>(q, kv, task.head.shape.head_dim, num_keys, scratch);
    SoftmaxTile<Scheme, kQV>(q, RoundUp(num_keys, Scheme::kStep), scratch);
    AccumulateTile<Scheme, kQV>(q, kv, PaddedVHeadDim(task.head.shape), num_keys, scratch);
  } else if constexpr (kQV > 1) {
    AttendTilePair<Scheme, kQV - 1>(task, q, kv, num_keys, scratch);
  }
}

template <class Scheme>
void Prefill(const AttendTask& task, unsigned char* scratch_bytes) {
  TaskScratch<Scheme> scratch;
  LayOutScratch<Scheme>(task.head.shape, scratch_bytes, scratch);

  size_t num_tiles = 0;
  for (size_t row = task.row_begin; row < task.row_end; row += kTileRows<Scheme>) {
    BeginQueryTile<Scheme>(task, row, scratch, scratch.tiles[num_tiles++]);
  }

  const size_t visible = scratch.tiles[num_tiles - 1].max_limit;
  for (size_t key = 0; key < visible; key += kKvTile) {
    const size_t tile_keys = MinOf(kKvTile, visible - key);
    const KvTile kv = BeginKvTile<Scheme>(task.head, key, tile_keys, scratch.wide);
    for (size_t t = 0; t < num_tiles; ++t) {
      const QueryTile& q = scratch.tiles[t];
      if (q.max_limit <= key) continue;
      const size_t num_keys = MinOf(tile_keys, q.max_limit - key);
      AttendTilePair<Scheme, Scheme::kQueryVectors>(task, q, kv, num_keys, scratch.shared);
    }
  }

  const float* v_center = VCenter<Scheme>(task);
  for (size_t t = 0; t < num_tiles; ++t) {
    StoreOutput(task, scratch.tiles[t], v_center, scratch.chunks, scratch.row);
  }
}

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_PREFILL_INL_H_
