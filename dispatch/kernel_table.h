// The only border between SIMD code and the rest: plain structs and function pointers.
//
// Kernels take what is here and nothing else: no tensors, threads, allocation or errors. Everything
// was validated above (dispatch/validate.h); pointers are non-null, sizes fit, scratch is aligned.
//
// Included by tier code: no standard library, no inline function with external linkage.
#ifndef SIGHTLINE_DISPATCH_KERNEL_TABLE_H_
#define SIGHTLINE_DISPATCH_KERNEL_TABLE_H_

#include <stddef.h>
#include <stdint.h>

#include "kv/layout.h"
#include "sightline/tensor.h"

namespace sightline {
namespace internal {

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
  size_t beams;
  size_t group;
};

// K or V rows of one (batch, kv head), as the caller stores them.
struct SourceRows {
  const unsigned char* data;
  DType dtype;
  int64_t length_stride;
  int64_t dim_stride;
};

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

// Rows one task covers: the K/V tile that f16 converts serves this many rows, and the state of all
// of them (Q, O) stays in L2. Every tier's q_tile divides it.
constexpr size_t kTaskRows = 192;

// What a tier offers for one precision.
struct PrecisionKernels {
  LayoutId layout;
  // Bytes of scratch that either driver needs; a multiple of kPackedAlignBytes.
  size_t (*scratch_bytes)(const PackedShape& shape);
  void (*prefill)(const AttendTask& task, unsigned char* scratch);  // up to kTaskRows rows
  void (*decode)(const AttendTask& task, unsigned char* scratch);   // up to decode_rows rows
  size_t decode_rows;
  // Mean over the rows of k and v, written to k_center and v_center; null where there are none.
  void (*center)(const PackTask& task, unsigned char* scratch);
  void (*pack)(const PackTask& task, unsigned char* scratch);
};

// Bytes of scratch that `center` and `pack` need, in every tier.
constexpr size_t kPackScratchBytes = 4 * (2 * kMaxHeadDim + 3 * kMaxHeadDim);

constexpr size_t kNumPrecisions = 3;  // f32, f16, i8: the values of Precision, in its order

struct KernelTable {
  const char* tier;
  int64_t highway_target;  // 0 for the scalar tier
  PrecisionKernels kernels[kNumPrecisions];
};

}  // namespace internal
}  // namespace sightline

#endif  // SIGHTLINE_DISPATCH_KERNEL_TABLE_H_
