// The query tiles of a task: Q in panels, what each row sees, and scratch that they take turns to
// use. Both passes over many rows begin with them (prefill-inl.h, weights-inl.h).
//
// Cost: Q is read, converted or quantised, and transposed once for each task.
#ifndef SIGHTLINE_KERNELS_QUERY_TILES_INL_H_
#define SIGHTLINE_KERNELS_QUERY_TILES_INL_H_

#include "kernels/kv_tile-inl.h"
#include "kernels/load_queries-inl.h"
#include "kernels/mask-inl.h"
#include "kernels/schemes-inl.h"
#include "kernels/score_mods-inl.h"
#include "kernels/scratch-inl.h"

namespace sightline {
namespace SIGHTLINE_TIER {
namespace {

template <class Keys>
constexpr size_t kTileRows = Keys::kQueryVectors * kLanes;

// The query tiles of a task, and what any pass keeps of each.
template <class Keys>
struct QueryTiles {
  static constexpr size_t kMax = kTaskRows / kTileRows<Keys>;
  static_assert(kTaskRows % kTileRows<Keys> == 0, "query tiles must divide a task");

  QueryTile tiles[kMax];
  size_t count = 0;
  TileMask masks[kMax];  // what they see of the tile of keys at hand
  float* rows;           // kLanes rows of Q or O on their way into or out of panels
};

// And what they take turns to use.
struct TileBuffers {
  TileScratch floats;
  BiasScratch biases;
  OwnTile own;
};
template <class Keys>
struct PassScratch : TileBuffers {
  QueryTiles<Keys> queries;
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
    q.begin = arena.Take<int32_t>(kRows);
    q.limit = arena.Take<int32_t>(kRows);
    q.mask = arena.Take<int32_t>(kMaskWords * kRows);
    q.m = arena.Take<float>(kRows);
    q.d = arena.Take<float>(kRows);
    q.offset = arena.Take<float>(kRows);
    q.before_m = arena.Take<float>(kRows);
    q.before_d = arena.Take<float>(kRows);
    q.kept_m = arena.Take<float>(kRows);
    q.unweighed = arena.Take<int32_t>(kRows);
    q.o = arena.Take<float>(v_channels * kRows);
    q.lacks = arena.Take<float>(kMostParts * kRows);
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
    q.unweighed[r] = 0;
  }
}

// What scores lack of quantised K is computed with Q; of floats nothing.
template <class Keys>
HWY_INLINE void SetLacks(const AttendTask& task, QueryTile& q) {
  const size_t rows = q.num_vectors * kLanes;
  q.lack = q.lacks + (Keys::kQuantized ? task.part * rows : 0);
  for (size_t r = 0; !Keys::kQuantized && r < rows; ++r) q.lack[r] = 0.0f;
}

// All tiles of the task, with their packed queries, which are in scratch if the task continues.
template <class Keys>
HWY_NOINLINE void BeginQueryTiles(const AttendTask& task, QueryTiles<Keys>& queries) {
  for (size_t row = task.row_begin; row < task.row_end; row += kTileRows<Keys>) {
    QueryTile& q = queries.tiles[queries.count++];
    BeginQueryTile(task, row, kTileRows<Keys>, q);
    SetLacks<Keys>(task, q);
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

}  // namespace
}  // namespace SIGHTLINE_TIER
}  // namespace sightline

#endif  // SIGHTLINE_KERNELS_QUERY_TILES_INL_H_
