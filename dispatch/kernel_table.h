// The only border between SIMD code and the rest: plain structs and function pointers.
//
// Kernels take what is here and nothing else: no tensors, threads, allocation or errors. Everything
// was validated above (dispatch/validate.h); pointers are non-null, sizes fit, scratch is aligned.
//
// Included by tier code: functions are `static`, and nothing of the standard library is used. (The
// views of sightline/tensor.h come along and are not used, but for the fields of ScaleView; the
// build checks that no tier exports them.)
#ifndef SIGHTLINE_DISPATCH_KERNEL_TABLE_H_
#define SIGHTLINE_DISPATCH_KERNEL_TABLE_H_

#include <stddef.h>
#include <stdint.h>

#include "kv/layout.h"
#include "sightline/tensor.h"

namespace sightline {
namespace internal {

// Octaves of a natural unit: kernels work with powers of two.
constexpr float kLog2E = 1.44269504f;

// One row of a caller's tensor. i8: element d is worth its quantum times the scale that lies
// d * scale_stride bytes behind `scale`; null for the other types.
struct Row {
  unsigned char* data;  // const for inputs by convention
  DType dtype;
  int64_t dim_stride;
  const float* scale;
  int64_t scale_stride;
};

static inline const float* ScaleAt(const float* scale, int64_t offset_bytes) {
  return reinterpret_cast<const float*>(reinterpret_cast<const unsigned char*>(scale) +
                                        offset_bytes);
}

// Rows of a caller's tensor that belong to one (batch, kv head). Query-major, so that what a row
// sees never moves back with r; see IndexOf.
struct Rows {
  unsigned char* data;  // row 0; const for inputs by convention; null where there is no such tensor
  DType dtype;
  int64_t length_stride;
  int64_t beam_stride;
  int64_t head_stride;
  int64_t dim_stride;
  ScaleView scale;  // of row 0; from beam to beam by its batch_stride
  size_t beams;
  size_t group;
};

// What row r is: a query of one beam and one head of the group.
struct RowIndex {
  size_t query;
  size_t beam;
  size_t head;
};
static inline RowIndex IndexOf(size_t r, size_t beams, size_t group) {
  const size_t sharing = beams * group;
  if (sharing == 1) return {r, 0, 0};  // divisions that most rows do not need
  return {r / sharing, r % sharing / group, r % group};
}

static inline int64_t OffsetOf(const RowIndex& index, int64_t length_stride, int64_t beam_stride,
                               int64_t head_stride) {
  return static_cast<int64_t>(index.query) * length_stride +
         static_cast<int64_t>(index.beam) * beam_stride +
         static_cast<int64_t>(index.head) * head_stride;
}

static inline Row RowAt(const Rows& rows, size_t r) {
  const RowIndex index = IndexOf(r, rows.beams, rows.group);
  const ScaleView& scale = rows.scale;
  return {rows.data + OffsetOf(index, rows.length_stride, rows.beam_stride, rows.head_stride),
          rows.dtype, rows.dim_stride,
          ScaleAt(scale.data,
                  OffsetOf(index, scale.length_stride, scale.batch_stride, scale.head_stride)),
          scale.dim_stride};
}

// K or V rows of one (batch, kv head), as the caller stores them.
struct SourceRows {
  Row first;
  int64_t length_stride;
  int64_t scale_length_stride;
};

static inline Row RowAt(const SourceRows& rows, size_t i) {
  Row row = rows.first;
  row.data += static_cast<int64_t>(i) * rows.length_stride;
  row.scale = ScaleAt(row.scale, static_cast<int64_t>(i) * rows.scale_length_stride);
  return row;
}

static inline SourceRows Skip(const SourceRows& rows, size_t count) {
  return {RowAt(rows, count), rows.length_stride, rows.scale_length_stride};
}

// One packed head; offsets are computed once per plan or memory, not per head.
struct PackedHead {
  unsigned char* base;
  PackedShape shape;
  PackedOffsets offsets;
};

// Packs keys [key_begin, key_begin + num_keys) of a head. int8: key_begin is a multiple of kKvTile
// and the tile is packed from its first key on, since its V scale depends on all of its keys.
struct PackTask {
  PackedHead head;
  SourceRows k;  // row 0 is key_begin
  SourceRows v;
  size_t key_begin;
  size_t num_keys;
  // int8: the first rows whose K is packed already and stays, while their V still depends on the
  // rest.
  size_t num_keys_done;
  // int8 from int8: the caller's steps are kept, since one scale serves a whole row of K, or a
  // channel of V in all rows. Means are whole numbers of steps (of K 0, unless one scale serves all
  // rows), and ranges at least 127 of them, so that quanta differ by those whole numbers alone.
  bool keeps_k;
  bool keeps_v;
};

// Booleans of the caller's by query and key, each for a block of q_block x kv_block of them.
struct MaskRows {
  const unsigned char* data;  // of row 0; null where there is no such mask
  int64_t query_stride;       // from block to block
  int64_t beam_stride;
  int64_t head_stride;
  int64_t key_stride;  // from block to block
  size_t q_block;
  size_t kv_block;
  size_t first_key;  // of the mask: key 0 of the task
};

// Places that a table of biases by distance has beyond either end, which are all the same: as many
// as the distances in a pair of tiles.
constexpr size_t kBiasPadding = kKvTile + 64;

// What is added to scores by the distance d of a key from a query, and all in octaves but what the
// caller gives: table[bucket[d]] of the head, and -slope * |d|.
struct DistanceBias {
  const float* table;      // [buckets][table_stride], of the group's first head; null: none
  size_t table_stride;     // heads
  const uint16_t* bucket;  // of distances -max_distance to max_distance, which stand for all beyond
  int64_t max_distance;
  // The table by distance, of the group's first head and in octaves: place i is that of distance
  // max_distance + kBiasPadding - i, of 2 * (max_distance + kBiasPadding) + 1. Prefill has it.
  const float* octaves;
  const float* slopes;  // [group]; null: none
};

// The other side of a window that has none: beyond any position.
constexpr int64_t kUnbounded = int64_t{1} << 40;

// Bytes that a last-level cache is trusted to keep beside all else, until they are read again.
// Phones have 2 to 8 MiB for all cores.
constexpr size_t kKeptBytes = size_t{4} << 20;

// What becomes of weights exp(s - lse).
struct WeightsTask {
  Rows out;          // optional: rows of weights
  size_t first_row;  // of the task, whose weights are row 0 of `out`
  bool adds;         // adds to what is there, which is f32
  Row mass;          // optional, f32: sums over all rows, which are added
  size_t num_keys;   // of out and mass; hidden keys, and those that do not exist, get 0
  float factor;      // weights are multiplied by it
  bool past_caches;  // all of `out` is more than kKeptBytes; for scores that wait as words
};

// Which keys of a tile of kKvTile are there.
enum class TileKeys : uint8_t { kAll, kSome, kNone };

// Where keys are that do not all lie at head.base, and which are there no more.
struct KeyPages {
  const unsigned char* const* data;  // page after page of head.shape.capacity keys, which is then a
                                     // multiple of kKvTile; null: all keys are at head.base
  size_t head_offset;                // of the head in each
  const TileKeys* tiles;             // of each tile; null: no key is missing. Of kNone there may be
                                     // no page
  const uint32_t* kept;  // [tiles][kTileWords]: bits of the keys that are there, for kSome
};

// Tasks that lead to one another, at most.
constexpr size_t kMostParts = 16;

// Attention of rows [row_begin, row_end) with one packed head, or with several of the same layout
// one after the other: then each has a task of its own, in the same scratch, and leads to the next.
struct AttendTask {
  PackedHead head;  // its centres serve all pages
  KeyPages pages;
  size_t kv_len;   // keys in use, <= head.shape.capacity where there are no pages
  bool continues;  // rows have seen other keys in the task before, and
  bool pauses;     // see more in the next one. Q and the modifications are the same in all of them.
  const AttendTask* next;  // the one that goes on where this pauses; null: it comes in another call
  size_t part;             // so many tasks lead to this one, less than kMostParts
  // Of the first task: the call before had the same tasks, objects included, in the same scratch,
  // for the head before, which each task's packed head and pages have left by head.offsets.bytes.
  // Decode then has their keys already.
  bool is_next_head;
  const float* score_offset;  // [group], finite: added to all scores; null: 0
  Rows q;
  Rows out;
  Rows lse;      // f32; optional
  size_t q_len;  // queries; rows are q_len * q.beams * q.group
  size_t row_begin;
  size_t row_end;
  float scale_log2e;   // softmax scale * log2(e): kernels work with powers of two
  size_t fetch_ahead;  // decode: bytes of K and V to be asked for ahead of the products; 0: none

  // Masks. Query i stands at q_start + i and sees so many keys to the left and to the right of
  // that, and the first prefix_len in any case; of all these, those that `masks` show.
  int64_t q_start;
  int64_t window_left;
  int64_t window_right;
  size_t prefix_len;  // <= kv_len
  MaskRows masks[2];

  // Score modifications.
  float softcap_log2e;  // 0: none
  Rows bias;            // optional
  DistanceBias distance_bias;
  const float* sinks;  // [group]; null: none

  // For second passes, which read lse. First passes that weigh on the way take it if `out` is f32,
  // each row's elements neighbours, and nothing is added or multiplied: their scores wait there for
  // lse.
  WeightsTask weights;
};

static inline bool WeighsOnTheWay(const AttendTask& task) {
  return task.weights.out.data != nullptr;
}

// Rows of all tasks of the head together.
static inline size_t NumRows(const AttendTask& task) {
  return task.q_len * task.q.beams * task.q.group;
}

// Keys [begin, limit) that a row may see by position, begin <= limit <= kv_len. Neither falls from
// row to row. What prefix_len and masks say comes on top.
struct KeyRange {
  size_t begin;
  size_t limit;
};
static inline KeyRange RangeOf(const AttendTask& task, size_t r) {
  const int64_t position =
      task.q_start + static_cast<int64_t>(IndexOf(r, task.q.beams, task.q.group).query);
  const int64_t end = static_cast<int64_t>(task.kv_len);
  const int64_t begin = position - task.window_left;
  const int64_t limit = position + task.window_right + 1;
  return {static_cast<size_t>(begin < 0     ? 0
                              : begin < end ? begin
                                            : end),
          static_cast<size_t>(limit < 0     ? 0
                              : limit < end ? limit
                                            : end)};
}

// The head's part of the page that holds `key`, which becomes its place there.
static inline unsigned char* FindPage(const AttendTask& task, size_t* key) {
  const KeyPages& pages = task.pages;
  if (pages.data == nullptr) return task.head.base;
  const size_t page = *key / task.head.shape.capacity;
  *key -= page * task.head.shape.capacity;
  // Inputs are only read: packing takes them through one type.
  return const_cast<unsigned char*>(pages.data[page]) + pages.head_offset;
}

static inline TileKeys KeysOfTile(const AttendTask& task, size_t key) {
  return task.pages.tiles == nullptr ? TileKeys::kAll : task.pages.tiles[key / kKvTile];
}

static inline bool IsPart(const AttendTask& task) { return task.continues || task.pauses; }

static inline bool HasMasks(const AttendTask& task) {
  return task.masks[0].data != nullptr || task.masks[1].data != nullptr;
}
static inline bool HasDistanceBias(const AttendTask& task) {
  return task.distance_bias.table != nullptr || task.distance_bias.slopes != nullptr;
}
// True if scores are more than products of Q and K times scales.
static inline bool ModifiesScores(const AttendTask& task) {
  return task.softcap_log2e != 0.0f || task.bias.data != nullptr || HasDistanceBias(task);
}

// True if the scores themselves matter, and not only how they differ within a row: quantised K has
// lost its mean, so that all of a row's scores lack the same.
static inline bool NeedsScores(const AttendTask& task) {
  return task.softcap_log2e != 0.0f || task.lse.data != nullptr || task.sinks != nullptr ||
         IsPart(task);
}

// What a row's scores are to be raised by, in octaves: what they lack after the modifications,
// since a softcap has to have it before,
static inline float LackAtEnd(const AttendTask& task, float lack) {
  return task.softcap_log2e != 0.0f ? 0.0f : lack;
}
// and the segment's bias.
static inline float SegmentBias(const AttendTask& task, const RowIndex& index) {
  return task.score_offset == nullptr ? 0.0f : task.score_offset[index.head] * kLog2E;
}

// What a mask says of key `key` for a row.
static inline const unsigned char* MaskOf(const MaskRows& mask, const RowIndex& index, size_t key) {
  const RowIndex block = {index.query / mask.q_block, index.beam, index.head};
  return mask.data + OffsetOf(block, mask.query_stride, mask.beam_stride, mask.head_stride) +
         static_cast<int64_t>((mask.first_key + key) / mask.kv_block) * mask.key_stride;
}

// The bias of a row of head `head` of the group for a key at distance `d`.
static inline float BiasAt(const DistanceBias& bias, size_t head, int64_t d) {
  float sum = 0.0f;
  if (bias.table != nullptr) {
    const int64_t max = bias.max_distance;
    const int64_t at = d < -max ? 0 : d > max ? 2 * max : d + max;
    sum = bias.table[bias.bucket[at] * bias.table_stride + head] * kLog2E;
  }
  if (bias.slopes != nullptr) {
    sum -= bias.slopes[head] * kLog2E * static_cast<float>(d < 0 ? -d : d);
  }
  return sum;
}

// Rows one task covers: the K/V tile that f16 converts serves this many rows, and the state of all
// of them (Q, O) stays in L2. Every tier's q_tile divides it.
constexpr size_t kTaskRows = 192;

using AttendFunction = void (*)(const AttendTask& task, unsigned char* scratch);
using PackFunction = void (*)(const PackTask& task, unsigned char* scratch);

// A precision whose K and V are both quantised, in numbers: how far a tier's quanta reach and where
// it rounds. Kernels have them as constants of their own; they are here for tests, which compute
// the same bits.
struct QuantizedScheme {
  int max_q;  // largest quantum of Q, if that is int8; of int16 see MaxWideQuantum
  int max_p;  // and of P
  // Prefill with scores and P in 16-bit fixed point (kernels/fixed_point-inl.h): the keys over
  // which P is taken relative to one maximum, and max_p * 2^(n - i / 64) as that tier computes it,
  // i < 64. exp2 is null where softmax is in f32.
  size_t p_tile_keys;
  const uint16_t* exp2;
};

// What a tier offers for one precision.
struct PrecisionKernels {
  LayoutId layout;  // i8: or its rotated form, which every step tells by the head it is given
  const QuantizedScheme* scheme;  // null where V is in floats
  // Q, unless it is quantised, and P are rounded to bf16 before they meet K and V of it. For tests.
  bool rounds_to_bf16;
  // Bytes of scratch that either driver needs; a multiple of kPackedAlignBytes.
  size_t (*scratch_bytes)(const PackedShape& shape);
  AttendFunction prefill;  // up to kTaskRows rows
  AttendFunction decode;   // up to decode_rows rows; and all tasks that follow this one
  size_t decode_rows;
  bool weighs_on_the_way;  // either driver can
  // Second passes over the same rows, by drivers of the same kind, with the same scratch.
  AttendFunction weigh_many;
  AttendFunction weigh_few;
  // What rows of k and v have in common: k_center, v_center, q_factor; null where there is nothing.
  PackFunction center;
  PackFunction pack;
};

// The layout they read and write for a format that rotates K or does not.
static inline LayoutId LayoutOf(const PrecisionKernels& kernels, bool rotate_k) {
  return rotate_k ? RotatedLayout(kernels.layout) : kernels.layout;
}

// Scratch that `center` and `pack` need, in every tier: 16 rows of K in f32 and two more; V takes
// its turn, 128 rows of 64 channels in f32.
constexpr size_t kPackScratchBytes = (16 + 2) * kMaxHeadDim * sizeof(float);
struct PackScratch {
  alignas(kPackedAlignBytes) unsigned char bytes[kPackScratchBytes];
};

// f32, f16, i8, i8_fine, bf16, mixed16: the values of Precision, in its order.
constexpr size_t kNumPrecisions = 6;

struct KernelTable {
  const char* tier;
  // Null functions, as a tier hands it over, where those of the tier below serve: dispatch/tiers.cc
  // puts them in.
  PrecisionKernels kernels[kNumPrecisions];
};

}  // namespace internal
}  // namespace sightline

#endif  // SIGHTLINE_DISPATCH_KERNEL_TABLE_H_
