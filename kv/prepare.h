// Packs whole tensors: what CrossMemory does once, and Run at each call with K and V given as
// tensors.
#ifndef SIGHTLINE_KV_PREPARE_H_
#define SIGHTLINE_KV_PREPARE_H_

#include "dispatch/kernel_table.h"
#include "dispatch/sequences.h"
#include "kv/packed_kv.h"
#include "sightline/parallel.h"
#include "sightline/tensor.h"

namespace sightline {
namespace internal {

// The scales of a validated view from (batch, head) on; all null and 0 unless it is i8.
ScaleView HeadScales(const ConstTensorView& view, size_t batch, size_t head);

// Row 0 of one (batch, kv head) of k or v.
SourceRows SourceRowsOf(const ConstTensorView& view, size_t batch, size_t kv_head);

// Rows of f32 without gaps.
SourceRows DenseRows(float* data, size_t dim);

// Packed heads [begin, end), counted through the sequences: those of the first, those of the
// second.
struct HeadRange {
  size_t begin;
  size_t end;
};

// Fills these of `heads` from the sequences of k and v, which were validated against it: first, for
// int8, the centres, which need all keys before any can be quantised, then the keys, all or those
// of a stretch.
void FindCenters(const PrecisionKernels& kernels, const PackedHeads& heads, const HeadRange& range,
                 const ConstTensorView& k, const ConstTensorView& v, const SequenceSpans& sequences,
                 const ParallelFor& parallel);
void PackTensors(const PrecisionKernels& kernels, const PackedHeads& heads, const HeadRange& range,
                 const ConstTensorView& k, const ConstTensorView& v, const SequenceSpans& sequences,
                 const ParallelFor& parallel);

}  // namespace internal
}  // namespace sightline

#endif  // SIGHTLINE_KV_PREPARE_H_
