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

// A row alone, for what takes rows.
static inline Row RowAt(const Row& row, size_t) { return row; }

// Rows of a caller's tensor that belong to one (batch, kv head): row r is query r / (beams *
// group), beam r / group % beams, head r % group. Query-major, so that the causal limit never falls
// with r.
struct Rows {
  unsigned char* data;  // row 0; const for inputs by convention
  DType dtype;
  int64_t length_stride;
  int64_t beam_stride;
  int64_t head_stride;
  int64_t dim_stride;
  ScaleView scale;  // of row 0; from beam to beam by its batch_stride
  size_t beams;
  size_t group;
};

static inline Row RowAt(const Rows& rows, size_t r) {
  size_t query = r;
  size_t beam = 0;
  size_t head = 0;
  const size_t sharing = rows.beams * rows.group;
  if (sharing != 1) {  // divisions that most rows do not need
    query = r / sharing;
    beam = r % sharing / rows.group;
    head = r % rows.group;
  }
  const auto offset = [=](int64_t length_stride, int64_t beam_stride, int64_t head_stride) {
    return static_cast<int64_t>(query) * length_stride + static_cast<int64_t>(beam) * beam_stride +
           static_cast<int64_t>(head) * head_stride;
  };
  const ScaleView& scale = rows.scale;
  return {rows.data + offset(rows.length_stride, rows.beam_stride, rows.head_stride), rows.dtype,
          rows.dim_stride,
          ScaleAt(scale.data, offset(scale.length_stride, scale.batch_stride, scale.head_stride)),
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

// Attention of rows [row_begin, row_end) with one packed head.
struct AttendTask {
  PackedHead head;
  size_t kv_len;  // keys in use, <= head.shape.capacity
  Rows q;
  Rows out;
  size_t q_len;  // queries; rows are q_len * q.beams * q.group
  size_t row_begin;
  size_t row_end;
  bool causal;
  float scale_log2e;  // softmax scale * log2(e): kernels work with powers of two
};

// Rows of all tasks of the head together.
static inline size_t NumRows(const AttendTask& task) {
  return task.q_len * task.q.beams * task.q.group;
}

// Keys that row r may see: [0, limit). Causal is aligned bottom-right: the last query sees all
// keys.
static inline size_t KeyLimit(const AttendTask& task, size_t r) {
  if (!task.causal) return task.kv_len;
  const size_t sharing = task.q.beams * task.q.group;
  const size_t query = sharing == 1 ? r : r / sharing;
  const size_t hidden = task.q_len - 1 - query;  // keys that only later queries see
  return task.kv_len > hidden ? task.kv_len - hidden : 0;
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
  AttendFunction decode;   // up to decode_rows rows
  size_t decode_rows;
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
  PrecisionKernels kernels[kNumPrecisions];
};

}  // namespace internal
}  // namespace sightline

#endif  // SIGHTLINE_DISPATCH_KERNEL_TABLE_H_
